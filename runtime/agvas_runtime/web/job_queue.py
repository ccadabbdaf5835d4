"""A bounded queue before a few worker threads: what does not fit is refused at once, what no client waits for any more is dropped.

    queue = JobQueue(workers=1, limit=16)
    result = await queue.run(lambda: segmenter.segment(frame))

Everything but the work itself happens on the event loop's thread, so there are no locks.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from agvas_runtime.web.refusal import Refusal, busy

__all__ = ["JobQueue"]

T = TypeVar("T")

FIRST_GUESS_S = 0.5  # of the time one image takes, before there is a measurement
SHARE_OF_NEWEST = 0.2  # exponential mean: the last dozen images say how long the next will take


class _Turn(NamedTuple):
    future: "asyncio.Future[None]"
    weight: int


class JobQueue:
    """``workers`` jobs at a time, ``limit`` images waiting.

    Args:
        observe: called with how long each job waited and took, in seconds.
    """

    def __init__(self, *, workers: int, limit: int, observe: Callable[[float, float], None] | None = None) -> None:
        self.workers, self.limit = workers, limit
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="agvas-worker")
        self._observe = observe
        self._running = 0
        self._turns: deque[_Turn] = deque()
        self._image_s = FIRST_GUESS_S

    @property
    def waiting(self) -> int:
        """Images that wait."""
        return sum(turn.weight for turn in self._turns)

    @property
    def running(self) -> int:
        """Jobs in work."""
        return self._running

    @property
    def retry_after_s(self) -> float:
        """When half of what waits now will be done."""
        return max(1.0, self._image_s * (self.waiting + self._running) / self.workers / 2)

    def check(self, weight: int = 1) -> None:
        """Is there room for ``weight`` more images?

        Raises:
            Refusal: 429 where there is none.
        """
        if self._running < self.workers and not self._turns:
            return
        if self.waiting + weight > self.limit:
            raise busy(
                f"{self.waiting} images wait and {self.limit} may: send it again after the time in Retry-After",
                self.retry_after_s,
            )

    async def run(self, work: Callable[[], T], weight: int = 1) -> T:
        """The result of ``work``, in its turn. Who is cancelled while waiting loses the turn; work that has begun goes on unheard.

        Args:
            weight: images in it.

        Raises:
            Refusal: the queue is full.
        """
        self.check(weight)
        came = time.monotonic()
        await self._turn(weight)
        began = time.monotonic()
        done = asyncio.get_running_loop().run_in_executor(self._pool, work)
        done.add_done_callback(lambda done: self._finish(done, weight, began - came, time.monotonic() - began))
        return await asyncio.shield(done)

    async def close(self) -> None:
        """Refuses what waits, and waits for what is in work."""
        for turn in self._turns:
            if not turn.future.done():
                turn.future.set_exception(Refusal(503, "unavailable", "the server is ending", {"Retry-After": "5"}))
        self._turns.clear()
        await asyncio.to_thread(self._pool.shutdown)

    async def _turn(self, weight: int) -> None:
        if self._running < self.workers and not self._turns:
            self._running += 1
            return
        turn = _Turn(asyncio.get_running_loop().create_future(), weight)
        self._turns.append(turn)
        try:
            await turn.future
        except asyncio.CancelledError:
            if turn in self._turns:
                self._turns.remove(turn)
            elif turn.future.done() and not turn.future.cancelled():
                self._release()  # the turn came in the moment that the client left
            raise

    def _finish(self, done: "asyncio.Future[Any]", weight: int, waited_s: float, took_s: float) -> None:
        if not done.cancelled():
            done.exception()  # its client left: read, so that asyncio does not report it
        self._image_s += SHARE_OF_NEWEST * (took_s / weight - self._image_s)
        if self._observe is not None:
            self._observe(waited_s, took_s)
        self._release()

    def _release(self) -> None:
        self._running -= 1
        while self._turns:
            turn = self._turns.popleft()
            if not turn.future.done():
                self._running += 1
                turn.future.set_result(None)
                return
