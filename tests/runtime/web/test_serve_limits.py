"""What a server bears: full queues, clients that leave, that are slow, that send too much, that have no business here."""

import asyncio
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from agvas_core.contract.errors import SetupError, UsageError
from agvas_runtime.web.serving import listen
from agvas_runtime.web.settings import Settings

KEY = "a-key-of-some-length"


def in_thread(work):
    box = []
    thread = threading.Thread(target=lambda: box.append(work()))
    thread.start()
    return thread, box


def until(told) -> None:
    end = time.monotonic() + 30
    while not told():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.01)


def gauge(client, name: str) -> float:
    return float(re.search(rf"^{name} (\S+)$", client.get("/metrics").body.decode(), re.MULTILINE)[1])


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(serving, held, part) -> None:
    segmenter, lmm = held
    with serving(segmenter, queue=1) as client:
        first, one = in_thread(lambda: client.upload(part))
        assert lmm.came.acquire(timeout=30)
        second, two = in_thread(lambda: client.upload(part))
        until(lambda: gauge(client, "agvas_queue_images") == 1)
        refused = client.upload(part)
        assert refused.status == 429 and int(refused.headers["retry-after"]) >= 1
        assert client.get("/readyz").status == 503 and client.get("/healthz").status == 200
        lmm.go.set()
        first.join(30), second.join(30)
        assert one[0].status == two[0].status == 200
        assert client.get("/readyz").status == 200 and client.upload(part).status == 200


def test_a_client_that_leaves_loses_its_place_and_costs_nothing(serving, held, part) -> None:
    segmenter, lmm = held
    with serving(segmenter, queue=4) as client:
        thread, box = in_thread(lambda: client.upload(part))
        assert lmm.came.acquire(timeout=30)
        leaving = client.connect()
        body = b'{"images": ["AAAA"]}'.replace(b"AAAA", base64.b64encode(part))
        leaving.sendall(
            b"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        until(lambda: gauge(client, "agvas_queue_images") == 1)
        leaving.close()
        until(lambda: gauge(client, "agvas_queue_images") == 0)
        lmm.go.set()
        thread.join(30)
        assert box[0].status == 200 and lmm.calls == 1
        assert gauge(client, "agvas_clients_left_total") == 1


def test_who_leaves_while_words_are_said_ends_the_decoding(serving, segmenter, part, saying) -> None:
    told, go = threading.Event(), threading.Event()

    class Slow:
        """A language model that waits after its first word."""

        def __init__(self, lmm, tell=None):
            self.lmm, self.tell, self.said = lmm, tell, []

        def telling(self, tell):
            def slowly(piece):
                self.said.append(piece)
                told.set()
                assert go.wait(30)
                tell(piece)

            return self.lmm.telling(slowly)

        def __call__(self, *given):
            return self.lmm(*given)

    slow = Slow(segmenter.lmm)
    with serving(segmenter.with_lmm(slow)) as client:
        leaving = client.connect()
        body = json.dumps({"messages": [saying("find the spots", part)], "stream": True, "agvas": {"mode": "describe"}}).encode()
        leaving.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert told.wait(30)
        leaving.close()
        time.sleep(0.2)
        go.set()
        until(lambda: gauge(client, "agvas_running_jobs") == 0)
        assert len(slow.said) <= 2  # of the five that it would have said


def test_too_many_bytes_are_refused_with_and_without_a_length(client) -> None:
    answer = client.post("/v1/segment", bytes(8 << 20))
    assert answer.status == 413 and "at most 1048576" in answer.error
    with client.connect() as claiming:  # the answer does not wait for the 100 MB
        claiming.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n\r\n{")
        assert claiming.recv(100).startswith(b"HTTP/1.1 413")

    def endless():
        for _ in range(64):
            yield bytes(1 << 16)

    chunked = client.call("POST", "/v1/segment", endless(), {"Content-Type": "application/json"})
    assert chunked.status == 413
    assert client.get("/healthz").status == 200


def test_slow_clients_are_told_or_left(serving, segmenter) -> None:
    with serving(segmenter, header_timeout_s=0.3, body_timeout_s=0.3) as client:
        with client.connect() as silent, client.connect() as half:
            half.sendall(b"GET /healthz HTTP/1.1\r\nHo")
            assert silent.recv(10) == b"" and half.recv(10) == b""
        with client.connect() as slow:
            slow.sendall(
                b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
            )
            assert slow.recv(100).startswith(b"HTTP/1.1 408")
        assert gauge(client, "agvas_upload_bytes") == 0


def test_uploads_are_bounded_all_together(serving, segmenter, part) -> None:
    with serving(segmenter, max_body_bytes=4096, upload_bytes=4096) as client:
        with client.connect() as other:
            other.sendall(
                b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 4000\r\n\r\n{"
            )
            until(lambda: gauge(client, "agvas_upload_bytes") == 4000)
            answer = client.upload(part)
            assert answer.status == 429 and "retry-after" in answer.headers
        until(lambda: gauge(client, "agvas_upload_bytes") == 0)
        assert client.upload(part).status == 200


def test_a_key_is_asked_of_whoever_uses_the_model(serving, segmenter, part) -> None:
    with serving(segmenter, api_key=KEY) as client:
        assert client.upload(part).status == 401 and client.get("/metrics").status == 401
        client.headers = {"Authorization": "Bearer another-key"}
        assert client.upload(part).status == 401
        client.headers = {"Authorization": f"Bearer {KEY}"}
        assert client.upload(part).status == 200
        client.headers = {}
        assert client.get("/healthz").status == client.get("/").status == 200


def test_pages_of_other_sites_are_not_served(client, part) -> None:
    def called(**headers: str) -> int:
        return client.call("GET", "/healthz", headers={name.title(): value for name, value in headers.items()}).status

    assert called(host="evil.example") == 403  # a name that was pointed at this machine
    assert called(origin="http://evil.example") == 403
    assert called(host="localhost:80", origin="http://localhost:80") == 200


def test_beyond_loopback_a_key_is_needed() -> None:
    with pytest.raises(UsageError, match="AGVAS_API_KEY"):
        Settings(host="0.0.0.0")
    with pytest.raises(UsageError, match="at least 16"):
        Settings(host="0.0.0.0", api_key="short")
    for key in ("schlüssel der halle, lang genug", f" {KEY}", f"{KEY}\n"):  # what a client could never send
        with pytest.raises(UsageError, match="no header carries"):
            Settings(host="0.0.0.0", api_key=key)
    assert Settings(host="0.0.0.0", api_key=KEY).open_to_names


def test_a_port_that_is_taken_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SetupError, match="taken by another program"):
        listen(Settings(port=taken.getsockname()[1]))
    with pytest.raises(SetupError, match="cannot be used"):
        listen(Settings(host="203.0.113.9", api_key=KEY))


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_end(tiny_bundle, part) -> None:
    command = [sys.executable, "-c", "from agvas.cli import main; main()", "serve", "--threads", "1"]
    with subprocess.Popen(
        [*command, "--port", "0", "--model", str(tiny_bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    ) as process:
        line = process.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+) serves tiny@", line)[1])
        second = subprocess.run([*command, str(tiny_bundle), "--port", str(port)], capture_output=True, text=True)
        assert second.returncode == 3 and second.stderr.count("\n") == 1 and "is taken" in second.stderr
        with socket.create_connection(("127.0.0.1", port)) as asking:
            asking.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert asking.recv(100).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0 and "ended" in told


def test_small_answers_do_not_wait_for_the_client_to_acknowledge_the_head() -> None:
    """Else each image on a connection that is kept open would cost 40 ms more."""

    async def without_delay() -> int:
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            told.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        opened = listen(Settings(port=0))
        async with await asyncio.start_server(answer, sock=opened):
            _, writer = await asyncio.open_connection(*opened.getsockname())
            found = await told
            writer.close()
        return found

    assert asyncio.run(without_delay())
