"""Metrics that rank pixels or images (paper 4.1, B.3), summed up in one walk from the highest score to the lowest.

Pixels of one score are one threshold, never ordered among themselves: AP, AUROC and the curve are those of scikit-learn.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CHUNK",
    "FALSE_REJECTS",
    "METRICS",
    "Ranking",
    "Run",
    "Step",
    "auroc",
    "caught",
    "iou",
    "make_run",
    "mean_of",
    "merge",
    "open_run",
    "rank",
    "remove_run",
    "run_is_there",
    "save_run",
]


# Sorted scores on disk, and their merge from the highest to the lowest score: exact over all pixels, in bounded memory.
#
# An image leaves one *run*: its scores sorted, apart for normal and for anomalous pixels. ``merge`` walks down all runs at once and
# yields distinct scores with their counts; whatever ranks pixels can be summed up from these.
#
# With N pixels in n runs: N log N comparisons per image and again in the merge, 4 bytes of disk per pixel (8 for an anomalous one),
# and memory for ``chunk`` pixels, however many there are and however many of them tie.


CHUNK = 1 << 22  # pixels in memory at once; about 0.3 GB with what is computed from them

Float = NDArray[np.float32]
_PARTS = ("normal", "anomalous", "area")


@dataclass(frozen=True)
class Run:
    """Scores of one image, ascending; ``area`` has the size in pixels of the region that each anomalous pixel belongs to."""

    normal: Float
    anomalous: Float
    area: NDArray[np.uint32]


@dataclass(frozen=True)
class Step:
    """Distinct scores, descending, with how many pixels have each."""

    scores: Float  # [K]
    normal: NDArray[np.int64]  # [K]
    anomalous: NDArray[np.int64]  # [K]
    weight: NDArray[np.float64]  # [K], sum of 1 / area over the anomalous pixels


def make_run(scores: Float, truth: NDArray[np.bool_], area: NDArray[np.uint32]) -> Run:
    """The run of one image.

    Args:
        scores: float32 [H, W], finite.
        truth: bool [H, W].
        area: [H, W], size of the region at each anomalous pixel; not read elsewhere.
    """
    anomalous = scores[truth]
    order = np.argsort(anomalous, kind="stable")
    return Run(np.sort(scores[~truth]), anomalous[order], area[truth][order].astype(np.uint32))


def save_run(stem: Path, run: Run) -> None:
    """Writes ``stem``.normal.npy and so on; memory-mapped when opened."""
    for part in _PARTS:
        np.save(_file(stem, part), getattr(run, part), allow_pickle=False)


def run_is_there(stem: Path) -> bool:
    """Whether all parts of a run are on disk."""
    return all(_file(stem, part).is_file() for part in _PARTS)


def open_run(stem: Path) -> Run:
    """A run that stays on disk."""
    normal, anomalous, area = (_mapped(_file(stem, part)) for part in _PARTS)
    return Run(normal, anomalous, area)


def remove_run(stem: Path) -> None:
    """Frees the disk."""
    for part in _PARTS:
        _file(stem, part).unlink(missing_ok=True)


def merge(runs: Sequence[Run], chunk: int = CHUNK) -> Iterator[Step]:
    """All runs as one, from the highest score down, about ``chunk`` pixels at a time."""
    streams: list[tuple[Float, NDArray[np.uint32] | None]] = []
    for run in runs:
        streams += [(run.normal, None), (run.anomalous, run.area)]
    streams = [stream for stream in streams if len(stream[0])]
    ends = [len(scores) for scores, _ in streams]  # what lies before the end is still to come
    while any(ends):
        block = max(1, chunk // sum(end > 0 for end in ends))
        # Everything above the highest of the blocks' first scores is in the blocks: no stream can still hold such a score.
        firsts = [scores[end - block] for (scores, _), end in zip(streams, ends, strict=True) if end > block]
        boundary = max(firsts) if firsts else None
        normal, anomalous, areas = [], [], []
        tied = [0, 0, 0.0]
        for index, (scores, area) in enumerate(streams):
            start, end = max(0, ends[index] - block), ends[index]
            cut = start if boundary is None else start + int(np.searchsorted(scores[start:end], boundary, "right"))
            if area is None:
                normal.append(scores[cut:end])
            else:
                anomalous.append(scores[cut:end])
                areas.append(area[cut:end])
            # Pixels that tie at the boundary may be any number: they are counted on disk, never loaded.
            low = cut if boundary is None else int(np.searchsorted(scores[:cut], boundary, "left"))
            tied[area is not None] += cut - low
            if area is not None:
                tied[2] += sum(float((1.0 / area[at : min(at + block, cut)]).sum()) for at in range(low, cut, block))
            ends[index] = low
        step = _counted(normal, anomalous, areas)
        if len(step.scores):
            yield step
        if boundary is not None:
            yield Step(
                np.array([boundary], np.float32),
                np.array([tied[0]], np.int64),
                np.array([tied[1]], np.int64),
                np.array([tied[2]]),
            )


def _counted(normal: list[Float], anomalous: list[Float], areas: list[NDArray[np.uint32]]) -> Step:
    n = np.sort(np.concatenate(normal)) if normal else np.empty(0, np.float32)
    a = np.concatenate(anomalous) if anomalous else np.empty(0, np.float32)
    order = np.argsort(a, kind="stable")
    a = a[order]
    weights = 1.0 / np.concatenate(areas)[order] if areas else np.empty(0)
    scores = np.unique(np.concatenate([n, a]))  # [K], ascending
    below = np.searchsorted(a, scores, "right")  # [K], anomalous pixels up to each score
    summed = np.concatenate([[0.0], np.cumsum(weights)])
    return Step(
        scores[::-1],
        np.diff(np.searchsorted(n, scores, "right"), prepend=0)[::-1],
        np.diff(below, prepend=0)[::-1],
        np.diff(summed[below], prepend=0.0)[::-1],
    )


def _file(stem: Path, part: str) -> Path:
    return stem.with_name(f"{stem.name}.{part}.npy")


def _mapped(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


# Metrics over the merged runs.


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
