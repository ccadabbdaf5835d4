"""The memory bank: which cells of the good images are kept.

rows = choose_rows(cells, 2000, rng)          # a coreset: rows that leave no good cell far from all of them
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["BANK_ROWS", "CANDIDATES", "choose_rows"]

Float = NDArray[np.float32]

BANK_ROWS: Final = 2000
CANDIDATES: Final = 12_000
"""Cells among which the bank's rows are chosen; drawn evenly from all images, so the time does not grow with their number."""
PROJECTED: Final = 24
"""Dimensions in which rows are compared while they are chosen: distances of random projections are near the true ones."""


def choose_rows(cells: Sequence[Float], rows: int, rng: np.random.Generator, first: Float | None = None) -> Float:
    """Up to ``rows`` cells by greedy k-center selection: each next one is the candidate that is farthest from all chosen.

    Args:
        cells: of each image, [N, D].
        first: rows of an earlier bank [M, D], which are candidates, too.

    Returns:
        float32 [M, D], M <= ``rows``.
    """
    share = max(1, CANDIDATES // max(1, len(cells)))
    drawn = [each[rng.permutation(len(each))[:share]] for each in cells]
    candidates = np.concatenate([*([] if first is None else [first]), *drawn]).astype(np.float32)
    if len(candidates) <= rows:
        return candidates
    projection = rng.standard_normal((candidates.shape[1], PROJECTED)).astype(np.float32) / np.float32(PROJECTED**0.5)
    points = candidates @ projection  # [N, 24]
    lengths = np.square(points).sum(1)
    across = np.ascontiguousarray(points.T)
    chosen = [0]
    nearest = np.full(len(points), np.inf, np.float32)
    for _ in range(rows - 1):
        latest = chosen[-1]
        nearest = np.minimum(nearest, lengths - 2 * (points[latest] @ across) + lengths[latest])
        chosen.append(int(nearest.argmax()))
    return candidates[chosen]
