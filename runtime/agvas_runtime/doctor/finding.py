"""One line of what the doctor found."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "State"]


class State(StrEnum):
    """How it stands."""

    OK = "ok"
    ABSENT = "absent"
    """Not here, and nothing but what needs it is the worse for it."""
    WARN = "warn"
    """Works, and may surprise."""
    FAULT = "fault"
    """Here and broken, or needed everywhere and not here."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it stands, and what to do about it."""

    group: str
    """``system``, ``package``, ``extra``, ``backend``, ``model``, ``device``, ``tuning``."""
    name: str
    state: State
    detail: str
    remedy: str = ""
