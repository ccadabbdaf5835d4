"""Exponential back-off with jitter: each wait is twice as long, of which a random half to all is used."""

import random
import threading

__all__ = ["BackOff"]


class BackOff:
    """The waits of one thread."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s, self._next_s = first_s, longest_s, first_s
        self._random = random.Random()

    def wait(self, stop: threading.Event) -> None:
        """Until it is time, or ``stop`` is set."""
        stop.wait(self._next_s * self._random.uniform(0.5, 1.0))
        self._next_s = min(2 * self._next_s, self._longest_s)

    def reset(self) -> None:
        """It was there: the next wait is the first again."""
        self._next_s = self._first_s
