"""Around a source: reading ahead, and stopping after a number of frames."""

import queue
import sys
import threading
from collections.abc import Iterator
from itertools import islice

from agvas_core.contract.errors import UsageError
from agvas_runtime.frame import Frame
from agvas_runtime.sources.protocol import Source

__all__ = ["limit", "prefetch"]


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
        self._readers: list[_Reader] = []

    @property
    def notes(self) -> list[str]:
        return self._source.notes

    @property
    def total(self) -> int | None:
        return self._source.total

    def __iter__(self) -> Iterator[Frame]:
        reader = _Reader(self._source, self._depth)
        self._readers.append(reader)
        try:
            while (item := reader.items.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
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


class _Reader:
    """The thread and its bounded queue: frames, then an exception if there was one, then None."""

    def __init__(self, source: Source, depth: int) -> None:
        self.items: queue.Queue[Frame | BaseException | None] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), name="agvas-prefetch", daemon=True)
        self._thread.start()

    def _run(self, source: Source) -> None:
        frames: Iterator[Frame] = iter(())
        try:
            frames = iter(source)
            for frame in frames:
                self.items.put(frame)
                if self._stopped.is_set():
                    break
        except BaseException as error:  # carried over to the consumer, which raises it
            self.items.put(error)
        finally:
            close = getattr(frames, "close", None)
            if close is not None:
                close()  # a video is released in the thread that read it
            self.items.put(None)

    def stop(self) -> None:
        """Ends the thread, which may be waiting for room, and waits for it."""
        self._stopped.set()
        while self._thread.is_alive():
            self._empty()
            self._thread.join(0.01)
        # The consumer, if it still waits in another thread, has to learn of the end.
        self._empty()
        self.items.put(None)

    def _empty(self) -> None:
        try:
            while True:
                self.items.get_nowait()
        except queue.Empty:
            return
