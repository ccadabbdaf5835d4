"""A part on its way to its verdict, and what is told of it afterwards."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from agvas_runtime.frame import Frame
from agvas_runtime.line.inspector import Inspection
from agvas_runtime.line.recipe_file import RecipeVersion
from agvas_runtime.line.settlement import Settlement

__all__ = ["Outcome", "Ticket"]


@dataclass(frozen=True)
class Outcome:
    """A part that has its verdict, for whoever shows or counts it."""

    seq: int
    station: str
    frame: Frame
    version: RecipeVersion
    settlement: Settlement
    inspection: Inspection | None = None


@dataclass
class Ticket:
    """A part on its way to its verdict."""

    seq: int
    key: str
    """What asked for this part."""
    frame: Frame
    version: RecipeVersion
    began_s: float
    """Of ``time.monotonic``."""
    deadline_s: float
    known: dict[str, Any] = field(default_factory=dict)
    number: int = 0
    """Counts the parts of its station."""
    settlement: Settlement | None = None
    claimed: bool = False
    awaited: bool = False
    """Its frame is still to come; until then ``frame`` says so."""
    done: threading.Event = field(default_factory=threading.Event)

    def wait(self, timeout_s: float | None = None) -> Settlement | None:
        """The verdict once it is in the ledger; None where it took longer than ``timeout_s``, or its station failed."""
        self.done.wait(timeout_s)
        return self.settlement

    @property
    def elapsed_ms(self) -> float:
        """Since the trigger."""
        return (time.monotonic() - self.began_s) * 1000
