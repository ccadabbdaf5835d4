"""The protocol of a trigger: it asks a line for parts and gets an acknowledgement."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Fire", "Taken", "TriggerListener"]


@dataclass(frozen=True)
class Taken:
    """A part that is in the ledger."""

    station: str
    seq: int
    key: str
    """Sent again, it gives the same part."""
    verdict: Callable[[float], dict[str, Any] | None]
    """Waits for so many seconds; verdict, cause, detail, score and milliseconds, or None."""


Fire = Callable[[str | None, str | None], Sequence[Taken]]
"""(station, key) -> what was taken: at one station, or at every one that this trigger is for where it is None.

Raises UsageError where there is no such station, and LedgerError where nothing could be written down: then nothing was taken, and the sender
gets no acknowledgement.
"""


class TriggerListener(Protocol):
    """Listens in a thread of its own, for ever: a broker or PLC that is away is looked for again and again."""

    name: str
    last_error: str | None
    """Why no trigger can be received at the moment; None while all is well."""
    failure: BaseException | None
    """What ended the thread before its time: a bug."""

    def start(self, fire: Fire, note: Callable[[str, str], None]) -> None:
        """Begins to listen. ``note`` takes what the ledger should know, kind and detail: a broker that is lost, and back."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...
