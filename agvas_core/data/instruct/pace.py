"""How fast an endpoint is asked: so many requests a minute, and none while it has asked for quiet."""

import asyncio
import random
from dataclasses import dataclass, field

__all__ = ["Pace", "Patience"]


class Pace:
    """Slots for requests, evenly spaced; shared by all that ask one endpoint, on one event loop."""

    def __init__(self, per_minute: float | None) -> None:
        """``per_minute``: requests, retries included; None for no bound."""
        self._interval_s = 60 / per_minute if per_minute else 0.0
        self._next_s = 0.0
        self._quiet_until_s = 0.0

    def reserve(self, now_s: float) -> float:
        """Takes the next slot; seconds from ``now_s`` until it."""
        start_s = max(now_s, self._next_s, self._quiet_until_s)
        self._next_s = start_s + self._interval_s
        return start_s - now_s

    def hold(self, now_s: float, seconds: float) -> None:
        """Nobody asks before ``seconds`` from ``now_s`` are over."""
        self._quiet_until_s = max(self._quiet_until_s, now_s + seconds)

    def quiet_for(self, now_s: float) -> float:
        """Seconds from ``now_s`` for which nobody may ask."""
        return max(0.0, self._quiet_until_s - now_s)

    async def turn(self) -> None:
        """Waits for a slot. One that was reserved before the endpoint asked for quiet is given up for one after that."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.reserve(loop.time()))
        while self.quiet_for(loop.time()) > 0:
            await asyncio.sleep(self.reserve(loop.time()))


@dataclass(frozen=True)
class Patience:
    """When to ask again after a failure that may pass: exponential back-off, half of it by chance."""

    retries: int = 6
    first_s: float = 1.0
    longest_s: float = 60.0
    longest_asked_s: float = 900.0
    """An endpoint that asks for a longer pause than this ends the run: a person should know."""
    chance: random.Random = field(default_factory=random.Random)

    def wait_s(self, failures: int, asked_s: float | None = None) -> float:
        """Seconds before the next attempt.

        Args:
            failures: how many there were, from 1.
            asked_s: what the endpoint asked for (Retry-After): never less than that.
        """
        whole_s = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return max(whole_s * (0.5 + 0.5 * self.chance.random()), asked_s or 0.0)
