"""How fast an engine has been, and so whether a part that waits can still have its verdict in time."""

from collections import deque
from typing import Final

__all__ = ["Pace"]

PARTS: Final = 20  # the fastest of the last so many says whether there is time left
FEWEST: Final = 3  # before so many are known, all are tried
DECAY: Final = 0.9  # a part given up for lack of time makes the next one more likely to be tried


class Pace:
    """Of one station; for its worker alone."""

    def __init__(self) -> None:
        self._took_ms: deque[float] = deque(maxlen=PARTS)

    def took(self, milliseconds: float) -> None:
        """One part more was looked at."""
        self._took_ms.append(milliseconds)

    def has_time(self, elapsed_ms: float, deadline_ms: float) -> bool:
        """Whether a verdict in time is possible for a part that was triggered so long ago."""
        if len(self._took_ms) < FEWEST or elapsed_ms + min(self._took_ms) <= deadline_ms:
            return True
        self._took_ms.append(min(self._took_ms) * DECAY)
        return False
