"""--cross-check: every metric once more, by scikit-learn and torchmetrics, over the same pixels.

This reads all scores of a category into memory, about 60 bytes a pixel; the evaluation itself does not.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ParityError, SetupError
from agvas_core.evaluation.image_score import ImageRecord, image_scores
from agvas_core.evaluation.metrics import AUPRO_MAX_FPR, METRICS, Run, mean_of

__all__ = ["TOLERANCE", "available", "compare", "recompute"]

TOLERANCE: Final = 1e-6
AUPRO_TOLERANCE: Final = 1e-5  # the reference sums the weights of millions of pixels one after the other

LIBRARIES: Final = {"scikit-learn": "sklearn", "torchmetrics": "torchmetrics"}


def available() -> list[str]:
    """The libraries that are installed.

    Raises:
        SetupError: scikit-learn is not; without it there would be nothing to compare most metrics with.
    """
    found = [name for name, module in LIBRARIES.items() if importlib.util.find_spec(module) is not None]
    if "scikit-learn" not in found:
        raise SetupError("--cross-check needs scikit-learn (and takes torchmetrics): pip install scikit-learn torchmetrics")
    return found


def recompute(runs: Sequence[Run], records: Sequence[ImageRecord]) -> dict[str, float]:
    """``"ap scikit-learn"`` -> figure, for every metric that exists and every library that knows it."""
    libraries = available()
    normal = np.concatenate([run.normal for run in runs])
    anomalous = np.concatenate([run.anomalous for run in runs])
    weights = 1.0 / np.concatenate([run.area for run in runs])
    figures: dict[str, float] = {}
    if len(anomalous):
        scores = np.concatenate([normal, anomalous])
        labels = np.repeat([0, 1], [len(normal), len(anomalous)])
        figures |= _pixels_sklearn(labels, scores)
        if len(normal):
            figures["aupro scikit-learn"] = _aupro_sklearn(labels, scores, np.concatenate([np.ones(len(normal)), weights]))
        if "torchmetrics" in libraries:
            figures |= _pixels_torchmetrics(labels, scores)
    figures |= _images_sklearn(records)
    return figures


def compare(where: str, metrics: dict[str, float | None], figures: dict[str, float]) -> None:
    """Compares our metrics with the others' figures.

    Raises:
        ParityError: one is off by more than the tolerance.
    """
    for name, theirs in figures.items():
        key, _, library = name.partition(" ")
        ours = metrics[key]
        tolerance = AUPRO_TOLERANCE if key == "aupro" else TOLERANCE
        if ours is None or not abs(ours - theirs) <= tolerance:
            raise ParityError(
                f"{METRICS[key]} of {where} is {ours}, {library} says {theirs}; {tolerance:g} apart is allowed: one of them is wrong, "
                "please report both"
            )


def _pixels_sklearn(labels: NDArray[Any], scores: NDArray[np.float32]) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    figures = {"ap scikit-learn": float(average_precision_score(labels, scores)), "f1_max scikit-learn": float(f1.max())}
    if labels.min() != labels.max():
        figures["auroc scikit-learn"] = float(roc_auc_score(labels, scores))
    return figures


def _aupro_sklearn(labels: NDArray[Any], scores: NDArray[np.float32], weights: NDArray[np.float64]) -> float:
    """With 1 / area as the weight of an anomalous pixel, the true positive rate is the mean share over all regions."""
    from sklearn.metrics import auc, roc_curve

    fpr, pro, _ = roc_curve(labels, scores, sample_weight=weights)
    x = np.append(fpr[fpr < AUPRO_MAX_FPR], AUPRO_MAX_FPR)
    # np.interp would take any of the values at a vertical step; only the limit itself is interpolated.
    y = np.append(pro[fpr < AUPRO_MAX_FPR], _at(fpr, pro, AUPRO_MAX_FPR))
    return float(auc(x, y)) / AUPRO_MAX_FPR


def _at(fpr: NDArray[np.float64], pro: NDArray[np.float64], limit: float) -> float:
    after = int(np.searchsorted(fpr, limit, "left"))
    if fpr[after] == limit:
        return float(pro[after])
    before = after - 1
    return float(pro[before] + (pro[after] - pro[before]) * (limit - fpr[before]) / (fpr[after] - fpr[before]))


def _pixels_torchmetrics(labels: NDArray[Any], scores: NDArray[np.float32]) -> dict[str, float]:
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    # Torchmetrics puts logits (anything outside of 0..1) through a sigmoid, which may tie what was apart.
    if scores.min() < 0 or scores.max() > 1:
        return {}
    target, preds = torch.from_numpy(labels), torch.from_numpy(scores)
    figures = {"ap torchmetrics": float(binary_average_precision(preds, target))}
    if labels.min() != labels.max():
        figures["auroc torchmetrics"] = float(binary_auroc(preds, target))
    return figures


def _images_sklearn(records: Sequence[ImageRecord]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, roc_auc_score

    figures = {}
    overlap = mean_of(record.iou_reference for record in records)
    if overlap is not None:
        figures["iou_ano scikit-learn"] = overlap
    good = [record for record in records if not record.anomalous]
    if good:
        empty = [not record.flagged for record in good]
        figures["iou_nor scikit-learn"] = float(accuracy_score([True] * len(good), empty))
    labels = [record.anomalous for record in records]
    if len(set(labels)) == 2:
        figures["image_auroc scikit-learn"] = float(roc_auc_score(labels, image_scores(records)))
    return figures
