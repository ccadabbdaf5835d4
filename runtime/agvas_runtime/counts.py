"""How many tiles go through the stages together, and how far vision looks ahead; the defaults stand here."""

from dataclasses import dataclass
from typing import Final

from agvas_core.contract.errors import UsageError

__all__ = ["MAX_AHEAD", "MAX_TILES", "Counts"]

MAX_TILES: Final = 64
MAX_AHEAD: Final = 8


@dataclass(frozen=True)
class Counts:
    """Whatever they are, the results are the same within ``TOLERANCES``; memory grows with both.

    Raises:
        UsageError: out of range.
    """

    tiles: int = 4
    """Tiles of a frame that are one launch; a bundle or an engine may allow fewer."""
    ahead: int = 1
    """Passes (a view, or a launch of tiles) that vision makes while the language model and the decoder work on an earlier one; 0: one after
    the other."""
    tuned: str | None = None
    """When ``agvas profile --tune`` measured that these are the fastest here; None of the defaults, and of a caller's own."""

    def __post_init__(self) -> None:
        for name, count, least, most in (("tiles", self.tiles, 1, MAX_TILES), ("ahead", self.ahead, 0, MAX_AHEAD)):
            if not least <= count <= most:
                raise UsageError(f"{name} is {count}; {least} to {most} are possible")

    def __str__(self) -> str:
        tiles = f"{self.tiles} {'tile' if self.tiles == 1 else 'tiles'} a launch"
        ahead = {0: "one pass after the other", 1: "1 pass ahead"}.get(self.ahead, f"{self.ahead} passes ahead")
        return f"{tiles}, {ahead}"
