"""Overlaps the work on two frames: the first half of the next runs beside the second half of this one.

The first half is a generator (views, vision); the second consumes what it gives (language model, decoder, verdict). A thread runs the
first half ahead by a bounded number of items, whatever frame they belong to: the vision of frame n+1 overlaps the language model of
frame n, and within a frame so do its tiles and scales. Order and results are those of one thread.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from agvas_runtime.sources.prefetch import ReadAhead

__all__ = ["overlapped"]

F = TypeVar("F")
T = TypeVar("T")


@dataclass(frozen=True)
class _Begun(Generic[F]):
    frame: F


@dataclass(frozen=True)
class _Ended:
    error: Exception | None = None


def overlapped(
    frames: Iterable[F], first: Callable[[F], Iterator[T]], *, ahead: int
) -> Generator[tuple[F, Iterator[T]], None, None]:
    """Each frame with the items of its first half, which a thread makes ahead.

    What ``first`` raises is raised by that frame's items; what ``frames`` raises, in place of the next frame. Items that are left
    are dropped before the next frame comes.

    Args:
        ahead: items that are made, or are being made, before they are asked for; at least 1. They are the largest things there are.
    """
    room, over = threading.Semaphore(ahead), threading.Event()

    def events() -> Iterator[_Begun[F] | _Ended | T]:
        taken = iter(frames)
        try:
            for frame in taken:
                yield _Begun(frame)
                error: Exception | None = None
                items = first(frame)
                while True:
                    room.acquire()
                    if over.is_set():
                        return
                    try:
                        item = next(items)
                    except StopIteration:
                        room.release()
                        break
                    except Exception as raised:  # belongs to this frame, and is raised again where the frame is judged
                        room.release()
                        error = raised
                        break
                    yield item
                yield _Ended(error)
        finally:
            close = getattr(taken, "close", None)
            if close is not None:
                close()  # a video is released in the thread that read it

    # So many events are there when each item that is ahead is its frame's only one, between its beginning and its end.
    reader = ReadAhead(events(), 3 * ahead + 1, name="agvas-vision")
    try:
        taken = iter(reader)
        for event in taken:
            assert isinstance(event, _Begun), "a frame's items end before the next frame begins"
            items: Iterator[T] = _until_end(taken, room)
            yield event.frame, items
            with suppress(Exception):  # of items that were not used
                for _ in items:
                    pass
    finally:
        over.set()
        room.release()  # the thread may be waiting for it
        reader.stop()


def _until_end(events: Iterator[object], room: threading.Semaphore) -> Iterator[T]:
    for event in events:
        if isinstance(event, _Ended):
            if event.error is not None:
                raise event.error
            return
        room.release()
        yield event  # type: ignore[misc]
