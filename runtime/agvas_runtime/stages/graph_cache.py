"""A cache of what is expensive to make for one frame size: execution contexts, captured graphs, tables."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

__all__ = ["GraphCache"]

MOST: Final = 8
"""Kept at once; a line has one size of frame, a folder of photographs a few."""
AT_COMING: Final = 2
"""Made when the key comes again: pictures of ever new sizes are not prepared for, for nothing."""
REMEMBERED: Final = 1000

T = TypeVar("T")


class GraphCache(Generic[T]):
    """By key, the most recently used, and with each its key. One thread at a time."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._seen: Counter[Hashable] = Counter()

    def get(self, key: Hashable, make: Callable[[], T]) -> T | None:
        """What ``make`` made for this key, now or before; None where it comes for the first time."""
        if (known := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return known
        if len(self._seen) > REMEMBERED:
            self._seen.clear()
        self._seen[key] += 1
        if self._seen[key] < AT_COMING:
            return None
        while len(self._kept) >= self._most:
            self._kept.popitem(last=False)
        self._kept[key] = made = make()
        return made

    def __len__(self) -> int:
        return len(self._kept)
