"""The protocol of a source."""

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

from agvas_runtime.images.frame import Frame

__all__ = ["Source"]


class Source(Protocol):
    """Frames, one after the other, and what is known of them beforehand.

    ``with open_source("parts/") as source: ...`` closes it. An image that cannot be used is a Frame with an error; a camera that
    is not there, or stops, raises SourceError from the iterator, after the frames it gave.
    """

    @property
    def total(self) -> int | None:
        """How many frames there will be, None where unknown. For a progress bar: a broken video gives fewer."""
        ...

    @property
    def live(self) -> bool:
        """Frames come whether or not they are taken, and old ones are dropped: do not queue them."""
        ...

    @property
    def notes(self) -> list[str]:
        """What the user should know of how the source was read; may grow while it is read."""
        ...

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None:
        """Frees threads, files and devices. May be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
