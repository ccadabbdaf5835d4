"""Malformed triggers over HTTP to a real line, for fuzz_line.py; fuzz_fieldbus.py has those of MQTT and Modbus."""

import logging
import queue
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from fuzz_values import EDITS, Case, edited
from hypothesis import strategies as st
from unplug_camera import PassAll

from agvas_core.contract.errors import UsageError
from agvas_runtime.images.frame import Frame
from agvas_runtime.line.ledger.disk_reserve import DiskReserve
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.recipe.file import parse_recipe
from agvas_runtime.line.station.dispatcher import TriggerDispatcher
from agvas_runtime.line.station.source_loop import SourceLoop
from agvas_runtime.line.station.station import Station
from agvas_runtime.triggers.http import HttpTrigger
from agvas_runtime.triggers.protocol import Taken, TriggerListener

STATIONS = ("a", "b")
PATIENCE_S = 30.0


class Shutter:
    """A camera that gives a frame when it is asked."""

    live, total, notes = True, None, ()

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()

    def fire(self) -> None:
        """Asks for a frame."""
        self._asked.put(None)

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while True:
            self._asked.get()
            yield Frame(f"shot#{index}", index, image=np.zeros((4, 4, 3), np.uint8), taken_s=time.monotonic())
            index += 1

    def close(self) -> None:
        """Ends with the process."""

    def __enter__(self) -> "Shutter":
        return self

    def __exit__(self, *_: object) -> None: ...


class Logged(logging.Handler):
    """What the triggers did not expect: errors in the log that carry an exception."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.faults: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.faults.append(self.format(record))


class TriggeredLine:
    """Two stations with their ledger, and the dispatcher that triggers come to."""

    def __init__(self, folder: Path) -> None:
        version = parse_recipe("product: part\ndeadline_ms: 30000\n", "fuzz")
        folder = folder / "line"
        self._ledger = Ledger(folder, reserve=DiskReserve(folder, size_mb=1, reserve_mb=1, images_reserve_mb=1))
        self._ledger.know_recipe(version.sha256, version.recipe.product, version.text)
        self._desk = TriggerDispatcher()
        for name in STATIONS:
            feed = SourceLoop(Station(name, self._ledger, PassAll(), lambda: version), self._ledger, Shutter, triggered=True)
            self._desk.add(name, feed)
            threading.Thread(target=feed.run, args=(threading.Event(),), daemon=True).start()
        self.taken = 0
        """Parts."""
        self.notes: list[str] = []
        """Kinds of what the ledger was told."""
        self._logged = Logged()
        logging.getLogger("agvas").addHandler(self._logged)

    def fire(self, station: str | None, key: str | None) -> Sequence[Taken]:
        """As a line's triggers fire."""
        taken = self._desk.fire(station, key, among=STATIONS)
        self.taken += len(taken)
        return taken

    def note(self, kind: str, detail: str) -> None:
        """As a line's triggers tell the ledger."""
        self._ledger.event("a+b", kind, detail)
        self.notes.append(kind)

    def check(self, trigger: TriggerListener) -> None:
        """The trigger is alive and has met nothing that it did not expect."""
        assert trigger.failure is None, repr(trigger.failure)
        assert not self._logged.faults, self._logged.faults[0]


# Letters that a header may carry on the wire, and those of its end
LATIN = st.text(st.characters(max_codepoint=255), max_size=12)
NAMES = st.sampled_from(["Idempotency-Key", "Content-Length", "Transfer-Encoding", "Origin", "Expect", "Connection", "Host", "X"])
HEADERS = st.lists(
    st.tuples(
        NAMES | LATIN,
        LATIN
        | st.sampled_from(
            ["4711", "0", "-1", "3", "4096", "4097", "9" * 5000, "k" * 201, "k" * 70_000, "chunked", "100-continue"]
        )
        | st.integers(0, 5000).map(str),
    ),
    max_size=5,
)
PATHS = st.one_of(
    st.sampled_from(
        ["/trigger", "/trigger/a", "/trigger/b?wait_s=2", "/trigger/c", "/", "http://[/trigger", "/trigger/a/b", "*"]
    ),
    st.sampled_from(["1", "0", "-1", "nan", "inf", "1e400", "61", "1_0", "", "1&wait_s=2", "%"]).map("/trigger?wait_s={}".format),
    LATIN.map("/trigger/{}".format),
    LATIN,
)
METHODS = st.sampled_from(["POST"] * 6 + ["GET", "PUT", "HEAD", "OPTIONS", "CONNECT", "post", ""])
VERSIONS = st.sampled_from([" HTTP/1.1"] * 6 + [" HTTP/1.0", "", " HTTP/2.0", " HTTP/9" + "9" * 5000, " HTTP/x"])


def _request(method: str, path: str, version: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    lines = [f"{method} {path}{version}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


WHOLE = st.builds(_request, METHODS, PATHS, VERSIONS, HEADERS, st.binary(max_size=20))
RIGHT = st.builds(
    lambda station, key, body: _request(
        "POST", f"/trigger{station}", " HTTP/1.1", [("Idempotency-Key", key), ("Content-Length", str(len(body)))], body
    ),
    st.sampled_from(["", "/a", "/b?wait_s=1"]),
    st.integers(0, 10**6).map(str),
    st.binary(max_size=20),
)
HTTP_TRIGGERS = st.one_of(
    WHOLE,
    st.builds(edited, RIGHT, EDITS),
    st.lists(st.one_of(RIGHT, WHOLE), min_size=2, max_size=3).map(b"".join),
    st.binary(max_size=80),
)


class HttpTriggers:
    """The port of a real trigger, and bytes sent to it by a client that says nothing afterwards."""

    def __init__(self, folder: Path) -> None:
        self._line = TriggeredLine(folder)
        self._trigger = HttpTrigger("127.0.0.1", 0)
        self._trigger.start(self._line.fire, self._line.note)

    def case(self, data: bytes) -> Case:
        """One connection."""

        def call() -> None:
            before, answer = self._line.taken, self._talk(data)
            self._line.check(self._trigger)
            codes = re.findall(rb"(?:^|\n)HTTP/1\.[01] (\d{3}) ", answer)
            assert b"500" not in codes, answer[:200]
            if self._line.taken == before:
                raise UsageError(f"no part: {codes}")

        return data, call

    def _talk(self, data: bytes) -> bytes:
        answer = b""
        with socket.create_connection(("127.0.0.1", self._trigger.port), PATIENCE_S) as client:
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                while received := client.recv(65_536):
                    answer += received
            except TimeoutError:
                raise
            except OSError:  # hung up on, before all was said
                pass
        return answer
