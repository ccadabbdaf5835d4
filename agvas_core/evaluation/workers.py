"""A process pool over a list, in order; with one job, in this process."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.sharedctypes import Synchronized
from types import TracebackType
from typing import Self, TypeVar

import cv2

from agvas_core.contract.errors import SetupError

__all__ = ["Workers", "worker_number"]

T = TypeVar("T")
R = TypeVar("R")

_number = 0


def worker_number() -> int:
    """Which of the processes this is, from 0; 0 where there is one: so that each can take a GPU of its own."""
    return _number


def _start(numbers: "Synchronized[int]") -> None:
    global _number
    cv2.setNumThreads(1)
    with numbers.get_lock():
        _number, numbers.value = numbers.value, numbers.value + 1


AHEAD = 4  # tasks given out per process, so that an interrupt does not wait for hundreds


class Workers:
    """Use as a context manager; ``map`` may be called many times. Functions, items and results are pickled."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.jobs > 1:
            # Spawned: OpenCV's and ONNX Runtime's threads do not survive a fork.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.jobs, mp_context=context, initializer=_start, initargs=(context.Value("i", 0),))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """``function`` of each item, in the order of the items; errors are raised where their result would be."""
        if self._pool is None:
            yield from (function(item) for item in items)
            return
        waiting = iter(items)
        running: list[Future[R]] = []
        try:
            while True:
                for item in islice(waiting, self.jobs * AHEAD - len(running)):
                    running.append(self._pool.submit(function, item))
                if not running:
                    return
                yield running.pop(0).result()
        except BrokenProcessPool as error:
            raise SetupError(
                f"one of {self.jobs} processes was ended from outside, most likely for lack of memory: run again with fewer --jobs; "
                "what was done is kept"
            ) from error
        finally:
            for task in running:
                task.cancel()
