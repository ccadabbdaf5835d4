"""The memory bank: which cells of the good images are kept.

rows = choose_rows(cells, 2000, rng)          # a coreset: rows that leave no good cell far from all of them
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["BANK_ROWS", "CANDIDATES", "choose_rows", "colour_weight_of", "nearest"]

Float = NDArray[np.float32]

BANK_ROWS: Final = 2000
CANDIDATES: Final = 12_000
"""Cells among which the bank's rows are chosen; drawn evenly from all images, so the time does not grow with their number."""
PROJECTED: Final = 24
"""Dimensions in which rows are compared while they are chosen: distances of random projections are near the true ones."""


def choose_rows(
    cells: Sequence[Float],
    rows: int,
    rng: np.random.Generator,
    first: Float | None = None,
    *,
    colour: int,
    colour_weight: float,
) -> Float:
    """Up to ``rows`` cells by greedy k-center selection: each next one is the candidate that is farthest from all chosen.

    Args:
        cells: of each image, [N, D].
        first: rows of an earlier bank [M, D], which are candidates, too.

        colour: columns at the end that are colour.
        colour_weight: of their squared distance.

    Returns:
        float32 [M, D], M <= ``rows``.
    """
    share = max(1, CANDIDATES // max(1, len(cells)))
    drawn = [each[rng.permutation(len(each))[:share]] for each in cells]
    candidates = np.concatenate([*([] if first is None else [first]), *drawn]).astype(np.float32)
    if len(candidates) <= rows:
        return candidates
    projection = rng.standard_normal((candidates.shape[1], PROJECTED)).astype(np.float32) / np.float32(PROJECTED**0.5)
    projection[len(projection) - colour :] *= np.float32(colour_weight**0.5)
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


SPREAD_IMAGES: Final = 4
SPREAD_CELLS: Final = 800
SPREAD_QUANTILE: Final = 0.9
WEIGHT_RANGE: Final = (0.3, 10.0)


def colour_weight_of(cells: Sequence[Float], rng: np.random.Generator, *, colour: int) -> float:
    """Weight of the squared colour distance: heavy where the colour of good images stays the same, light where it varies.

    It is the ratio of two spreads, of the deep and of the colour channels: distances from cells of one image to the nearest of
    the others'.

    Args:
        cells: of each image, [N, D], the last ``colour`` columns are colour.
    """
    width = cells[0].shape[1] - colour
    spreads = []
    drawn = [(rng.permutation(len(each))[:SPREAD_CELLS], rng.permutation(len(each))[:SPREAD_CELLS]) for each in cells]
    for columns in (slice(0, width), slice(width, None)):
        far = []
        for index in range(min(len(cells), SPREAD_IMAGES)):
            others = [
                each[rest, columns] for number, (each, (_, rest)) in enumerate(zip(cells, drawn, strict=True)) if number != index
            ]
            if not others:
                others = [cells[index][drawn[index][1], columns]]
            bank = np.concatenate(others)
            bank = bank[:: max(1, len(bank) // SPREAD_CELLS)]
            far.append(nearest(cells[index][drawn[index][0], columns], bank))
        spreads.append(float(np.quantile(np.concatenate(far), SPREAD_QUANTILE)))
    return float(np.clip(spreads[0] / max(spreads[1], 1e-3), *WEIGHT_RANGE))


def nearest(cells: Float, bank: Float) -> Float:
    """Euclidean distance of each cell [N, C] to its nearest row [M, C]: [N]."""
    squares = np.square(bank).sum(1) - 2 * (cells @ bank.T)
    return np.asarray(np.sqrt(np.maximum(squares.min(1) + np.square(cells).sum(1), 0)), np.float32)
