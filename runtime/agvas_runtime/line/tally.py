"""What a person beside the line wants to know of a station's last parts: how many, how fast, which share is good."""

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from agvas_runtime.line.settlement import Cause
from agvas_runtime.result import Verdict

__all__ = ["BOUNDS_MS", "MINUTES", "Tally"]

MINUTES: Final = 60
PARTS: Final = 1000  # whose times make the histogram
RATE_S: Final = 60.0
ORDER: Final = (Verdict.PASS, Verdict.FAIL, Verdict.NO_VERDICT)
BOUNDS_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
"""Upper ends of the histogram's bars; one more is for what took longer."""


class Tally:
    """Counts the parts of one station. Not for several threads at once."""

    def __init__(self, clock: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        """``clock``: Unix time. ``steady``: seconds that nobody sets back, for the rate."""
        self._clock, self._steady = clock, steady
        self._began_s = steady()
        self._run: Counter[Verdict] = Counter()
        self._causes: Counter[Cause] = Counter()
        self._minutes: dict[int, list[int]] = {}  # Unix minute -> parts by ORDER
        self._times_ms: deque[float] = deque(maxlen=PARTS)
        self._recent_s: deque[float] = deque()

    def add(self, verdict: Verdict, cause: Cause | None, decided_ms: float) -> None:
        """Counts a part that has its verdict now."""
        self._run[verdict] += 1
        if cause is not None:
            self._causes[cause] += 1
        self._recent_s.append(self._steady())
        self._forget()
        self.add_earlier(verdict, decided_ms, self._clock())

    def add_earlier(self, verdict: Verdict, decided_ms: float, at_s: float) -> None:
        """Counts a part of a run before, for the hour and the histogram alone."""
        minute = int(at_s // 60)
        self._minutes.setdefault(minute, [0] * len(ORDER))[ORDER.index(verdict)] += 1
        self._times_ms.append(decided_ms)

    def figures(self) -> dict[str, Any]:
        """All of it, for the page: counts in the order PASS, FAIL, NO_VERDICT."""
        self._forget()
        last = int(self._clock() // 60)
        minutes = [self._minutes.get(minute, [0] * len(ORDER)) for minute in range(last - MINUTES + 1, last + 1)]
        hour = [sum(minute[index] for minute in minutes) for index in range(len(ORDER))]
        times = np.array(self._times_ms)
        return {
            "run": [self._run[verdict] for verdict in ORDER],
            "causes": {str(cause): count for cause, count in sorted(self._causes.items())},
            "hour": hour,
            "yield": hour[0] / sum(hour) if sum(hour) else None,
            "minutes": minutes,
            "per_minute": len(self._recent_s) * 60 / max(1.0, min(RATE_S, self._steady() - self._began_s)),
            "latency": {
                "bounds_ms": BOUNDS_MS,
                "counts": np.bincount(np.searchsorted(BOUNDS_MS, times), minlength=len(BOUNDS_MS) + 1).tolist(),
                **{f"p{share}_ms": float(np.percentile(times, share)) if len(times) else None for share in (50, 99)},
            },
        }

    def _forget(self) -> None:
        while self._recent_s and self._recent_s[0] < self._steady() - RATE_S:
            self._recent_s.popleft()
        if len(self._minutes) > 2 * MINUTES:
            oldest = int(self._clock() // 60) - MINUTES
            self._minutes = {minute: counts for minute, counts in self._minutes.items() if minute > oldest}
