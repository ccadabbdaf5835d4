"""What delivery promises: every verdict reaches every sink at least once, in order, with a key; a sink that is down loses nothing.

The other sides are real: mosquitto, an OPC UA client, a Modbus server, an HTTP server.
"""

import asyncio
import atexit
import gzip
import hmac
import http.server
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agvas_core.contract.errors import DeliveryError, UsageError
from agvas_runtime.line.ledger.check import check_ledger
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.ledger.part_result import Cause, without_verdict
from agvas_runtime.line.station.outbox import OutboxWorker
from agvas_runtime.sinks.json_lines import JsonLinesSink
from agvas_runtime.sinks.message import Message, VerdictSink
from agvas_runtime.sinks.modbus import ModbusSink
from agvas_runtime.sinks.opcua import OpcUaSink
from agvas_runtime.sinks.open_sink import Secrets, open_sink
from agvas_runtime.sinks.webhook import WebhookSink, signature

from .conftest import small_reserve

PATIENCE_S = 60.0


_claims: list[socket.socket] = []


def free_port() -> int:
    """A port that stays free while its server is down, also where several runs of these tests share a machine.

    It lies below the ports that the system gives to clients. A UDP socket on the same number, held until this process ends,
    keeps other runs from choosing it.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        claim = socket.socket(type=socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        if not _claims:
            atexit.register(lambda: [held.close() for held in _claims])
        _claims.append(claim)
        return port


def until(condition: Callable[[], bool]) -> None:
    """Waits for what must come; on a busy machine it may take its time."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def give(ledger: Ledger, count: int) -> None:
    """Parts with NO_VERDICT, and their messages."""
    for _ in range(count):
        number = len(ledger.read("SELECT 1 FROM parts"))
        part = ledger.open_part("camera-0", f"t{number}", deadline_ms=100)
        ledger.settle(part.seq, without_verdict(Cause.ENGINE, "test", 1.0))


@contextmanager
def delivering(folder: Path, sink: VerdictSink) -> Iterator[tuple[Ledger, OutboxWorker]]:
    """A ledger with one sink and its worker."""
    with Ledger(folder / "line", sinks=[sink.name], reserve=small_reserve(folder / "line")) as ledger:
        worker = OutboxWorker(ledger, sink)
        worker.start()
        try:
            yield ledger, worker
        finally:
            worker.close(grace_s=0.1)
        assert worker.failure is None


def message(number: int = 1) -> Message:
    body = {
        "key": f"l/{number}",
        "seq": number,
        "station": "s",
        "verdict": "FAIL",
        "cause": None,
        "score": 0.75,
        "findings": [{}, {}],
    }
    return Message(body["key"], number, body)  # type: ignore[arg-type]


def test_lines_of_a_file_come_once_also_when_they_are_sent_again(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "v.jsonl")
    sink.open()
    for number in (1, 3, 2):
        sink.send(message(number))
    sink.close()
    with (tmp_path / "v.jsonl").open("ab") as file:
        file.write(b'{"key": "l/4", cut off by a kil')
    sink.open()
    for number in (2, 3, 4):
        sink.send(message(number))
    sink.close()
    assert [json.loads(line)["seq"] for line in (tmp_path / "v.jsonl").read_text().splitlines()] == [1, 3, 2, 4]


@pytest.mark.parametrize("kind", ["moved", "removed", "emptied", "compressed"])
def test_lines_go_to_the_file_of_that_name_and_verify_looks_at_what_lies_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "v.jsonl"
    with delivering(tmp_path, JsonLinesSink(path)) as (ledger, worker):
        give(ledger, 2)
        until(lambda: worker.pending == 0)
        if kind == "moved":
            path.rename(tmp_path / "v.jsonl.1")
        elif kind == "compressed":
            (tmp_path / "v.jsonl-20261130.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
        elif kind == "removed":
            path.unlink()
        else:
            os.truncate(path, 0)
        give(ledger, 2)
        until(lambda: worker.pending == 0)
    assert [json.loads(line)["seq"] for line in path.read_text().splitlines()] == [3, 4]
    faults = check_ledger(tmp_path / "line", delivered=True).faults
    if kind in ("moved", "compressed"):
        assert faults == []
    else:
        assert len(faults) == 1 and "parts 1, 2" in faults[0]


class Hook(http.server.ThreadingHTTPServer):
    """Takes posts; ``answers`` are given first, 200 afterwards."""

    daemon_threads = False

    def __init__(self, answers: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), HookHandler)
        self.answers = answers
        self.got: list[tuple[dict[str, str], bytes]] = []


class HookHandler(http.server.BaseHTTPRequestHandler):
    server: Hook
    protocol_version = "HTTP/1.1"
    timeout = 5

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.server.answers.pop(0) if self.server.answers else 200
        self.server.got.append((dict(self.headers), body))
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def hook(answers: list[int]) -> Iterator[Hook]:
    server = Hook(answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_webhook_is_signed_tried_again_and_keyed(tmp_path: Path) -> None:
    with hook([503, 401]) as server:
        sink = WebhookSink(f"http://127.0.0.1:{server.server_port}/in?line=3", secret=b"hush")
        with delivering(tmp_path, sink) as (ledger, worker):
            give(ledger, 3)
            until(lambda: worker.pending == 0)
    assert [json.loads(body)["seq"] for _, body in server.got] == [1, 1, 1, 2, 3]
    for headers, body in server.got:
        assert hmac.compare_digest(headers["X-Agvas-Signature"], signature(b"hush", headers["X-Agvas-Timestamp"], body))
        assert headers["Idempotency-Key"] == json.loads(body)["key"]


def test_a_message_that_is_refused_for_good_does_not_hold_up_the_others_and_is_not_forgotten(tmp_path: Path) -> None:
    with (
        hook([200, 422]) as server,
        delivering(tmp_path, WebhookSink(f"http://127.0.0.1:{server.server_port}/")) as (ledger, worker),
    ):
        give(ledger, 3)
        until(lambda: worker.pending == 0)
        assert ledger.read("SELECT state FROM deliveries ORDER BY seq") == [("delivered",), ("refused",), ("delivered",)]
    assert any("refused 1" in fault for fault in check_ledger(tmp_path / "line").faults)


def sqlite_steps(ledger: Ledger, worker: OutboxWorker) -> int:
    """Instructions of SQLite's machine that counting what waits takes."""
    steps = [0]

    def count() -> int:
        steps[0] += 1
        return 0

    ledger._db.set_progress_handler(count, 1)
    assert worker.pending == 2
    ledger._db.set_progress_handler(None, 1)
    return steps[0]


def test_the_outbox_is_read_by_what_waits_and_not_by_what_was_ever_sent(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "v.jsonl")
    with Ledger(tmp_path / "line", sinks=[sink.name], reserve=small_reserve(tmp_path / "line")) as ledger:
        give(ledger, 300)
        worker = OutboxWorker(ledger, sink)
        ledger.write("UPDATE deliveries SET state = 'delivered' WHERE seq <= ?", [(298,)])
        few = sqlite_steps(ledger, worker)
        give(ledger, 300)
        ledger.write("UPDATE deliveries SET state = 'delivered' WHERE seq > ? AND seq <= 600", [(300,)])
        assert worker.pending == 2 and sqlite_steps(ledger, worker) == few


@contextmanager
def mosquitto(port: int, folder: Path, more: str = "") -> Iterator[None]:
    config = f"user root\nlistener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {folder}/\n"
    (folder / "mosquitto.conf").write_text(config + more)
    binary = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    assert binary is not None
    broker = subprocess.Popen(
        [binary, "-c", str(folder / "mosquitto.conf")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until(listens)
        yield
    finally:
        broker.terminate()
        broker.wait()


class Subscriber:
    """A real MQTT client, whose messages the broker keeps while it is away."""

    def __init__(self, port: int) -> None:
        import paho.mqtt.client as mqtt

        self.heard: list[dict[str, object]] = []
        self.ready = threading.Event()
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="keeper", clean_session=False)
        self.client.on_connect = lambda client, *_: client.subscribe("agvas/#", qos=1)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = lambda _client, _data, message: self.heard.append(
            json.loads(message.payload) | {"topic": message.topic}
        )
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.ready.wait(PATIENCE_S)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        self.client._reset_sockets()  # paho leaves that to the garbage collector


@pytest.mark.skipif(
    shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is None,
    reason="mosquitto is not installed",
)
def test_a_broker_that_was_down_gets_every_message(tmp_path: Path) -> None:
    port = free_port()
    sink = open_sink(f"mqtt://127.0.0.1:{port}/agvas/{{station}}/verdict")
    with mosquitto(port, tmp_path):
        Subscriber(port).close()
    with delivering(tmp_path, sink) as (ledger, worker):
        for _ in range(2):
            give(ledger, 5)
            until(lambda: worker.last_error is not None)
            assert worker.pending == 5
            with mosquitto(port, tmp_path):
                until(lambda: worker.pending == 0)
        with mosquitto(port, tmp_path):
            subscriber = Subscriber(port)
            until(lambda: {message["seq"] for message in subscriber.heard} == set(range(1, 11)))
            subscriber.close()
    assert {message["topic"] for message in subscriber.heard} == {"agvas/camera-0/verdict"}
    assert len({message["key"] for message in subscriber.heard}) == 10
    assert check_ledger(tmp_path / "line").deliveries == {sink.name: {"delivered": 10}}


def test_an_opcua_client_reads_the_last_verdict_and_hears_of_the_next() -> None:
    from asyncua import Client

    sink = OpcUaSink("127.0.0.1", free_port())
    sink.open()
    sink.send(message(7))

    class Handler:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def datachange_notification(self, node: object, value: int, data: object) -> None:
            self.seen.append(value)

    async def look() -> tuple[str, float, list[int]]:
        async with Client(sink.endpoint) as client:
            index = await client.get_namespace_index("urn:agvas:line")
            handler = Handler()
            subscription = await client.create_subscription(20, handler)
            await subscription.subscribe_data_change(client.get_node(f"ns={index};s=s.Seq"))
            await asyncio.to_thread(sink.send, message(8))
            for _ in range(500):
                if handler.seen[-1:] == [8]:
                    break
                await asyncio.sleep(0.02)
            verdict = await client.get_node(f"ns={index};s=s.Verdict").read_value()
            score = await client.get_node(f"ns={index};s=s.Score").read_value()
            await subscription.delete()
            return verdict, score, handler.seen

    try:
        assert asyncio.run(look()) == ("FAIL", 0.75, [7, 8])
    finally:
        sink.close()


def certificate(folder: Path, name: str, uri: str = "urn:agvas:test") -> tuple[Path, Path]:
    """A certificate made on the spot, that signs itself: PEM and key; DER beside them."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(uri), x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    )
    usage = dict.fromkeys(
        ("content_commitment", "key_cert_sign", "data_encipherment", "digital_signature", "key_encipherment"), True
    )
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(
            x509.KeyUsage(**usage, key_agreement=False, crl_sign=False, encipher_only=False, decipher_only=False), True
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    pem, private = folder / f"{name}.pem", folder / f"{name}-key.pem"
    pem.write_bytes(made.public_bytes(Encoding.PEM))
    (folder / f"{name}.der").write_bytes(made.public_bytes(Encoding.DER))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return pem, private


@pytest.mark.slow
def test_an_opcua_client_needs_certificate_name_and_password_where_they_are_asked_for(tmp_path: Path) -> None:
    from asyncua import Client, ua
    from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256

    pem, key = certificate(tmp_path, "server", "urn:freeopcua:python:server")
    mine = certificate(tmp_path, "client", "urn:test:client")
    other = certificate(tmp_path, "other", "urn:test:client")
    (tmp_path / "trusted").mkdir()
    shutil.copy(tmp_path / "client.der", tmp_path / "trusted")
    port = free_port()
    with pytest.raises(UsageError, match="certificate=FILE"):
        open_sink(f"opcua://plc@127.0.0.1:{port}", Secrets(opcua_password="s3cret"))
    address = f"opcua://plc@127.0.0.1:{port}?certificate={pem}&key={key}&trusted={tmp_path / 'trusted'}"
    with pytest.raises(UsageError, match="AGVAS_OPCUA_PASSWORD"):
        open_sink(address)
    sink = open_sink(address, Secrets(opcua_password="s3cret"))
    assert isinstance(sink, OpcUaSink)
    sink.open()
    sink.send(message(7))

    async def verdict(files: tuple[Path, Path] | None, user: str | None, password: str = "") -> str:
        client = Client(sink.endpoint)
        client.application_uri = "urn:test:client"
        if files is not None:
            await client.set_security(SecurityPolicyBasic256Sha256, *map(str, files), mode=ua.MessageSecurityMode.SignAndEncrypt)
        if user is not None:
            client.set_user(user)
            client.set_password(password)
        async with client:
            index = await client.get_namespace_index("urn:agvas:line")
            return str(await client.get_node(f"ns={index};s=s.Verdict").read_value())

    try:
        assert asyncio.run(verdict(mine, "plc", "s3cret")) == "FAIL"
        for files, user, password in (
            (None, None, ""), (mine, None, ""), (mine, "plc", "wrong"), (mine, "root", "s3cret"), (other, "plc", "s3cret"),
        ):  # fmt: skip
            with pytest.raises((ua.UaError, OSError, TimeoutError)):
                asyncio.run(verdict(files, user, password))
    finally:
        sink.close()


@pytest.mark.skipif(shutil.which("mosquitto", path="/usr/sbin:/usr/bin") is None, reason="mosquitto is not installed")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho leaves the socket of a failed handshake
def test_a_broker_is_spoken_to_over_tls_where_its_certificate_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem, key = certificate(tmp_path, "server")
    key.chmod(0o644)
    port, plain = free_port(), free_port()
    secured = f"listener {port} 127.0.0.1\ncertfile {pem}\nkeyfile {key}\nallow_anonymous true\n"
    with mosquitto(plain, tmp_path, f"allow_anonymous true\n{secured}"):
        sink = open_sink(f"mqtts://127.0.0.1:{port}/t")
        with pytest.raises(DeliveryError, match="certificate verify failed"):
            sink.open()
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        sink.open()
        sink.send(message(1))
        sink.close()


def test_a_webhook_is_spoken_to_over_tls_where_its_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, key = certificate(tmp_path, "server")
    with hook([]) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        sink = WebhookSink(f"https://localhost:{server.server_port}/in")
        with pytest.raises(DeliveryError, match="certificate verify failed"):
            sink.open()
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        sink.open()
        sink.send(message(1))
        sink.close()
    assert [json.loads(body)["seq"] for _, body in server.got] == [1]


def test_a_plc_has_the_verdict_in_its_registers() -> None:
    from pymodbus.client import ModbusTcpClient
    from pymodbus.server import ModbusTcpServer
    from pymodbus.simulator import DataType, SimData, SimDevice

    port = free_port()
    sink = ModbusSink("127.0.0.1", port, register=10)
    with pytest.raises(DeliveryError, match="not there"):
        sink.open()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> ModbusTcpServer:
        device = SimDevice(1, simdata=[SimData(0, count=100, values=0, datatype=DataType.REGISTERS)])
        server = ModbusTcpServer(device, address=("127.0.0.1", port))
        await server.serve_forever(background=True)
        return server

    server = asyncio.run_coroutine_threadsafe(start(), loop).result(PATIENCE_S)
    try:
        sink.open()
        sink.send(message(70_000))
        with ModbusTcpClient("127.0.0.1", port=port) as plc:
            assert plc.read_holding_registers(10, count=7).registers == [1, 4464, 2, 0, 2, 750, 4464]
        sink.close()
    finally:
        asyncio.run_coroutine_threadsafe(server.shutdown(), loop).result(PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.skipif(shutil.which("mosquitto_passwd") is None, reason="mosquitto is not installed")
def test_a_user_and_a_password_may_have_any_characters(tmp_path: Path) -> None:
    passwords, password, port = tmp_path / "passwords", "p@ss: wört/%23#", free_port()
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "line@hall", password], check=True, capture_output=True)
    passwords.chmod(0o600)
    with mosquitto(port, tmp_path, f"allow_anonymous false\npassword_file {passwords}\n"):
        sink = open_sink(f"mqtt://line%40hall@127.0.0.1:{port}/t", Secrets(mqtt_password=password))
        sink.open()
        sink.close()
        with pytest.raises(DeliveryError, match="does not let us in"):
            open_sink(f"mqtt://line%40hall@127.0.0.1:{port}/t", Secrets(mqtt_password="other")).open()


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("mqqt://h/t", "did you mean mqtt"),
        ("mqtt://h/", "needs a topic"),
        ("mqtt://u:p@h/t", "password in its address.*AGVAS_MQTT_PASSWORD"),
        ("modbus://h/x", "number from 0"),
        ("https://", "no host"),
        ("jsonl:", "no path"),
        ("mqtt://h:99999/t", "check host and port"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_without_telling_secrets(address: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        open_sink(address, Secrets())
    assert ":p@" not in str(caught.value)
