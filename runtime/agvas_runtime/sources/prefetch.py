"""Around a source: reading ahead, and stopping after a number of frames."""

import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Generic, TypeVar

from agvas_core.contract.errors import UsageError
from agvas_runtime.images.frame import Frame
from agvas_runtime.sources.protocol import Source

__all__ = ["ReadAhead", "limit", "prefetch"]


# Taking from an iterable in a thread of its own, a bounded number of items ahead of their consumer.


T = TypeVar("T")


class _Raised:
    """An exception on its way from the thread to the consumer."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class ReadAhead(Generic[T]):
    """The items of ``items``, in order; up to ``depth`` are ready before they are asked for.

    What the iterable raises is raised where its item would have come. ``stop`` ends the thread, and is to be called in any case.
    """

    def __init__(self, items: Iterable[T], depth: int, *, name: str) -> None:
        self._ready: queue.Queue[T | _Raised | None] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), name=name, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, _Raised):
                raise item.error
            yield item

    def stop(self) -> None:
        """Ends the thread, which may be waiting for room, and waits for it."""
        self._stopped.set()
        while self._thread.is_alive():
            self._empty()
            self._thread.join(0.01)
        # The consumer, if it still waits in another thread, has to learn of the end.
        self._empty()
        self._ready.put(None)

    def _run(self, items: Iterable[T]) -> None:
        taken: Iterator[T] = iter(())
        try:
            taken = iter(items)
            for item in taken:
                self._ready.put(item)
                if self._stopped.is_set():
                    break
        except BaseException as error:  # carried over to the consumer, which raises it
            self._ready.put(_Raised(error))
        finally:
            close = getattr(taken, "close", None)
            if close is not None:
                close()  # a video is released in the thread that read it
            self._ready.put(None)

    def _empty(self) -> None:
        try:
            while True:
                self._ready.get_nowait()
        except queue.Empty:
            return


def prefetch(source: Source, depth: int = 2) -> Source:
    """Reads up to ``depth`` frames ahead in a thread of its own, so that decoding overlaps the model.

    A live source is returned as it is: its newest frame is wanted, not a queue of old ones. Closing closes ``source``.
    """
    if depth < 1:
        raise UsageError(f"depth is {depth}; 1 is the least: leave prefetch out to read in step")
    return source if source.live else _Prefetch(source, depth)


def limit(source: Source, most: int) -> Source:
    """The first ``most`` frames of ``source``. Closing closes ``source``."""
    if most < 1:
        raise UsageError(f"limit is {most}; 1 is the least: leave it out to read all")
    return _Limit(source, most)


class _Limit:
    def __init__(self, source: Source, most: int) -> None:
        self.live = source.live
        self._source, self._most = source, most

    @property
    def notes(self) -> list[str]:
        return self._source.notes

    @property
    def total(self) -> int | None:
        total = self._source.total
        # A camera goes on until the limit; an iterator of unknown length may end before it.
        return self._most if total is None and self.live else None if total is None else min(total, self._most)

    def __iter__(self) -> Iterator[Frame]:
        return islice(self._source, min(self._most, sys.maxsize))

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> "_Limit":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Prefetch:
    live = False

    def __init__(self, source: Source, depth: int) -> None:
        self._source, self._depth = source, depth
        self._readers: list[ReadAhead[Frame]] = []

    @property
    def notes(self) -> list[str]:
        return self._source.notes

    @property
    def total(self) -> int | None:
        return self._source.total

    def __iter__(self) -> Iterator[Frame]:
        reader = ReadAhead(self._source, self._depth, name="agvas-prefetch")
        self._readers.append(reader)
        try:
            yield from reader
        finally:
            reader.stop()
            self._readers.remove(reader)

    def close(self) -> None:
        for reader in list(self._readers):
            reader.stop()
        self._source.close()

    def __enter__(self) -> "_Prefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
