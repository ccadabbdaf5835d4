"""A broker and a PLC that send what no sane one sends, for fuzz_line.py: malformed MQTT messages, malformed Modbus answers."""

import logging
import socket
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from fuzz_triggers import PATIENCE_S, TriggeredLine
from fuzz_values import EDITS, VALUES, Case, edited
from hypothesis import strategies as st

import agvas_runtime.triggers.modbus as modbus
import agvas_runtime.triggers.mqtt as mqtt
from agvas_core.contract.errors import UsageError
from agvas_runtime.triggers.listener import Listener

TOPIC = "hall/{station}/trigger"
LAST_ID = 65_535  # of the message that tells that all before it was read
QUICK_S = (0.001, 0.01)  # instead of the back-off, which is for brokers that are down


# MQTT 3.1.1


def _packet(first: int, body: bytes) -> bytes:
    length, left = b"", len(body)
    while True:
        left, digit = divmod(left, 128)
        length += bytes([digit | (128 if left else 0)])
        if not left:
            return bytes([first]) + length + body


def _publish(topic: bytes, payload: bytes, flags: int, number: int) -> bytes:
    identifier = number.to_bytes(2, "big") if flags & 6 else b""
    return _packet(0x30 | flags, len(topic).to_bytes(2, "big") + topic + identifier + payload)


class When(Enum):
    """At which moment the broker sends it."""

    BETWEEN = 1
    """A whole packet, behind which it goes on."""
    LAST = 2
    """Any bytes, behind which it hangs up."""
    WELCOME = 3
    """Instead of its answer to CONNECT, and then it hangs up."""


class Message(NamedTuple):
    """Bytes on the wire."""

    data: bytes
    when: When


TOPICS = st.one_of(
    st.sampled_from(
        ["hall/a/trigger", "hall/b/trigger", "hall/c/trigger", "hall//trigger", "hall/a", "hall/a/trigger/x", "", "+", "#"]
    ),
    st.text(max_size=12).map("hall/{}/trigger".format),
    st.text(max_size=12),
).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=12)
PAYLOADS = st.one_of(
    st.integers(0, 10**6).map(lambda number: str(number).encode()),
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
    VALUES.map(lambda value: str(value).encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b"", b"NaN", b"{" * 5000, b"[" * 100_000, b"k" * 200, b"k" * 201, "ä".encode() * 101, b"\0", b"x" * 3_000_000]
    ),
    st.binary(max_size=30),
)
FLAGS = st.sampled_from([2] * 6 + [*range(16)])
PUBLISHED = st.builds(_publish, TOPICS, PAYLOADS, FLAGS, st.integers(0, LAST_ID - 1))
OTHERS = st.builds(_packet, st.integers(0, 255), st.binary(max_size=12))
MQTT_MESSAGES = st.one_of(
    PUBLISHED.map(lambda data: Message(data, When.BETWEEN)),
    PUBLISHED.map(lambda data: Message(data, When.BETWEEN)),
    st.builds(lambda data, edits: Message(edited(data, edits), When.LAST), PUBLISHED, EDITS),
    OTHERS.map(lambda data: Message(data, When.LAST)),
    st.builds(Message, st.binary(max_size=60), st.sampled_from([When.LAST, When.WELCOME])),
    st.builds(
        lambda first, body: Message(_packet(first, body), When.WELCOME), st.sampled_from([0x20, 0x90]), st.binary(max_size=6)
    ),
)


class MqttTriggers:
    """A real trigger at a broker of one's own, which sends what it is told."""

    def __init__(self, folder: Path) -> None:
        mqtt.BACK_OFF_S = QUICK_S  # type: ignore[misc]
        self._line = TriggeredLine(folder)
        self._port = socket.create_server(("127.0.0.1", 0))
        self._port.settimeout(PATIENCE_S)
        self._trigger = Listener(mqtt.MqttTopic("127.0.0.1", self._port.getsockname()[1], TOPIC))
        self._trigger.start(self._line.fire, self._line.note)
        self._client: socket.socket | None = None

    def case(self, message: Message) -> Case:
        """One message, and then one that is right."""

        def call() -> None:
            taken = self._line.taken
            self._tell(message)
            self._line.check(self._trigger)
            the_last = message.when is When.BETWEEN and self._client is not None
            if self._line.taken == taken + the_last:
                raise UsageError("no part")

        return message.data, call

    def _tell(self, message: Message) -> None:
        if message.when is When.WELCOME and self._client is not None:
            self._client.close()
            self._client = None
        client = self._client or self._welcome(message.data if message.when is When.WELCOME else None)
        try:
            if message.when is When.BETWEEN:
                client.sendall(message.data)
                client.sendall(_publish(b"hall/a/trigger", b"the last", 2, LAST_ID))
                while (found := self._read(client)) is not None:
                    if found == (0x40, LAST_ID.to_bytes(2, "big")):
                        self._client = client
                        return
            else:
                if message.when is When.LAST:
                    client.sendall(message.data)
                client.shutdown(socket.SHUT_WR)
                while self._read(client) is not None:
                    pass
        except TimeoutError:
            raise
        except OSError:  # it does not talk with such a broker any longer
            pass
        client.close()
        self._client = None

    def _welcome(self, instead: bytes | None = None) -> socket.socket:
        """The trigger, when it has come (back) and subscribed, or got something else ``instead``."""
        try:
            client, _ = self._port.accept()
        except TimeoutError:
            raise AssertionError(f"the trigger does not come back: {self._trigger.failure!r}") from None
        client.settimeout(PATIENCE_S)
        assert self._read(client) is not None, "no CONNECT"
        if instead is not None:
            client.sendall(instead)
            return client
        client.sendall(_packet(0x20, b"\0\0"))
        subscribe = self._read(client)
        assert subscribe is not None and subscribe[0] == 0x82, subscribe
        client.sendall(_packet(0x90, subscribe[1][:2] + b"\x01"))
        return client

    def _read(self, client: socket.socket) -> tuple[int, bytes] | None:
        """The first byte and the body of the trigger's next packet; None where it hung up."""
        first = client.recv(1)
        if not first:
            return None
        length, place = 0, 0
        while True:
            (digit,) = client.recv(1)
            length |= (digit & 127) << place
            place += 7
            if digit < 128:
                break
        return first[0], client.recv(length, socket.MSG_WAITALL) if length else b""


# Modbus TCP


class Framed(NamedTuple):
    """An answer to the question that was asked, with a body of its own."""

    is_refusal: bool
    body: bytes


Spoilt = list[tuple[float, int, bytes]] | bytes | Framed | None
"""Edits of the right answer, or another instead of it, or the right one."""


class Answers(NamedTuple):
    """What the PLC says to the three questions of a part."""

    coil: Spoilt
    register: Spoilt
    cleared: Spoilt


BODIES = st.sampled_from([b"", b"\0", b"\1", b"\1\1\1", b"\0\1", b"\xff\1", b"\2\0"]) | st.binary(max_size=260)
SPOILT = st.one_of(st.none(), EDITS, st.binary(max_size=12), st.builds(Framed, st.booleans(), BODIES))
MODBUS_ANSWERS = st.builds(Answers, SPOILT, SPOILT, SPOILT)
RIGHT = {1: b"\x01\x01\x01", 3: b"\x03\x02\x00\x07"}  # the coil is set; the part is number 7; what is written is echoed


class ModbusTriggers:
    """A real trigger at a PLC of one's own."""

    def __init__(self, folder: Path) -> None:
        modbus.BACK_OFF_S, modbus.POLL_S, modbus.TIMEOUT_S = QUICK_S, 0.0005, 0.02  # type: ignore[misc]
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
        self._line = TriggeredLine(folder)
        self._port = socket.create_server(("127.0.0.1", 0))
        self._port.settimeout(PATIENCE_S)
        self._trigger = Listener(modbus.ModbusCoil("127.0.0.1", self._port.getsockname()[1], coil=3, number=7))
        self._trigger.start(self._line.fire, self._line.note)
        self._client: socket.socket | None = None

    def case(self, answers: Answers) -> Case:
        """One part with spoilt answers, and then one with right ones."""

        def call() -> None:
            spoilt = dict(zip((1, 3, 5), answers, strict=True))
            taken = self._line.taken
            self._serve(spoilt)
            self._line.check(self._trigger)
            if any(answer is not None for answer in answers):
                assert self._line.taken > taken, "the part with right answers was not taken"
                raise UsageError("spoilt")

        return repr(answers).encode(), call

    def _serve(self, spoilt: dict[int, Spoilt]) -> None:
        """Answers, each function's spoilt answer once, until a part went well."""
        clean = 0
        while clean < 3:
            if self._client is None:
                try:
                    self._client, _ = self._port.accept()
                except TimeoutError:
                    raise AssertionError(f"the trigger does not come back: {self._trigger.failure!r}") from None
                self._client.settimeout(PATIENCE_S)
                clean = 0
            try:
                head = self._client.recv(7, socket.MSG_WAITALL)
                asked = self._client.recv(int.from_bytes(head[4:6], "big") - 1, socket.MSG_WAITALL) if len(head) == 7 else b""
                if not asked:
                    raise ConnectionResetError
                how = spoilt.pop(asked[0], None)
                body = RIGHT.get(asked[0], asked)
                if isinstance(how, Framed):
                    body = bytes([asked[0] | (0x80 if how.is_refusal else 0)]) + how.body
                answer = head[:4] + (len(body) + 1).to_bytes(2, "big") + head[6:] + body
                clean = clean + 1 if how is None and (clean or asked[0] == 1) else 0
                self._client.sendall(how if isinstance(how, bytes) else edited(answer, how) if isinstance(how, list) else answer)
            except (BrokenPipeError, ConnectionResetError):
                self._client.close()
                self._client, clean = None, 0
