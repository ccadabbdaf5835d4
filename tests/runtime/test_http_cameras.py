"""Cameras that answer over HTTP in their own ways: each picture once, its login shown to nobody else."""

import base64
import hashlib
import http.server
import itertools
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import pytest

from agvas_core.contract.errors import SourceError
from agvas_runtime.sources import CameraSource

MULTIPART = "multipart/x-mixed-replace"
USER, PASSWORD = "u", "p@/:"


def jpeg(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(-10, 11, (48, 64, 1))
    pixels = np.clip(np.full((48, 64, 3), 20 + 20 * number) + noise, 0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def part(body: bytes, line: str = "--shot", kind: str | None = "image/jpeg", length: bool = True) -> bytes:
    head = line + "\r\n" + (f"Content-Type: {kind}\r\n" if kind else "") + (f"Content-Length: {len(body)}\r\n" if length else "")
    return head.encode() + b"\r\n" + body + b"\r\n"


def shots(**odd: object) -> bytes:
    return b"".join(part(jpeg(number), **odd) for number in range(4))  # type: ignore[arg-type]


Answer = tuple[int, list[tuple[str, str]], bytes]
Handler = Callable[[http.server.BaseHTTPRequestHandler], Answer]


@contextmanager
def camera(answer: Handler, host: str = "127.0.0.1") -> Iterator[str]:
    class One(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer(self)
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = False

        def handle_error(self, *_: object) -> None:
            """A client that goes away is no error here."""

    server = Server((host, 0), One)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}/video?channel=1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pictures(url: str, most: int = 4, login: bool = False) -> list[int]:
    """The numbers that the pictures show; up to ``most``."""
    url = url.replace("://", f"://{USER}:p%40%2F%3A@") if login else url
    found = []
    with CameraSource(url, keep=50, open_timeout_s=20, stall_timeout_s=10) as source:
        for frame in itertools.islice(source, most):
            assert frame.image is not None, frame.error
            assert frame.image.shape == (48, 64, 3)
            found.append(round((float(frame.image.mean()) - 20) / 20))
    return found


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (f"{MULTIPART}; boundary=shot", shots()),
        (f"{MULTIPART}; boundary=--shot", shots()),
        (f'{MULTIPART}; boundary="--shot"', shots()),
        (f"{MULTIPART}; boundary=other", shots()),
        (MULTIPART, shots()),
        (None, shots()),
        ("application/octet-stream", shots(line="--ffmpeg", length=False)),
        (f"{MULTIPART}; boundary=myboundary", shots(line="myboundary")),
        (f"{MULTIPART}; boundary=myboundary", shots(line="myboundary", length=False)),
        (f"{MULTIPART}; boundary=shot", shots(length=False).removeprefix(b"--shot\r\n")),
        (f"{MULTIPART}; boundary=shot", b"\r\n" + shots(kind=None)),
        (f"{MULTIPART}; boundary=shot", b"".join(part(b"21.5 C", kind="text/plain") + part(jpeg(n)) for n in range(4))),
        (f"{MULTIPART}; boundary=shot", b"".join(part(b"<Alert/>", kind="application/xml") + part(jpeg(n)) for n in range(4))),
        (f"{MULTIPART}; boundary=shot", b"".join(part(b"{}", kind="application/json", length=False) + part(jpeg(n)) for n in range(4))),
        (f"{MULTIPART}; boundary=shot", shots().replace(b"Content-Length", b"x-stamp: 0.1\r\ncontent-length")),
    ],
)  # fmt: skip
def test_streams_of_all_kinds_give_each_picture_once(kind: str | None, body: bytes) -> None:
    headers = [("Content-Type", kind)] if kind else []
    with camera(lambda _: (200, headers, body)) as url:
        assert pictures(url) == [0, 1, 2, 3]


def test_a_picture_of_unsaid_length_does_not_wait_for_the_next_one() -> None:
    thumbnail = b"\xff\xe1\x00\x08Exif\xff\xd9"  # an end marker within a segment
    whole = jpeg(3)[:2] + thumbnail + jpeg(3)[2:]
    body = part(whole, length=False).rstrip(b"\r\n")
    with camera(lambda _: (200, [("Content-Type", MULTIPART)], body)) as url:
        assert pictures(url, most=1) == [3]
    with camera(lambda _: (200, [("Content-Type", MULTIPART)], body[:-2])) as url, pytest.raises(SourceError, match="closed"):
        pictures(url)  # cut


def test_a_page_is_no_camera() -> None:
    for kind in ("text/html", None):
        headers = [("Content-Type", kind)] if kind else []
        with (
            camera(lambda _, headers=headers: (200, headers, b"<html>")) as url,  # type: ignore[misc]
            pytest.raises(SourceError, match="not with multipart"),
        ):
            pictures(url)


def checked(challenges: list[str]) -> Handler:
    """Wants a login by one of these; the answer is computed from RFC 7616 here, and must be the same."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> Answer:
        given = request.headers.get("Authorization", "")
        if not given:
            return 401, [("WWW-Authenticate", each) for each in challenges], b""
        if given.startswith("Basic "):
            right = base64.b64decode(given[6:]).decode() == f"{USER}:{PASSWORD}" and any("Basic" in each for each in challenges)
        else:
            found = re.findall(r'(\w+)=(?:"([^"]*)"|([^",]*))', given.removeprefix("Digest "))
            fields = {name: quoted or bare for name, quoted, bare in found}
            named = fields.get("algorithm", "MD5")
            hashed = hashlib.sha256 if "SHA-256" in named else hashlib.md5

            def digest(*texts: str) -> str:
                return hashed(":".join(texts).encode()).hexdigest()

            secret = digest(USER, "cam", PASSWORD)
            if named.endswith("-sess"):
                secret = digest(secret, fields["nonce"], fields["cnonce"])
            asked = ["GET", request.path] + ([digest("")] if fields.get("qop") == "auth-int" else [])
            used = [fields[name] for name in ("nonce", "nc", "cnonce", "qop") if name in fields and "qop" in fields] or [
                fields["nonce"]
            ]
            right = fields["response"] == digest(secret, *used, digest(*asked)) and fields["uri"] == request.path
        return (200, [("Content-Type", f"{MULTIPART}; boundary=shot")], shots()) if right else (403, [], b"")

    return answer


@pytest.mark.parametrize(
    "challenges",
    [
        ['Digest realm="cam", nonce="abc", qop="auth", algorithm=SHA-256', 'Digest realm="cam", nonce="abc", qop="auth", algorithm=MD5'],
        ['Digest realm="cam", nonce="abc", qop="auth", algorithm=SHA-256'],
        ['Digest realm="cam", nonce="abc", qop="auth", algorithm=MD5-sess'],
        ['Digest realm="cam", nonce="abc", algorithm=SHA-256-sess, qop="auth"'],
        ['Digest realm="cam", nonce="abc", algorithm=TOKEN', 'Digest realm="cam", nonce="abc"'],
        ['Digest realm="cam", nonce="a,b=c", qop="auth-int"'],
        ['Basic realm="cam", Digest realm="cam", nonce="abc", qop="auth,auth-int", opaque="x"'],
        ['Negotiate', 'Basic realm="cam"'],
    ],
)  # fmt: skip
def test_the_login_is_by_what_the_camera_offers(challenges: list[str]) -> None:
    with camera(checked(challenges)) as url:
        assert pictures(url, login=True) == [0, 1, 2, 3]
        with pytest.raises(SourceError, match="401"):
            pictures(url)


def test_a_redirect_keeps_the_login_and_shows_it_to_no_other_host() -> None:
    wanted = checked(['Digest realm="cam", nonce="abc", qop="auth"'])

    def moved(request: http.server.BaseHTTPRequestHandler) -> Answer:
        return wanted(request) if request.path == "/y" else (302, [("Location", "/y")], b"")

    with camera(moved) as url:
        assert pictures(url, login=True) == [0, 1, 2, 3]
    shown: list[str | None] = []

    def other(request: http.server.BaseHTTPRequestHandler) -> Answer:
        shown.append(request.headers.get("Authorization"))
        return 401, [("WWW-Authenticate", 'Basic realm="x"')], b""

    with (
        camera(other, "127.0.0.2") as elsewhere,
        camera(lambda _: (302, [("Location", elsewhere)], b"")) as url,
        pytest.raises(SourceError, match="401"),
    ):
        pictures(url, login=True)
    assert shown == [None]


def snapshots(asked: list[int]) -> Handler:
    def answer(_: http.server.BaseHTTPRequestHandler) -> Answer:
        asked.append(len(asked))
        body = jpeg(len(asked) - 1)
        return 200, [("Content-Type", "image/jpeg"), ("Content-Length", str(len(body)))], body

    return answer


def test_a_snapshot_is_asked_for_again_and_again() -> None:
    with camera(snapshots([])) as url:
        assert pictures(url) == [0, 1, 2, 3]


def test_a_snapshot_of_a_triggered_camera_is_made_after_the_trigger() -> None:
    asked: list[int] = []
    with camera(snapshots(asked)) as url, CameraSource(url, asked=True, stall_timeout_s=20) as source:
        frames = iter(source)
        got = []
        for _ in range(2):
            threading.Timer(0.3, source.fire).start()
            before = len(asked)
            image = next(frames).image
            assert image is not None
            got.append(round((float(image.mean()) - 20) / 20))
            assert got[-1] >= before  # not one that was there already
    assert len(asked) == 3  # one to see what the camera is
