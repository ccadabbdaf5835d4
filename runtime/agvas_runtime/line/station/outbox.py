"""Takes messages out of the outbox to one sink: in order, at least once, for as long as it takes.

A message leaves the outbox when the sink has acknowledged it. A process that is killed between the two sends it again, with the same
key, by which the receiver knows it. A sink that is down keeps its messages waiting; one message that is refused permanently is marked so
and does not hold up the others.
"""

import json
import logging
import threading
from typing import Any, Final

from agvas_core.contract.errors import DeliveryError
from agvas_runtime.back_off import BackOff
from agvas_runtime.line.ledger.ledger import Ledger, utc_now
from agvas_runtime.sinks.message import Message, VerdictSink

__all__ = ["OutboxWorker", "message_of"]

log = logging.getLogger("agvas.line")

BATCH: Final = 64  # acknowledgements that are written down together
BACK_OFF_S: Final = (0.2, 15.0)  # first and longest wait for a sink that is down
IDLE_S: Final = 0.5  # a missed wake-up costs no more than this

_COLUMNS = (
    "seq, station, trigger_key, triggered_utc, verdict, cause, detail, decided_ms, deadline_ms, settled_utc, frame, width, height, "
    "score, broken, findings, image_sha256, parts.recipe, product, bundle, engine"
)


def message_of(ledger: Ledger, seq: int) -> Message:
    """The message about one part; the same, whenever it is made."""
    (row,) = ledger.read(f"SELECT {_COLUMNS} FROM parts LEFT JOIN recipes ON recipes.sha256 = parts.recipe WHERE seq = ?", (seq,))
    names = [name.strip().removeprefix("parts.") for name in _COLUMNS.split(",")]
    body: dict[str, Any] = {"key": f"{ledger.identity}/{seq}", **dict(zip(names, row, strict=True))}
    body["broken"], body["findings"] = json.loads(body["broken"]), json.loads(body["findings"])
    return Message(body["key"], seq, body)


class OutboxWorker:
    """The thread behind one sink."""

    def __init__(self, ledger: Ledger, sink: VerdictSink) -> None:
        self.sink = sink
        self._ledger = ledger
        self._wake, self._stop = threading.Event(), threading.Event()
        self._back_off = BackOff(*BACK_OFF_S)
        self.last_error: str | None = None
        """Why the last attempt failed; None while all is well."""
        self.failure: BaseException | None = None
        """What ended the thread before its time: a bug, or a ledger that cannot be written."""
        self._thread = threading.Thread(target=self._run, name=f"agvas-sink-{sink.name}", daemon=True)

    def start(self) -> None:
        """Begins to deliver."""
        self._thread.start()

    def wake(self) -> None:
        """Says that there is something new."""
        self._wake.set()

    @property
    def pending(self) -> int:
        """Messages that wait."""
        return int(
            self._ledger.read(
                "SELECT COUNT(*) FROM deliveries INDEXED BY pending WHERE sink = ? AND state = 'pending'", (self.sink.name,)
            )[0][0]
        )

    def close(self, *, grace_s: float = 5.0) -> None:
        """Sends what can be sent within ``grace_s``; the rest stays in the outbox."""
        if self._thread.is_alive():
            for _ in range(int(grace_s / 0.05)):
                if not self.pending or self.last_error or not self._thread.is_alive():
                    break
                self._stop.wait(0.05)
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(grace_s + 10.0)

    def _run(self) -> None:
        is_open = False
        try:
            while not self._stop.is_set():
                self._wake.clear()
                try:
                    if not is_open:
                        self.sink.open()
                        is_open = True
                    sent = self._deliver()
                except DeliveryError as error:
                    if self.last_error is None:
                        log.warning("sink %s: %s; its messages wait in the outbox", self.sink.name, error)
                    self.last_error = str(error)
                    self.sink.close()
                    is_open = False
                    self._back_off.wait(self._stop)
                    continue
                if self.last_error is not None:
                    log.warning("sink %s: takes messages again", self.sink.name)
                self.last_error = None
                self._back_off.reset()
                if not sent:
                    self._wake.wait(IDLE_S)
        except BaseException as error:  # the station sees it and ends; what waits stays in the outbox
            self.failure = error
        finally:
            self.sink.close()

    def _deliver(self) -> int:
        """Sends the next messages; how many were dealt with."""
        rows = self._ledger.read(
            "SELECT seq FROM deliveries INDEXED BY pending WHERE sink = ? AND state = 'pending' ORDER BY seq LIMIT ?",
            (self.sink.name, BATCH),
        )
        done: list[tuple[str, str, str | None, str, int]] = []
        try:
            for (seq,) in rows:
                if self._stop.is_set():
                    break
                state, detail = "delivered", None
                try:
                    self.sink.send(message_of(self._ledger, seq))
                except DeliveryError as error:
                    if not error.permanent:
                        raise
                    state, detail = "refused", str(error)
                    log.error("sink %s: refuses part %d permanently: %s", self.sink.name, seq, error)
                done.append((state, utc_now(), detail, self.sink.name, seq))
        finally:
            if done:
                self._ledger.write(
                    "UPDATE deliveries SET state = ?, done_utc = ?, detail = ?, attempts = attempts + 1 WHERE sink = ? AND seq = ?",
                    done,
                )
        return len(done)
