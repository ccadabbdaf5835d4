"""Taking from an iterable in a thread of its own, a bounded number of items ahead of whoever uses them."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["ReadAhead"]

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
