"""A trigger that reconnects in a thread when its other side is lost; the loss is reported once."""

import threading
from collections.abc import Callable
from typing import Protocol

from agvas_runtime.back_off import BackOff
from agvas_runtime.triggers.protocol import Fire

__all__ = ["Listener", "Peer"]


class Peer(Protocol):
    """The other side: a topic of a broker, a coil of a PLC."""

    name: str
    back_off_s: tuple[float, float]
    """First and longest wait while it is away."""

    def listen(self, listener: "Listener") -> str:
        """Connects, says ``heard`` when it answers, and hands parts to ``fire`` until it is lost or ``stop`` is set; why it ended."""
        ...


class Listener:
    """Listens to a peer for ever; a ``TriggerListener``."""

    fire: Fire
    note: Callable[[str, str], None]

    def __init__(self, peer: Peer) -> None:
        self.name = peer.name
        self.last_error: str | None = None
        self.failure: BaseException | None = None
        self.stop = threading.Event()
        self._peer = peer
        self._back_off = BackOff(*peer.back_off_s)
        self._thread = threading.Thread(target=self._run, name=f"agvas-trigger-{self.name.partition(':')[0]}", daemon=True)

    def start(self, fire: Fire, note: Callable[[str, str], None]) -> None:
        """Begins to listen."""
        self.fire, self.note = fire, note
        self._thread.start()

    def close(self) -> None:
        """Leaves the peer."""
        self.stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def heard(self) -> None:
        """The peer answers."""
        self._back_off.reset()
        if self.last_error is not None:
            self.note("trigger-back", self.name)
            self.last_error = None

    def _run(self) -> None:
        try:
            while not self.stop.is_set():
                why = self._peer.listen(self)
                if self.stop.is_set():
                    return
                if self.last_error is None:
                    self.note("trigger-lost", f"{self.name}: {why}")
                self.last_error = why
                self._back_off.wait(self.stop)
        except BaseException as error:  # ends the line
            self.failure = error
