"""Around a source: reading ahead, and stopping after a number of frames."""

import sys
from collections.abc import Iterator
from itertools import islice

from agvas_core.contract.errors import UsageError
from agvas_runtime.frame import Frame
from agvas_runtime.read_ahead import ReadAhead
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
