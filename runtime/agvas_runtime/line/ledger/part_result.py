"""The result of a part: verdict, reason, and everything needed to reproduce it."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from agvas_core.contract.errors import UnlikeError
from agvas_runtime.masks.result import Verdict

__all__ = ["Cause", "PartResult", "without_verdict"]


class Cause(StrEnum):
    """Why there is no verdict."""

    DEADLINE = "deadline"
    SOURCE = "source"
    ENGINE = "engine"
    DISK = "disk"
    RECIPE = "recipe"


@dataclass(frozen=True)
class PartResult:
    """One part's end, as the ledger has it. ``cause`` is given exactly where ``verdict`` is NO_VERDICT."""

    verdict: Verdict
    decided_ms: float
    """After the trigger."""
    cause: Cause | None = None
    detail: str | None = None
    """The cause in words."""
    frame: str | None = None
    """The frame's name."""
    image_sha256: str | None = None
    """Of shape and pixels; see ``image_store``."""
    width: int | None = None
    height: int | None = None
    recipe: str | None = None
    """sha256 of the recipe."""
    bundle: str | None = None
    engine: str | None = None
    score: float | None = None
    """The reject score."""
    findings: tuple[dict[str, Any], ...] = ()
    broken: tuple[str, ...] = ()
    """Names of the rules that the part breaks."""
    timing: dict[str, float] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """For a person: the cause in words, or the rules that the part breaks; empty where it passed."""
        if self.cause is None:
            return ", ".join(self.broken)
        unlike = (self.detail or "").startswith(UnlikeError.START)
        return str(self.detail) if unlike else f"{self.cause}: {self.detail}"

    def __post_init__(self) -> None:
        assert (self.cause is not None) == (self.verdict is Verdict.NO_VERDICT), "a cause belongs to NO_VERDICT, and to it alone"


def without_verdict(cause: Cause, detail: str, decided_ms: float, **known: Any) -> PartResult:
    """NO_VERDICT, with what is known of the part."""
    return PartResult(Verdict.NO_VERDICT, decided_ms, cause, detail, **known)
