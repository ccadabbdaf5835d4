"""What a trigger promises where the other side is wrong: it says so, asks for no part, and goes on."""

import json
import socket
from http.client import HTTPConnection
from pathlib import Path

import pytest

from agvas_core.contract.errors import UsageError
from agvas_runtime.triggers import http
from agvas_runtime.triggers.http import HttpTrigger
from agvas_runtime.triggers.listener import Listener
from agvas_runtime.triggers.open_trigger import open_trigger

from .test_delivery import free_port, mosquitto, until
from .test_triggers import Fired

RIGHTS = Path("/usr/lib/x86_64-linux-gnu/mosquitto_dynamic_security.so")  # in Debian's package


@pytest.mark.skipif(not RIGHTS.exists(), reason="mosquitto with its plugin for rights is not installed")
def test_a_broker_that_refuses_the_subscription_is_told_as_a_trigger_that_is_not_heard(tmp_path: Path) -> None:
    from agvas_runtime.triggers.mqtt import MqttTopic

    rights = {"publishClientSend": True, "publishClientReceive": True, "subscribe": False, "unsubscribe": True}
    (tmp_path / "rights.json").write_text(json.dumps({"defaultACLAccess": rights, "clients": [], "groups": [], "roles": []}))
    port, fired = free_port(), Fired()
    trigger = Listener(MqttTopic("127.0.0.1", port, "hall/trigger"))
    with mosquitto(port, tmp_path, f"plugin {RIGHTS}\nplugin_opt_config_file {tmp_path / 'rights.json'}\n"):
        trigger.start(fired, fired.note)
        try:
            until(lambda: trigger.last_error is not None)
            assert "does not let us subscribe to hall/trigger" in str(trigger.last_error)
        finally:
            trigger.close()
    assert fired.noted == ["trigger-lost"] and trigger.failure is None


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST /trigger HTTP/1.1\r\nIdempotency-Key: 4711\r\n\r\n", b"202"),
        (b"POST /trigger HTTP/1.1\r\nIdempotency-Key: 47", b"400"),  # the client died: half a key
        (b"POST /trigger HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc", b"400"),
        (b"POST /trigger HTTP/1.1\r\nContent-Length: " + 5000 * b"9" + b"\r\n\r\n", b"400"),
        (b"POST http://[/trigger HTTP/1.1\r\n\r\n", b"400"),
    ],
)
def test_a_malformed_request_is_answered_and_asks_for_no_part(
    request_: bytes, status: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    trigger, fired = HttpTrigger("127.0.0.1", 0), Fired()
    trigger.start(fired, fired.note)
    try:
        with socket.create_connection(("127.0.0.1", trigger.port), 30) as client:
            client.sendall(request_)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100).startswith(b"HTTP/1.1 " + status)
    finally:
        trigger.close()
    assert fired.asked == ([(None, "4711")] if status == b"202" else [])
    assert capsys.readouterr().err == ""


def test_an_answer_does_not_wait_for_the_client_to_acknowledge_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    finish = http._Handler.finish

    def told_at_the_end(handler: http._Handler) -> None:
        if handler.connection.getsockname()[1] == trigger.port:  # and not of a test before, whose client left late
            told.append(handler.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        finish(handler)

    monkeypatch.setattr(http._Handler, "finish", told_at_the_end)
    trigger, fired = HttpTrigger("127.0.0.1", 0), Fired()
    trigger.start(fired, fired.note)
    client = HTTPConnection("127.0.0.1", trigger.port)
    client.request("POST", "/trigger")
    assert client.getresponse().status == 202
    client.close()
    until(lambda: bool(told))
    trigger.close()
    assert told == [1]


def test_beyond_loopback_a_key_is_asked_for() -> None:
    """0.0.0.0 has loopback in it, so the test needs no network."""
    key, fired = "a-key-of-some-length", Fired()
    for wrong in (None, "short", "a-key-of-some-lengthä"):
        with pytest.raises(UsageError, match=r"AGVAS_API_KEY|at least 16|no header carries"):
            open_trigger("http://0.0.0.0:0", api_key=wrong)
    trigger = open_trigger("http://0.0.0.0:0", api_key=key)
    assert isinstance(trigger, HttpTrigger)
    trigger.start(fired, fired.note)
    try:
        for given, status in (("", 401), ("Bearer other", 401), (f"Basic {key}", 401), (f"bearer {key}", 202)):
            client = HTTPConnection("127.0.0.1", trigger.port)
            client.request("POST", "/trigger", headers={"Authorization": given, "Idempotency-Key": "4711"})
            assert client.getresponse().status == status
            client.close()
    finally:
        trigger.close()
    assert fired.asked == [(None, "4711")]


def test_clients_without_end_are_hung_up_on_and_the_next_one_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CLIENTS_MOST", 2)
    trigger, fired = HttpTrigger("127.0.0.1", 0), Fired()
    trigger.start(fired, fired.note)

    def post() -> bytes:
        with socket.create_connection(("127.0.0.1", trigger.port), 30) as client:
            client.sendall(b"POST /trigger HTTP/1.1\r\nConnection: close\r\n\r\n")
            try:
                return client.recv(100)
            except ConnectionError:
                return b""

    try:
        silent = [socket.create_connection(("127.0.0.1", trigger.port), 30) for _ in range(2)]
        until(lambda: post() == b"")
        for client in silent:
            client.close()
        until(lambda: post().startswith(b"HTTP/1.1 202"))
    finally:
        trigger.close()
