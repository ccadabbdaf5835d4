"""Search for the operating point: regions are found once per threshold, and scored for all other settings together.

A region counts by its peak (contract/decision.py), so peaks tell IoU_ano and IoU_nor (eq. 12, 13) at any seed threshold without another
look at the map; the gate then takes whole images away. No least area is searched for: a small defect is a defect, and a recipe may leave it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.decision import OperatingPoint, anomaly_mask, find_candidates

__all__ = ["GATES", "SEEDS", "THRESHOLDS", "Judged", "Scored", "judge", "overlap", "search", "strict_seed", "table"]

Mask = NDArray[np.bool_]
Map = NDArray[np.float32]

# Evenly spaced in logits, for maps are probabilities; seeds go further up, where the peaks of good parts lie.
SEEDS = tuple(float(1 / (1 + np.exp(-logit))) for logit in np.arange(-3.0, 7.01, 0.25))
THRESHOLDS = SEEDS[:25]
GATES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Scored:
    """One image: P float32 [h, w], what is anomalous bool [h, w], the language model's acceptance."""

    score_map: Map
    truth: Mask
    accept: float


@dataclass(frozen=True)
class Judged:
    """What a point does on a set of images; 0 where there is no image of that sort."""

    point: OperatingPoint
    iou_ano: float
    iou_nor: float


def overlap(mask: Mask, truth: Mask) -> float:
    """Eq. 12 of an image with an anomaly; of a good one eq. 13: 1 where the mask is empty, else 0."""
    return float((mask & truth).sum() / (mask | truth).sum()) if truth.any() else float(not mask.any())


def judge(images: Sequence[Scored], point: OperatingPoint) -> Judged:
    """Means over the images with and without an anomaly."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for image in images:
        found[bool(image.truth.any())].append(overlap(anomaly_mask(image.score_map, point, image.accept), image.truth))
    iou_ano, iou_nor = (float(np.mean(found[bad])) if found[bad] else 0.0 for bad in (True, False))
    return Judged(point, iou_ano, iou_nor)


def table(image: Scored, threshold: float) -> Map:
    """``overlap`` at every seed threshold with this threshold, float32 [SEEDS]; the gate left out."""
    window, labels, areas, peaks = find_candidates(image.score_map, threshold)
    truth = int(image.truth.sum())
    hits = np.bincount(labels[image.truth[window]], minlength=len(areas) + 1)[1:]  # [n]
    reached = (peaks > np.array(SEEDS, np.float32)[:, None]).astype(np.float64)  # [SEEDS, n]
    marked, right = reached @ areas, reached @ hits  # [SEEDS], pixels
    return ((right / (truth + marked - right)) if truth else (marked == 0)).astype(np.float32)


def search(images: Sequence[Scored], iou_nor: float) -> Judged:
    """The point of the highest IoU_ano among those that keep ``iou_nor``; if none does, that of the highest IoU_nor.

    Where several are alike it is the plainest: the lowest gate and seed threshold.
    """
    bad = np.array([image.truth.any() for image in images])
    tables = np.stack([[table(image, threshold) for threshold in THRESHOLDS] for image in images])  # [N, T, S]
    open_ = np.array([[image.accept >= gate for gate in GATES] for image in images])  # [N, G]
    ano = np.stack([(tables[bad] * through[bad, None, None]).sum(0) for through in open_.T])  # [G, T, S]
    shut = ~open_.T[:, ~bad, None, None]  # a good image that is refused has an empty mask
    nor = np.stack([np.maximum(tables[~bad], refused).sum(0) for refused in shut])
    ano, nor = ano / max(1, bad.sum()), nor / max(1, (~bad).sum())
    kept = np.minimum(nor, iou_nor - 1e-9)  # more than was asked is worth nothing
    possible = np.array(SEEDS) >= np.array(THRESHOLDS)[:, None]  # [T, S]
    kept = np.where(possible, kept, -1.0)
    best = np.where(kept >= kept.max(), ano, -1.0)
    order = best.swapaxes(1, 2)  # plainest first where alike: gates, then seeds
    gate, seed, threshold = np.unravel_index(int(order.argmax()), order.shape)
    point = OperatingPoint(threshold=THRESHOLDS[threshold], seed_threshold=SEEDS[seed], min_area_fraction=0.0, gate=GATES[gate])
    return Judged(point, float(order[gate, seed, threshold]), float(nor[gate, threshold, seed]))


def strict_seed(images: Sequence[Scored], point: OperatingPoint, iou_nor: float) -> float:
    """The seed threshold at which a share ``iou_nor`` of the good images has an empty mask, with all else as in ``point``.

    It is the order statistic ceil((n + 1) iou_nor) of their highest peaks, so that the share is kept on average over images to come,
    as in conformal prediction; a plain quantile of few images falls short.
    """
    highest = []
    for image in images:
        if not image.truth.any():
            _, _, areas, peaks = find_candidates(image.score_map, point.threshold)
            large = areas >= point.min_area_fraction * image.score_map.size
            highest.append(float(peaks[large].max(initial=0.0)) if image.accept >= point.gate else 0.0)
    if not highest:
        return point.seed_threshold
    rank = min(len(highest), ceil((len(highest) + 1) * iou_nor))
    return min(max(sorted(highest)[rank - 1], point.seed_threshold), 1 - 1e-6)
