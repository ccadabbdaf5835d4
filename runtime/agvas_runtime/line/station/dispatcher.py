"""Passes triggers of all kinds on to the stations of a line."""

import threading
from functools import partial
from typing import Any

from agvas_core.contract.errors import UsageError
from agvas_runtime.line.station.source_loop import SourceLoop
from agvas_runtime.line.station.station import PendingPart
from agvas_runtime.triggers.protocol import Taken

__all__ = ["TriggerDispatcher"]


class TriggerDispatcher:
    """The stations of a line that are triggered. Also the Python interface: make one, pass it to ``run_line``, and ``fire``."""

    def __init__(self) -> None:
        self.ready = threading.Event()
        """Set once the line takes triggers."""
        self._feeds: dict[str, SourceLoop] = {}

    def add(self, station: str, feed: SourceLoop) -> None:
        """A station that may be asked from now on."""
        self._feeds[station] = feed

    def fire(self, station: str | None = None, key: str | None = None, *, among: tuple[str, ...] | None = None) -> list[Taken]:
        """Asks one station for a part, or all of ``among`` (all that are triggered, where None).

        Raises:
            UsageError: there is no such station here.
            LedgerError: nothing could be written down, so nothing was taken.
        """
        names = tuple(self._feeds) if among is None else among
        if station is not None and station not in names:
            raise UsageError(f"there is no station {station!r} that is triggered here; there is {', '.join(names) or 'none'}")
        asked = names if station is None else (station,)
        return [_taken(name, self._feeds[name].fire(key)) for name in asked]


def _taken(station: str, pending: PendingPart) -> Taken:
    return Taken(station, pending.seq, pending.key, partial(_verdict, pending))


def _verdict(pending: PendingPart, wait_s: float) -> dict[str, Any] | None:
    end = pending.wait(wait_s)
    if end is None:
        return None
    return {
        "verdict": str(end.verdict),
        "cause": end.cause,
        "detail": end.detail,
        "score": end.score,
        "findings": len(end.findings),
        "decided_ms": round(end.decided_ms, 1),
    }
