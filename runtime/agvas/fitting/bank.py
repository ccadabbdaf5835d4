"""The memory bank: which cells of the good images are kept, and how far other cells are from them. NumPy alone.

    rows = choose_rows(embeddings, 2000, rng)          # a coreset: rows that leave no good cell far from all of them
    deep, joint = distances(embedding, rows, colour=3)
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["BANK_ROWS", "choose_rows", "distances"]

Float = NDArray[np.float32]

BANK_ROWS: Final = 2000
CANDIDATES: Final = 12_000
"""Cells among which the bank's rows are chosen; drawn evenly from all images, so the time does not grow with their number."""
PROJECTED: Final = 24
"""Dimensions in which rows are compared while they are chosen: distances of random projections are near the true ones."""
PIECE: Final = 1024  # cells whose distances are made at once: their products stay in the CPU's cache


def choose_rows(
    embeddings: Sequence[NDArray[np.floating]], rows: int, rng: np.random.Generator, first: Float | None = None
) -> Float:
    """Up to ``rows`` cells by greedy k-center selection: each next one is the candidate that is farthest from all chosen.

    Args:
        embeddings: of images, [h, w, D] each.
        first: rows of an earlier bank [M, D], which are candidates, too.

    Returns:
        float32 [M, D], M <= ``rows``.
    """
    share = max(1, CANDIDATES // max(1, len(embeddings)))
    drawn = []
    for embedding in embeddings:
        cells = embedding.reshape(-1, embedding.shape[-1])
        drawn.append(cells[rng.permutation(len(cells))[:share]])
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


def distances(embedding: NDArray[np.floating], bank: Float, colour: int) -> tuple[Float, Float]:
    """Distance of each cell to its nearest row, as the graph ``references`` computes it: deep channels, and all.

    Args:
        embedding: [h, w, D], the last ``colour`` channels are colour.
        bank: [M, D].

    Returns:
        Euclidean distances, float32 [h, w] each.
    """
    shape, width = embedding.shape[:2], embedding.shape[2] - colour
    cells = embedding.reshape(-1, embedding.shape[2]).astype(np.float32)
    deep = np.empty(len(cells), np.float32)
    joint = np.empty(len(cells), np.float32)
    of_deep = np.square(bank[:, :width]).sum(1)
    of_colour = np.square(bank[:, width:]).sum(1)
    for start in range(0, len(cells), PIECE):
        piece = cells[start : start + PIECE]
        squares = of_deep - 2 * (piece[:, :width] @ bank[:, :width].T)  # [N, M], less the cell's own length
        own = np.square(piece[:, :width]).sum(1)
        deep[start : start + PIECE] = squares.min(1) + own
        squares += of_colour
        squares -= 2 * (piece[:, width:] @ bank[:, width:].T)
        joint[start : start + PIECE] = squares.min(1) + own + np.square(piece[:, width:]).sum(1)
    return (
        np.sqrt(np.maximum(deep, 0)).reshape(shape),
        np.sqrt(np.maximum(joint, 0)).reshape(shape),
    )
