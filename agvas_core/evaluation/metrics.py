"""Metrics that rank pixels or images (paper 4.1, B.3), summed up in one walk from the highest score to the lowest.

Pixels of one score are one threshold, never ordered among themselves: AP, AUROC and the curve are those of scikit-learn.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from agvas_core.evaluation.runs import Run, Step, merge

__all__ = ["FALSE_REJECTS", "METRICS", "Ranking", "auroc", "caught", "iou", "mean_of", "rank"]

METRICS: Final = {
    "image_auroc": "image AUROC",
    "caught_0": "caught at 0 %",
    "caught_5": "caught at 5 %",
    "ap": "AP",
    "f1_max": "F1-Max",
    "iou_ano": "IoU_ano",
    "iou_nor": "IoU_nor",
    "auroc": "AUROC",
    "aupro": "AUPRO",
}
"""Key -> title, in the order of every table. What decides PASS and FAIL comes first."""

FALSE_REJECTS: Final = {"caught_0": 0.0, "caught_5": 0.05}
"""Key -> share of the good images that may be rejected."""

AUPRO_MAX_FPR: Final = 0.3  # Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, sec. 5.2
CURVE_POINTS: Final = 250


@dataclass(frozen=True)
class Ranking:
    """None where a metric does not exist: AP without anomalous pixels, AUROC and AUPRO without either kind."""

    ap: float | None
    f1_max: float | None
    f1_threshold: float | None
    """The lowest score that counts as anomalous where F1 is highest."""
    auroc: float | None
    aupro: float | None
    curve: list[tuple[float, float]]
    """Recall and precision, for drawing; a few hundred points of it."""


def rank(steps: Iterable[Step], *, normal: int, anomalous: int, regions: int) -> Ranking:
    """Metrics of a merge of runs.

    Args:
        steps: distinct scores, descending, over all pixels.
        normal: number of pixels outside of the truth.
        anomalous: number of pixels inside.
        regions: number of connected regions of the truth.
    """
    tp = fp = 0
    pro = 0.0  # sum over regions of the share found, so far
    ap = area = pro_area = best_f1 = 0.0
    best_score: float | None = None
    curve: list[tuple[float, float]] = []
    for step in steps:
        tps = tp + np.cumsum(step.anomalous)  # [K]
        fps = fp + np.cumsum(step.normal)
        pros = pro + np.cumsum(step.weight)
        if anomalous:
            precision = tps / (tps + fps)
            ap += float(np.sum(step.anomalous / anomalous * precision))
            f1 = 2.0 * tps / (tps + fps + anomalous)
            top = int(np.argmax(f1))
            if f1[top] > best_f1:
                best_f1, best_score = float(f1[top]), float(step.scores[top])
            curve += _curve_points(tp, tps, precision, anomalous)
        if anomalous and normal:
            # A trapezoid per threshold: the normal pixels of one score see half of the anomalous ones of that score.
            area += float(np.sum((step.normal / normal) * (tps - step.anomalous / 2.0) / anomalous))
            rates = np.concatenate([[fp], fps]) / normal
            shares = np.concatenate([[pro], pros]) / max(regions, 1)
            pro_area += _area_up_to(rates, shares, AUPRO_MAX_FPR)
        tp, fp, pro = int(tps[-1]), int(fps[-1]), float(pros[-1])
    assert (tp, fp) == (anomalous, normal), "the runs do not hold the pixels they were said to hold"
    both = bool(anomalous and normal)
    return Ranking(
        ap=ap if anomalous else None,
        f1_max=best_f1 if anomalous else None,
        f1_threshold=best_score,
        auroc=area if both else None,
        aupro=pro_area / AUPRO_MAX_FPR if both and regions else None,
        curve=curve,
    )


def auroc(scores: NDArray[np.float32], positive: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve of whole images, ties as half; None unless both kinds are there."""
    good, bad = np.sort(scores[~positive]), np.sort(scores[positive])
    run = Run(good, bad, np.ones(len(bad), np.uint32))
    return rank(merge([run]), normal=len(good), anomalous=len(bad), regions=len(bad)).auroc


def caught(scores: NDArray[np.float32], positive: NDArray[np.bool_], false_rejects: float) -> float | None:
    """Share of the defective images that are rejected where ``false_rejects`` of the good ones are; None unless both kinds are there.

    The threshold is the quantile 1 - ``false_rejects`` of the good images' scores, interpolated linearly (numpy's default); an image
    is rejected where its score is higher. At 0 that is the highest score of any good image.
    """
    good, bad = scores[~positive], scores[positive]
    if not len(good) or not len(bad):
        return None
    return float((bad > np.quantile(good.astype(np.float64), 1.0 - false_rejects)).mean())


def iou(intersection: int, union: int) -> float:
    """Of one anomalous image (eq. 12); its truth is never empty, so neither is the union."""
    return intersection / union


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of those that exist; None where none does."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _area_up_to(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """Trapezoids under y(x) for x up to ``limit``, the last one cut where it crosses; ``x`` ascends."""
    if x[0] >= limit:
        return 0.0
    inside = int(np.searchsorted(x, limit, "right"))  # x[:inside] <= limit
    area = float(np.sum(np.diff(x[:inside]) * (y[1:inside] + y[: inside - 1]) / 2.0))
    if inside < len(x):
        at_limit = y[inside - 1] + (y[inside] - y[inside - 1]) * (limit - x[inside - 1]) / (x[inside] - x[inside - 1])
        area += float((limit - x[inside - 1]) * (at_limit + y[inside - 1]) / 2.0)
    return area


def _curve_points(
    before: int, tps: NDArray[np.int64], precision: NDArray[np.float64], anomalous: int
) -> list[tuple[float, float]]:
    """The points at which recall reaches another 1 / CURVE_POINTS."""
    cells = np.concatenate([[before], tps]) * CURVE_POINTS // anomalous
    at = np.flatnonzero(np.diff(cells))
    return [(float(tps[index] / anomalous), float(precision[index])) for index in at]
