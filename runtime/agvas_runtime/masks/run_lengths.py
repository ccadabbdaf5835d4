"""A mask as COCO's compressed run lengths, which pycocotools and most annotation tools read.

Counts of pixels off, on, off, ... down the columns; each is written as its difference from the one two before it, five bits a
character (cocoapi, maskApi.c, rleToString).
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["coco_run_lengths"]


def coco_run_lengths(mask: NDArray[np.bool_]) -> dict[str, object]:
    """``{"size": [height, width], "counts": "..."}`` of a mask [H, W]."""
    height, width = mask.shape
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    if flat.size and flat[0]:
        counts.insert(0, 0)  # the first count is of pixels off
    return {"size": [height, width], "counts": _text(counts)}


def _text(counts: list[int]) -> str:
    letters: list[str] = []
    for index, count in enumerate(counts):
        left = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = left & 0x1F
            left >>= 5  # keeps the sign
            more = left != (-1 if bits & 0x10 else 0)
            letters.append(chr(48 + (bits | 0x20 if more else bits)))
    return "".join(letters)
