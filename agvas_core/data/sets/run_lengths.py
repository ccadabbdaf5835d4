"""COCO's run lengths to pixels: how many are off, how many on, and so by turns, column by column.

Compressed, a count is a string of characters of 6 bits (from "0" on): 5 bits of the number, the lowest first, and one that says that more
follow; the highest of the last is the sign. From the third count on it is the difference to the count before the last (COCO API, maskApi.c).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["mask_of_runs", "uncompressed"]

_FIRST = ord("0")


def uncompressed(text: str | bytes) -> list[int]:
    """The counts that a compressed string stands for; raises ValueError where it ends within a number."""
    counts: list[int] = []
    number = bits = 0
    for character in text.encode() if isinstance(text, str) else text:
        value = character - _FIRST
        number |= (value & 0x1F) << bits
        bits += 5
        if not value & 0x20:
            if value & 0x10:
                number -= 1 << bits
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = bits = 0
    if bits:
        raise ValueError("run lengths end within a number")
    return counts


def mask_of_runs(counts: Sequence[int], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """bool [H, W]; raises ValueError where the runs do not fill the image exactly."""
    runs = np.asarray(counts, np.int64)
    if (runs < 0).any() or runs.sum() != shape[0] * shape[1]:
        raise ValueError(f"run lengths cover {int(runs.sum())} of {shape[0] * shape[1]} px")
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(shape[1], shape[0]).T)
