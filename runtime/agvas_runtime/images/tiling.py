"""Scales and tiles of a frame, and blending their maps into one.

A frame is seen as a whole at every scale of the bundle, and the maps are averaged. One that is too large for the finest view is cut into
overlapping tiles there as well: tiles see what is too small for one view, but a defect that fills a tile is normal inside it, and every
tile brings its own false alarms. The tiles' part of the mean grows with the frame, as whole views see less and less of what is small
(docs/experiments.md has the figures). The maps of the tiles are put together without seams.

Along each axis the tiles' weights are differences of neighbouring steps that rise from 0 to 1 as a raised cosine over the
overlap. They telescope, so they sum to one at every pixel whatever the sizes are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.manifest import TilingSpec
from agvas_core.contract.preprocess import ViewSpec

__all__ = ["Blend", "Scale", "Tile", "Tiles", "plan_scales", "plan_tiles"]

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Tile:
    """One tile: where it lies and what it weighs."""

    rows: slice
    columns: slice
    row_weight: Float
    """[h]"""
    column_weight: Float
    """[w]"""
    whole: bool
    """It is the whole frame, and weighs one everywhere."""


@dataclass(frozen=True)
class Tiles:
    """Tiles of one frame, all of ``size`` = (h, w) px; ``tops`` and ``lefts`` are the first pixels of each row and column of them."""

    height: int
    width: int
    size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def __iter__(self) -> Iterator[Tile]:
        height, width = self.size
        row_weights = _weights(self.tops, height)
        column_weights = _weights(self.lefts, width)
        for (top, row_weight), (left, column_weight) in product(
            zip(self.tops, row_weights, strict=True), zip(self.lefts, column_weights, strict=True)
        ):
            yield Tile(slice(top, top + height), slice(left, left + width), row_weight, column_weight, len(self) == 1)


@dataclass(frozen=True)
class Scale:
    """A frame at one scale, whole or in tiles."""

    view: ViewSpec
    tiles: Tiles
    share: float
    """Its part of the mean over looks; they sum to one."""


def plan_scales(height: int, width: int, views: Sequence[ViewSpec], tiling: TilingSpec, *, enabled: bool = True) -> list[Scale]:
    """How a ``height`` x ``width`` px frame is seen under ``views``, finest first: its tiles if it needs them, then the whole."""
    whole = Tiles(height, width, (height, width), (0,), (0,))
    if not enabled or tiling.excess(views[0], height, width) <= 1:
        return [Scale(view, whole, 1 / len(views)) for view in views]
    weights = [1 / max(1.0, tiling.excess(view, height, width)) for view in views]
    total = 1 + sum(weights)
    wholes = [Scale(view, whole, weight / total) for view, weight in zip(views, weights, strict=True)]
    return [Scale(views[0], plan_tiles(height, width, views[0], tiling), 1 / total), *wholes]


def plan_tiles(height: int, width: int, view: ViewSpec, tiling: TilingSpec) -> Tiles:
    """Tiles of a ``height`` x ``width`` px frame, each shrunk by no more than is allowed; one, the frame itself, where it is small enough."""
    if tiling.excess(view, height, width) <= 1:
        return Tiles(height, width, (height, width), (0,), (0,))
    longest = max(1, floor(view.size_px * tiling.max_downscale))  # side of a square tile that is shrunk by just max_downscale
    tall, tops = _cut(height, longest, tiling.overlap)
    wide, lefts = _cut(width, longest, tiling.overlap)
    return Tiles(height, width, (tall, wide), tops, lefts)


class Blend:
    """Weighted sum of maps at frame size; holds one float32 [H, W] per channel and nothing else."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.maps: list[Float] = [np.zeros((height, width), np.float32) for _ in range(channels)]

    def add(self, tile: Tile, values: Sequence[Float], share: float = 1.0) -> None:
        """Adds ``share`` times the maps of one tile, one [h, w] per channel; they are overwritten."""
        for whole, part in zip(self.maps, values, strict=True):
            if share != 1.0:
                part *= np.float32(share)
            if not tile.whole:
                part *= tile.row_weight[:, None]
                part *= tile.column_weight
            whole[tile.rows, tile.columns] += part


def _cut(length: int, longest: int, overlap: float) -> tuple[int, tuple[int, ...]]:
    """Side and starts of equal tiles no longer than ``longest`` that cover ``length`` exactly."""
    if length <= longest:
        return length, (0,)
    count = max(2, ceil((length / longest - overlap) / (1 - overlap)))
    side = min(longest, ceil(length / (count - (count - 1) * overlap)))
    return side, tuple(round(index * (length - side) / (count - 1)) for index in range(count))


def _weights(starts: tuple[int, ...], side: int) -> list[Float]:
    """Weight along one axis of each tile, [side]; they sum to one at every pixel."""
    weights: list[Float] = []
    for index, start in enumerate(starts):
        centres = start + 0.5 + np.arange(side, dtype=np.float64)
        weight = np.ones(side, np.float64)
        if index > 0:
            weight = _step(centres, start, starts[index - 1] + side)
        if index + 1 < len(starts):
            weight = weight - _step(centres, starts[index + 1], start + side)
        weights.append(weight.astype(np.float32))
    return weights


def _step(x: NDArray[np.float64], begin: int, end: int) -> NDArray[np.float64]:
    """Rises from 0 at ``begin`` to 1 at ``end`` as a raised cosine; at once where the two are the same."""
    return 0.5 - 0.5 * np.cos(np.pi * np.clip((x - begin) / max(end - begin, 1e-9), 0.0, 1.0))
