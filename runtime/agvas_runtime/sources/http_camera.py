"""Pictures of a camera over HTTP: MJPEG (multipart/x-mixed-replace), or one picture a request (a snapshot).

Not left to FFmpeg, which hands out the last picture half grey when the connection breaks inside it. Cameras deviate from the standards,
each in its own way; what is taken here is what they were seen to send.
"""

import base64
import hashlib
import http.client
import re
import secrets
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from agvas_core.contract.errors import SourceError

__all__ = ["HttpCamera", "HttpPictures", "MjpegStream"]

CHUNK_BYTES: Final = 1 << 16
PICTURE_BYTES_MOST: Final = 256 << 20  # no camera comes near it; a stream that does is no MJPEG
HEAD_BYTES_MOST: Final = 1 << 16
REDIRECTS_MOST: Final = 5
HASHES: Final[dict[str, Callable[[bytes], str]]] = {
    "SHA-512-256": lambda data: hashlib.new("sha512_256", data).hexdigest(),
    "SHA-256": lambda data: hashlib.sha256(data).hexdigest(),
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
}
"""Of RFC 7616, the strongest first."""


class CameraAnswer:
    """An answer whose body is read as it comes."""

    def __init__(
        self, response: http.client.HTTPResponse, connection: http.client.HTTPConnection, sock: socket.socket | None
    ) -> None:
        self._response, self._connection, self._sock = response, connection, sock
        self.headers = response.headers
        self.status = response.status

    def set_timeout(self, seconds: float) -> None:
        """Of each read from now on."""
        if self._sock is not None:
            self._sock.settimeout(seconds)

    @property
    def kind(self) -> str | None:
        """Content type in small letters; None where the camera says none."""
        return self.headers.get_content_type() if self.headers.get("Content-Type", "").strip() else None

    def chunk(self) -> bytes:
        """Some bytes, empty at the end.

        Raises:
            SourceError: none come within the timeout, or the connection broke.
        """
        try:
            return self._response.read1(CHUNK_BYTES)
        except TimeoutError as error:
            raise SourceError("it sends nothing any more") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise SourceError(f"the connection broke ({error})") from error

    def close(self) -> None:
        """Hangs up."""
        self._response.close()
        self._connection.close()


class HttpCamera:
    """One address, with its login. Never through the proxy that the environment may name: cameras stand in the same network."""

    def __init__(self, url: str, timeout_s: float) -> None:
        parts = urlsplit(url)
        self._login = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
        bare = (parts.scheme, parts.netloc.rpartition("@")[2], parts.path or "/", parts.query, "")
        self._url = urlsplit(urlunsplit(bare))
        self._timeout_s = timeout_s

    def get(self) -> CameraAnswer:
        """Asks for the address; follows redirects, and logs in where it must, at the camera's own host alone.

        Raises:
            SourceError: it is not there, or refuses.
        """
        url, authorization = self._url, None
        for _ in range(REDIRECTS_MOST + 2):
            answer = self._ask(url, authorization)
            location = answer.headers.get("Location")
            if answer.status in (301, 302, 303, 307, 308) and location:
                answer.close()
                url, authorization = urlsplit(urljoin(urlunsplit(url), location)), None
                if url.scheme not in ("http", "https") or not url.hostname:
                    raise SourceError("the camera redirects to what is no HTTP address")
                continue
            if answer.status == 401 and authorization is None and self._login is not None and self._is_own(url):
                authorization = self._authorization(answer, url)
                if authorization is not None:
                    answer.close()
                    continue
            if answer.status != 200:
                answer.close()
                reason = http.client.responses.get(answer.status, "")
                raise SourceError(f"the camera answers {answer.status} {reason}".rstrip())
            return answer
        raise SourceError(f"the camera redirects more than {REDIRECTS_MOST} times")

    def _is_own(self, url: SplitResult) -> bool:
        """Whether the login may be shown there: at the host it was given for, and not in the clear where TLS was asked for."""
        return url.hostname == self._url.hostname and not (self._url.scheme == "https" and url.scheme == "http")

    def _ask(self, url: SplitResult, authorization: str | None) -> CameraAnswer:
        host, port = url.hostname or "", url.port
        connection: http.client.HTTPConnection
        if url.scheme == "https":
            connection = http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=ssl.create_default_context())
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        try:
            headers = {"Accept": "*/*", "User-Agent": "agvas", "Connection": "close"}
            if authorization is not None:
                headers["Authorization"] = authorization
            connection.request("GET", _target(url), headers=headers)
            sock = connection.sock  # http.client lets go of it where the answer ends with the connection
            return CameraAnswer(connection.getresponse(), connection, sock)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise SourceError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error

    def _authorization(self, answer: CameraAnswer, url: SplitResult) -> str | None:
        """For the strongest of what the camera offers; None where none of it is known."""
        assert self._login is not None
        user, password = self._login
        offered = list(_challenges(answer.headers.get_all("WWW-Authenticate") or []))
        for algorithm in HASHES:
            for scheme, fields in offered:
                named = fields.get("algorithm", "MD5").upper()
                if scheme == "digest" and named.removesuffix("-SESS") == algorithm:
                    return _digest(user, password, fields, algorithm, named.endswith("-SESS"), _target(url))
        if any(scheme == "basic" for scheme, _ in offered):
            return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        return None


def _target(url: SplitResult) -> str:
    return (url.path or "/") + (f"?{url.query}" if url.query else "")


def _challenges(headers: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(scheme, fields) of each; several may stand in one header."""
    for header in headers:
        pieces = re.split(r"(?:^|,)\s*(digest|basic)(?=\s|$)", header, flags=re.IGNORECASE)
        for scheme, rest in zip(pieces[1::2], pieces[2::2], strict=True):
            pairs = (item.partition("=") for item in urllib.request.parse_http_list(rest) if "=" in item)
            yield scheme.lower(), {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}


def _digest(user: str, password: str, fields: dict[str, str], algorithm: str, session: bool, target: str) -> str:
    """The header of RFC 7616, for a GET without a body."""
    digest = HASHES[algorithm]

    def hashed(*texts: str) -> str:
        return digest(":".join(texts).encode())

    realm, nonce, client = fields.get("realm", ""), fields.get("nonce", ""), secrets.token_hex(8)
    offered = [each.strip().lower() for each in fields.get("qop", "").split(",") if each.strip()]
    qop = "auth" if "auth" in offered else "auth-int" if "auth-int" in offered else None
    secret = hashed(user, realm, password)
    if session:
        secret = hashed(secret, nonce, client)
    asked = hashed("GET", target, digest(b"")) if qop == "auth-int" else hashed("GET", target)
    count = "00000001"
    answer = hashed(secret, nonce, asked) if qop is None else hashed(secret, nonce, count, client, qop, asked)
    said = [f'username="{user}"', f'realm="{realm}"', f'nonce="{nonce}"', f'uri="{target}"', f'response="{answer}"']
    if "algorithm" in fields:
        said.append(f"algorithm={fields['algorithm']}")
    if "opaque" in fields:
        said.append(f'opaque="{fields["opaque"]}"')
    if qop is not None:
        said += [f"qop={qop}", f"nc={count}"]
    if qop is not None or session:
        said.append(f'cnonce="{client}"')
    return "Digest " + ", ".join(said)


_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
_SCAN_END: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_FIELD: Final = re.compile(rb"^([!-9;-~]+):[ \t]*(.*?)[ \t]*\r?$", re.MULTILINE)


class MjpegStream:
    """Iterating gives the bytes of one picture after the other, each received to its end; other parts (text, events) are passed over.

    The first line of the body is the boundary, whatever the header says of it; where the body begins with a part's header, it is the
    header's.
    """

    def __init__(self, answer: CameraAnswer, start: bytes = b"") -> None:
        """``start``: what was read of the body already."""
        self._answer, self._buffer = answer, start
        declared = answer.headers.get_param("boundary")
        self._declared = declared.strip().encode("latin-1", "replace") if isinstance(declared, str) else b""

    def __iter__(self) -> Iterator[bytes]:
        boundary = self._first_boundary()
        while True:
            head, self._buffer = self._until(_END_OF_HEAD, HEAD_BYTES_MOST)
            fields = {name.lower(): value for name, value in _FIELD.findall(head)}
            is_picture = _is_picture(fields.get(b"content-type", b""))
            length = fields.get(b"content-length", b"")
            if length.isdigit() and int(length[:12]) > 0:
                # Given out before the next boundary is waited for, which cameras send with the next picture.
                body = self._exactly(int(length[:12]))
                if is_picture:
                    yield body
                self._buffer = self._until(boundary, HEAD_BYTES_MOST)[1]
            else:
                body, ended = self._until_end(boundary)
                if is_picture:
                    yield body
                if not ended:
                    self._buffer = self._until(boundary, PICTURE_BYTES_MOST)[1]

    def _first_boundary(self) -> re.Pattern[bytes]:
        """The line that separates parts; the first one has been read."""
        bare = self._declared.lstrip(b"-")
        line = b""
        while not line.strip():  # some begin with an empty line
            line, self._buffer = self._until(re.compile(rb"\r?\n"), HEAD_BYTES_MOST)
        line = line.strip()
        if line.startswith(b"--") or (bare and line == bare):
            # Without dashes it may be a word that pictures hold by chance, so it counts at the start of a line alone.
            return re.compile(re.escape(line) if line.startswith(b"--") else rb"\n" + re.escape(line))
        if not bare or not _FIELD.match(line):
            raise SourceError(f"it sends {line[:40]!r} where a boundary is to be: it is no MJPEG")
        self._buffer = line + b"\r\n" + self._buffer
        return re.compile(rb"--" + re.escape(bare))

    def _until(self, sign: re.Pattern[bytes], most: int) -> tuple[bytes, bytes]:
        """What comes before ``sign``, and what has been received behind it."""
        received = bytearray(self._buffer)
        start = 0
        while (match := sign.search(received, start)) is None:
            if len(received) > most:
                raise SourceError(f"it sent {len(received)} bytes without {sign.pattern!r}: it is no MJPEG")
            start = max(0, len(received) - 128)  # the sign may be cut by a chunk
            received += self._chunk()
        return bytes(received[: match.start()]), bytes(received[match.end() :])

    def _until_end(self, boundary: re.Pattern[bytes]) -> tuple[bytes, bool]:
        """A body without a length, and whether its boundary was read: a JPEG ends with its end marker, so that it is not held
        back until the next picture comes."""
        received = bytearray(self._buffer)
        start, walk = 0, _JpegWalk()
        while True:
            match, end = boundary.search(received, start), walk.end(received)
            if end is not None and (match is None or end <= match.start()):
                self._buffer = bytes(received[end:])
                return bytes(received[:end]), False
            if match is not None:
                self._buffer = bytes(received[match.end() :])
                return bytes(received[: match.start()]), True
            if len(received) > PICTURE_BYTES_MOST:
                raise SourceError(f"it sent {len(received)} bytes without {boundary.pattern!r}: it is no MJPEG")
            start = max(0, len(received) - 128)
            received += self._chunk()

    def _exactly(self, count: int) -> bytes:
        if count > PICTURE_BYTES_MOST:
            raise SourceError(f"it announces a picture of {count} bytes; {PICTURE_BYTES_MOST} is the most")
        received = bytearray(self._buffer)
        while len(received) < count:
            received += self._chunk()
        self._buffer = bytes(received[count:])
        return bytes(received[:count])

    def _chunk(self) -> bytes:
        chunk = self._answer.chunk()
        if not chunk:
            raise SourceError("the camera closed the connection")
        return chunk


class _JpegWalk:
    """Finds the end of a JPEG while it arrives. Segments are stepped over: a thumbnail in one has an end marker, too."""

    def __init__(self) -> None:
        self._at, self._in_scan = 0, False

    def end(self, data: bytearray) -> int | None:
        """Behind the end marker; None where it has not come, or this is no JPEG."""
        if self._at == 0:
            if data[:2] != b"\xff\xd8":
                return None
            self._at = 2
        while self._at + 4 <= len(data) or data[self._at : self._at + 2] == b"\xff\xd9":
            if self._in_scan:
                match = _SCAN_END.search(data, self._at)
                if match is None:
                    self._at = max(self._at, len(data) - 1)
                    return None
                self._at, self._in_scan = match.start(), False
                continue
            marker = data[self._at + 1]
            if data[self._at] != 0xFF or marker == 0xFF:
                self._at += 1
            elif marker == 0xD9:
                return self._at + 2
            elif 0xD0 <= marker <= 0xD8 or marker in (0x00, 0x01):
                self._at += 2
            else:
                self._in_scan = marker == 0xDA
                self._at += 2 + int.from_bytes(data[self._at + 2 : self._at + 4], "big")
        return None


def _is_picture(kind: bytes) -> bool:
    """By the content type of a part; where it has none, it is taken for one."""
    kind = kind.partition(b";")[0].strip().lower()
    return kind in (b"", b"application/octet-stream", b"binary/octet-stream") or kind.startswith(b"image/")


def whole_picture(answer: CameraAnswer, start: bytes = b"") -> bytes:
    """The body of a snapshot.

    Raises:
        SourceError: it ends before its length, or is too long.
    """
    received = bytearray(start)
    while chunk := answer.chunk():
        received += chunk
        if len(received) > PICTURE_BYTES_MOST:
            raise SourceError(f"it sent {len(received)} bytes; a picture has at most {PICTURE_BYTES_MOST}")
    length = answer.headers.get("Content-Length", "")
    if length.isdigit() and len(received) < int(length):
        raise SourceError("the connection broke inside a picture")
    return bytes(received)


class HttpPictures:
    """The pictures of an address, of whichever kind it is."""

    def __init__(self, url: str, open_timeout_s: float, read_timeout_s: float, *, poll_s: float) -> None:
        """``poll_s``: between two requests, of a camera that gives one picture a request.

        Raises:
            SourceError: it is not there, or gives no pictures.
        """
        self._camera, self._read_timeout_s, self._poll_s = HttpCamera(url, open_timeout_s), read_timeout_s, poll_s
        self._answer = self._camera.get()
        self._answer.set_timeout(read_timeout_s)
        kind = self._answer.kind
        self._start = b""
        if kind in (None, "application/octet-stream", "binary/octet-stream", "text/plain"):
            self._start = self._answer.chunk()  # says what it is
            is_stream, self.is_snapshot = self._start.lstrip(b"\r\n").startswith(b"--"), self._start.startswith(b"\xff\xd8")
        else:
            is_stream, self.is_snapshot = kind.startswith("multipart/"), kind.startswith("image/")
        if not is_stream and not self.is_snapshot:
            self._answer.close()
            raise SourceError(
                f"it answers with {kind or 'no content type'}, not with multipart/x-mixed-replace (MJPEG) or a picture"
            )

    def __iter__(self) -> Iterator[bytes]:
        if not self.is_snapshot:
            yield from MjpegStream(self._answer, self._start)
        picture = whole_picture(self._answer, self._start)
        while True:
            began_s = time.monotonic()
            yield picture
            time.sleep(max(0.0, self._poll_s - (time.monotonic() - began_s)))
            picture = self.ask()

    def ask(self) -> bytes:
        """A snapshot that is made now."""
        self._answer.close()
        self._answer = self._camera.get()
        self._answer.set_timeout(self._read_timeout_s)
        return whole_picture(self._answer)

    def close(self) -> None:
        """Hangs up."""
        self._answer.close()
