"""The review over HTTP: what a person decides is on the disk at once, and nobody else can decide."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from agvas_core.contract.errors import UsageError
from agvas_core.data.instruct.entry import FIELDS, REVIEWED, read_instruct, review_path
from agvas_core.data.instruct.journal import read_lines
from agvas_core.data.instruct.prompt import load_prompt
from agvas_core.data.instruct.review import Review
from agvas_core.data.instruct.review_server import MAX_BODY_BYTES, ReviewServer

MakeFile = Callable[..., Path]
WORDING = load_prompt().wording


class Page:
    """A client that behaves as the page does, unless told otherwise."""

    def __init__(self, server: ReviewServer) -> None:
        self.host = f"127.0.0.1:{server.server_address[1]}"

    def send(self, method: str, path: str, body: Any = None, **headers: str | None) -> tuple[int, Any, http.client.HTTPResponse]:
        """(status, body, response); ``headers`` with None are left out, names with _ for -."""
        sent: dict[str, str | None] = {"Host": self.host}
        if method == "POST":
            sent |= {"Origin": f"http://{self.host}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection(self.host, timeout=20)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True)
            content = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
            if method == "POST" and "Content-Length" not in sent:
                sent["Content-Length"] = str(len(content))
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(content)
            response = connection.getresponse()
            raw = response.read()
            is_json = response.headers.get_content_type() == "application/json"
            return response.status, json.loads(raw) if is_json else raw, response

    def decide(self, index: int, verb: str, texts: dict[str, str] | None = None) -> tuple[int, Any]:
        _, entry, _ = self.send("GET", f"/entries/{index}")
        body = {"verb": verb, "key": entry["key"], "on": entry["on"], "texts": texts}
        status, answer, _ = self.send("POST", f"/entries/{index}", body)
        return status, answer


@contextlib.contextmanager
def serving(path: Path, **options: Any) -> Iterator[Page]:
    with Review(path, WORDING, **options) as review, ReviewServer(review) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield Page(server)
        finally:
            server.shutdown()
            thread.join()


def test_the_page_and_what_it_needs_come_from_this_server_alone(make_file: MakeFile) -> None:
    with serving(make_file(2)) as page:
        status, text, response = page.send("GET", "/")
        assert status == 200 and b"review_script.js" in text
        assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
        for path in ("/review_script.js", "/review_style.css"):
            assert page.send("GET", path)[0] == 200
            text += page.send("GET", path)[1]
        assert b"http://" not in text and b"https://" not in text and b"@import" not in text
        status, state, _ = page.send("GET", "/state")
        assert state == {"file": "instruct.jsonl", "states": ["pending", "pending"]}


def test_an_entry_shows_its_texts_its_image_and_the_mask_on_it(make_file: MakeFile) -> None:
    with serving(make_file(2)) as page:
        _, entry, _ = page.send("GET", "/entries/1")
        assert set(entry["texts"]) == set(FIELDS) and entry["category"] == "plate" and entry["review"] == "pending"
        pictures = []
        for kind in ("images", "overlays"):
            status, raw, response = page.send("GET", f"/{kind}/1?123")
            assert status == 200 and response.headers["Content-Type"] == "image/jpeg"
            pictures.append(cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR).astype(int))
        assert pictures[0].shape == (96, 128, 3)
        redder = (pictures[1] - pictures[0])[..., 2] > 30
        assert redder[40, 31] and redder.mean() < 0.1


def test_decisions_are_on_the_disk_at_once_and_training_reads_them(make_file: MakeFile) -> None:
    path = make_file(4)
    with serving(path) as page:
        texts = page.send("GET", "/entries/1")[1]["texts"]
        edited = {**texts, "observation": "A dark,  round\nspot lies left of the centre."}
        assert page.decide(0, "accept")[1]["review"] == "accepted"
        assert page.decide(1, "accept", edited)[1]["review"] == "edited"
        assert page.decide(2, "reject")[1]["review"] == "rejected"
        # Nothing was closed yet: this is what a kill would leave.
        assert page.send("GET", "/state")[1]["states"] == ["accepted", "edited", "rejected", "pending"]
        assert len(read_instruct(path)) == 3 and len(read_instruct(path, states=REVIEWED)) == 2
        changed = read_instruct(path)[1].texts
        assert changed is not None and changed.observation == "A dark, round spot lies left of the centre."
    with serving(path) as page:
        assert page.send("GET", "/state")[1]["states"] == ["accepted", "edited", "rejected", "pending"]
        assert page.send("GET", "/entries/1")[1]["texts"]["observation"].startswith("A dark, round")


def test_one_may_change_ones_mind(make_file: MakeFile) -> None:
    path = make_file(1)
    with serving(path) as page:
        generated = page.send("GET", "/entries/0")[1]["texts"]
        edited = {**generated, "diagnosis": "Something has burnt the lacquer in this place."}
        assert page.decide(0, "reject")[1]["review"] == "rejected"
        assert page.decide(0, "accept", edited)[1]["review"] == "edited"
        assert page.decide(0, "accept")[1]["review"] == "edited", "to accept what is shown keeps the edit"
        assert page.decide(0, "reject")[1]["texts"]["diagnosis"].startswith("Something")
        status, answer = page.decide(0, "reset")
        assert (status, answer["review"], answer["texts"]) == (200, "pending", generated)
        assert page.decide(0, "accept", generated)[1]["review"] == "accepted", "an edit that changes nothing is none"
    assert len(list(read_lines(review_path(path)))) == 6


@pytest.mark.parametrize(
    ("field", "text", "reason"),
    [
        ("summary", "Segment the dark spot on the left of the part.", "has the marks none"),
        ("observation", "The mask covers a dark spot on the left side.", '"mask" (mask)'),
        ("diagnosis", "", "0 characters"),
    ],
)
def test_an_edit_obeys_the_rules_for_answers(make_file: MakeFile, field: str, text: str, reason: str) -> None:
    path = make_file(1)
    with serving(path) as page:
        texts = page.send("GET", "/entries/0")[1]["texts"]
        status, answer = page.decide(0, "accept", {**texts, field: text})
        assert status == 422 and reason in answer["error"]
        assert page.decide(0, "accept", {"summary": texts["summary"]})[0] == 400
        assert page.send("GET", "/state")[1]["states"] == ["pending"]


def test_entries_that_are_still_being_generated_appear(make_file: MakeFile) -> None:
    path = make_file(3)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("")
    with serving(path) as page:
        assert page.send("GET", "/state")[1]["states"] == []
        path.write_text("".join(lines[:2]) + lines[2][:50])
        assert page.send("GET", "/state")[1]["states"] == ["pending", "pending"]


def test_a_decision_on_texts_that_were_generated_anew_is_void(make_file: MakeFile) -> None:
    path = make_file(1)
    with serving(path) as page:
        _, entry, _ = page.send("GET", "/entries/0")
        page.decide(0, "reject")
        path.write_text(path.read_text().replace("evenly grey", "evenly blue"))
        assert page.send("GET", "/state")[1]["states"] == ["pending"]
        status, answer, _ = page.send("POST", "/entries/0", {"verb": "accept", "key": entry["key"], "on": entry["on"]})
        assert status == 409 and "has changed since it was shown" in answer["error"]
    assert len(read_instruct(path)) == 1


# --- who may decide


def accept(page: Page, **headers: str | None) -> int:
    _, entry, _ = page.send("GET", "/entries/0")
    return page.send("POST", "/entries/0", {"verb": "accept", "key": entry["key"], "on": entry["on"]}, **headers)[0]


def test_other_sites_cannot_decide(make_file: MakeFile) -> None:
    path = make_file(1)
    with serving(path) as page:
        for origin in (
            "https://evil.example",
            "http://127.0.0.1:1",
            "null",
            f"https://{page.host}",
            f"http://{page.host}.evil.example",
            None,
        ):
            assert accept(page, Origin=origin) == 403, origin
        for kind in ("text/plain", "application/x-www-form-urlencoded", None):  # what a form can send without being asked
            assert accept(page, Content_Type=kind) == 415, kind
        assert page.send("GET", "/state")[1]["states"] == ["pending"]
        assert accept(page) == 200


def test_a_name_that_was_made_to_point_here_is_refused(make_file: MakeFile) -> None:
    with serving(make_file(1)) as page:
        port = page.host.partition(":")[2]
        for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "", "[", "0.0.0.0", None):
            assert page.send("GET", "/state", Host=host)[0] == 403, host
            assert page.send("GET", "/images/0", Host=host)[0] == 403, host
        for host in (f"localhost:{port}", f"[::1]:{port}", "localhost:9999"):  # the last through an ssh tunnel
            assert page.send("GET", "/state", Host=host)[0] == 200, host
        assert accept(page, Host="evil.example", Origin="http://evil.example") == 403
        assert accept(page, Host="localhost:9999", Origin="http://localhost:9999") == 200


def test_it_listens_on_loopback_alone(make_file: MakeFile) -> None:
    with Review(make_file(1), WORDING) as review, ReviewServer(review) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml", "/images/../../etc/passwd", "/images/%2e%2e%2fetc%2fpasswd", "/images//etc/passwd", "/images/-1",
        "/images/1", "/images/0/", "/entries/999999999", "/entries/9999999999", "/review.py", "/prompt/system.txt", "http://[", "/images/0.png",
    ],
)  # fmt: skip
def test_only_what_is_listed_is_served(make_file: MakeFile, path: str) -> None:
    with serving(make_file(1)) as page:
        status, answer, _ = page.send("GET", path)
        assert status == 404 and set(answer) == {"error"}
        assert page.send("POST", path, {"verb": "accept"})[0] in (400, 404)


def test_bodies_are_bounded(make_file: MakeFile) -> None:
    path = make_file(1)
    with serving(path) as page:
        body = {"verb": "accept", "key": "x", "on": "x", "texts": {field: "x" * MAX_BODY_BYTES for field in FIELDS}}
        assert page.send("POST", "/entries/0", body)[0] == 413
        assert page.send("POST", "/entries/0", b"", Content_Length="99999999999")[0] == 413
        assert page.send("POST", "/entries/0", b"{}", Content_Length=None)[0] == 411
        assert page.send("POST", "/entries/0", b"2\r\n{}\r\n0\r\n\r\n", Transfer_Encoding="chunked")[0] == 411
        assert page.send("POST", "/entries/0", b"{}", Content_Length="-2")[0] == 411
        for wrong in (
            b"",
            b"no JSON",
            b"[]",
            b"[" * 60_000,
            b'{"verb": "delete"}',
            b'{"verb": ["accept"]}',
            b'{"verb": "accept", "texts": [1]}',
        ):
            assert page.send("POST", "/entries/0", wrong)[0] == 400, wrong[:20]
        assert page.send("GET", "/state")[1]["states"] == ["pending"]


def test_half_a_request_holds_nobody_up(make_file: MakeFile) -> None:
    with serving(make_file(1)) as page, socket.create_connection(page.host.split(":")) as half:
        half.sendall(b"POST /entries/0 HTTP/1.1\r\nContent-Length: 50\r\n")
        assert accept(page) == 200


# --- what may be wrong with the data


def test_a_picture_that_is_gone_is_said_and_the_entry_can_still_be_rejected(make_file: MakeFile, tmp_path: Path) -> None:
    path = make_file(1)
    (tmp_path / "parts").rename(tmp_path / "moved")
    with serving(path) as page:
        status, answer, _ = page.send("GET", "/images/0")
        assert status == 404 and "is missing" in answer["error"]
        assert page.decide(0, "reject")[0] == 200
    with serving(path, root=tmp_path / "moved") as page:
        assert page.send("GET", "/images/0")[0] == 200


def test_a_log_that_was_cut_short_loses_its_last_decision_only(make_file: MakeFile) -> None:
    path = make_file(2)
    with serving(path) as page:
        page.decide(0, "accept")
        page.decide(1, "reject")
    log = review_path(path)
    log.write_bytes(log.read_bytes()[:-20])
    assert len(read_instruct(path, states=REVIEWED)) == 1
    with serving(path) as page:
        assert page.send("GET", "/state")[1]["states"] == ["accepted", "pending"]
        page.decide(1, "reject")
    assert len(read_instruct(path)) == 1


def test_two_people_do_not_review_one_file(make_file: MakeFile) -> None:
    path = make_file(1)
    with Review(path, WORDING), pytest.raises(UsageError, match="is being written by another process"):
        Review(path, WORDING)
    with Review(path, WORDING):
        pass


@pytest.mark.parametrize("line", ["{}", '{"key": "x", "on": "y", "review": "liked", "at": "z"}', "[]", "half"])
def test_a_log_that_was_tampered_with_is_refused_by_line(make_file: MakeFile, line: str) -> None:
    path = make_file(1)
    review_path(path).write_text(f"{line}\n")
    with pytest.raises(UsageError, match="line 1"):
        read_instruct(path)


COMMAND = "import sys; from agvas_core.contract.command_line import run_command; from agvas_core.data.instruct.cli import review; run_command(lambda: review, name='agvas data review')"  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="signals of this kind are POSIX")
def test_the_command_serves_until_it_is_told_to_stop_and_a_kill_loses_nothing(make_file: MakeFile) -> None:
    path = make_file(2)
    for index, number in enumerate((signal.SIGKILL, signal.SIGTERM)):
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        page = Page.__new__(Page)
        page.host = process.stdout.readline().split("/")[2]
        assert page.decide(index, "accept")[0] == 200
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == (-9 if number == signal.SIGKILL else 143)
        assert "Traceback" not in said
    assert [record.name[-7:] for record in read_instruct(path, states=REVIEWED)] == ["000.png", "001.png"]


def test_the_command_says_what_it_cannot_do(tmp_path: Path, make_file: MakeFile) -> None:
    done = subprocess.run([sys.executable, "-c", COMMAND, str(tmp_path / "none.jsonl")], capture_output=True, text=True)
    assert done.returncode == 2 and "none.jsonl cannot be read" in done.stderr
    assert not (tmp_path / "none.review.jsonl").exists()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run([sys.executable, "-c", COMMAND, str(make_file(1)), "--port", port], capture_output=True, text=True)
    assert done.returncode == 3 and f"port {port} cannot be used" in done.stderr
