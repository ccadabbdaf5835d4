"""The logits of all views of one frame, and the results made from them: score map, mask, regions (paper eq. 7 and 8, and the decision rule).

They stay as small as the decoder gave them until all are there; then one pass over the frame enlarges, weighs and adds them up and goes on
to the verdict. The native core does it in one go, NumPy and OpenCV step by step.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.decision import OperatingPoint, image_score
from agvas_core.contract.preprocess import View, enlarge, frame_cells
from agvas_core.contract.prompts import Anchor
from agvas_runtime import native
from agvas_runtime.images.tiling import Blend, Tile
from agvas_runtime.masks.regions import judge_map, native_regions, native_rule
from agvas_runtime.masks.result import Region
from agvas_runtime.stages.protocol import FrameSeen

__all__ = ["FrameLogits", "FrameMap", "Judged", "ano_probability", "anomaly_probability", "seg_probability"]


# From mask logits to the score map P (paper eq. 7 and 8).


Float = NDArray[np.float32]

BLOCK_PX = 1 << 16  # computed block by block, each small enough for a core's cache


def seg_probability(l_seg: Float) -> Float:
    """P_seg = sigmoid(l_seg), eq. 7; logits [H, W] to 0..1."""
    return _sigmoid(l_seg)


def ano_probability(l_ano_nor: Float) -> Float:
    """P_ano of [P_nor, P_ano] = softmax([l_nor, l_ano]), eq. 7, from the difference ``l_ano - l_nor`` [H, W].

    A softmax over two logits is the sigmoid of their difference, and P_nor = 1 - P_ano.
    """
    return _sigmoid(l_ano_nor)


def anomaly_probability(l_seg: Float, l_ano_nor: Float, alpha: float, *, out: Float | None = None) -> Float:
    """P = alpha P_seg + (1 - alpha) P_ano, eq. 8; float32 [H, W] in 0..1.

    ``out`` may be ``l_seg`` itself: a frame of 400 megapixels then needs no third map.
    """
    score_map = np.empty_like(l_seg) if out is None else out
    block = max(1, BLOCK_PX // max(1, l_seg.shape[1]))
    for top in range(0, l_seg.shape[0], block):
        rows = np.s_[top : top + block]
        fused = seg_probability(l_seg[rows]) * np.float32(alpha)
        fused += ano_probability(l_ano_nor[rows]) * np.float32(1.0 - alpha)
        np.minimum(fused, np.float32(1.0), out=score_map[rows])  # the two rounded weights may sum to a hair above one
    return score_map


def _sigmoid(x: Float) -> Float:
    # 1 / (1 + exp(-x)) keeps small probabilities apart, where tanh would round them all to zero; exp(80) still fits float32.
    out = np.clip(x, -80.0, 80.0)
    np.negative(out, out=out)
    cv2.exp(out, out)  # several times faster than NumPy's
    out += np.float32(1.0)
    return np.reciprocal(out, out=out)


class Judged(NamedTuple):
    """What one frame's logits come to."""

    score_map: Float
    """P, float32 [H, W] in 0..1."""
    score: float
    """``contract.decision.image_score`` of it: the highest value, or the mean of a share of the highest."""
    mask: NDArray[np.bool_]
    """M, bool [H, W]."""
    regions: list[Region]
    """Largest first."""


@dataclass(frozen=True)
class _Part:
    """The logits of one tile of one look, cut down to the cells that show it."""

    seg: Float
    """l_seg, [h, w]."""
    rel: Float
    """l_ano - l_nor: the softmax of eq. 7 needs no more than the difference."""
    enlarged: tuple[int, int]
    """Size (h, w) in px that the cells are enlarged to; the tile is its top left corner."""
    size: tuple[int, int]
    tile: Tile
    share: float


class FrameLogits:
    """Collects the decoder's logits of one frame of ``height`` x ``width`` px; ``threads`` of the native core, 0: one per core."""

    def __init__(self, height: int, width: int, threads: int = 0) -> None:
        self.height, self.width, self._threads = height, width, threads
        self._parts: list[_Part] = []

    def add(self, tile: Tile, view: View, layers: Float, size: tuple[int, int], share: float = 1.0) -> None:
        """``share`` times the logits [3, Hm, Wm] of a tile of ``size`` = (h, w) px that was seen as ``view``."""
        (high, wide), enlarged = frame_cells(view, layers.shape[1:], size)
        cells = layers[:, :high, :wide]
        rel = cells[Anchor.ANO] - cells[Anchor.NOR]
        self._parts.append(_Part(np.ascontiguousarray(cells[Anchor.SEG]), rel, enlarged, size, tile, share))

    def score_map(self, alpha: float) -> Float:
        """P, float32 [H, W] in 0..1."""
        if native.core is None:
            return self._score_map(alpha)
        score_map = np.empty((self.height, self.width), np.float32)
        native.core.score_map(self._native(), alpha, 1.0 - alpha, score_map, self._threads)
        return score_map

    def judge(self, alpha: float, point: OperatingPoint, accept: float = 1.0) -> Judged:
        """P, and the mask and regions that the rule makes of it.

        Args:
            accept: the language model's acceptance of the frame, 0..1.
        """
        if native.core is None or point.image_share:
            score_map = self.score_map(alpha)
            return Judged(score_map, image_score(score_map, point), *judge_map(score_map, point, accept))
        score_map = np.empty((self.height, self.width), np.float32)
        mask = np.empty((self.height, self.width), np.bool_)
        rule = native_rule(point, accept, score_map.size)
        score, found = native.core.judge_parts(
            self._native(), alpha, 1.0 - alpha, rule, score_map, mask.view(np.uint8), self._threads
        )
        return Judged(score_map, score, mask, native_regions(found))

    def _native(self) -> list[tuple[object, ...]]:
        return [
            (
                part.seg,
                part.rel,
                part.enlarged,
                (part.tile.rows.start, part.tile.columns.start, *part.size),
                part.share,
                None if part.tile.whole else part.tile.row_weight,
                None if part.tile.whole else part.tile.column_weight,
            )
            for part in self._parts
        ]

    def _score_map(self, alpha: float) -> Float:
        blend = Blend(self.height, self.width, channels=2)
        for part in self._parts:
            maps = [enlarge(cells, part.enlarged, part.size) for cells in (part.seg, part.rel)]
            blend.add(part.tile, maps, part.share)
        l_seg, l_ano_nor = blend.maps
        return anomaly_probability(l_seg, l_ano_nor, alpha, out=l_seg)


class FrameMap:
    """A score map that an engine made of the whole frame by itself; it takes the place of the logits.

    Args:
        seen: under ``point``; where no region counts by that, there is nothing left to do.
    """

    def __init__(self, seen: FrameSeen, point: OperatingPoint) -> None:
        self._seen, self._point = seen, point

    def score_map(self, alpha: float) -> Float:
        """P, float32 [H, W] in 0..1; made with the ``alpha`` of the plan, which is the manifest's."""
        return self._seen.score_map

    def judge(self, alpha: float, point: OperatingPoint, accept: float = 1.0) -> Judged:
        """See ``FrameLogits``."""
        score_map, score, known, anomalous = self._seen[:4]
        if point.image_share:
            score = image_score(score_map, point)
        elif point == self._point and accept == known and not anomalous:
            return Judged(score_map, score, np.zeros(score_map.shape, np.bool_), [])
        return Judged(score_map, score, *judge_map(score_map, point, accept))
