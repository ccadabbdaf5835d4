"""Results of an evaluation: per category, per set, over all sets."""

from dataclasses import dataclass, field
from typing import Any

from agvas_core.evaluation.image_score import ImageRecord, Unusable
from agvas_core.evaluation.metrics import METRICS, mean_of

__all__ = ["CategoryResult", "Evaluation", "SetResult"]

Metrics = dict[str, float | None]


@dataclass(frozen=True)
class CategoryResult:
    """Metrics of one category; None where one does not exist, which is neither 0 nor 1."""

    name: str
    metrics: Metrics
    f1_threshold: float | None
    curve: list[tuple[float, float]]
    records: tuple[ImageRecord, ...]
    left_out: tuple[Unusable, ...] = ()
    checks: dict[str, float] = field(default_factory=dict)
    """"ap scikit-learn" -> the other library's figure."""

    @property
    def anomalous(self) -> int:
        """Number of images with a defect."""
        return sum(record.anomalous for record in self.records)

    @property
    def answered(self) -> float | None:
        """Share of the generated answers that have anchors; None where none was generated."""
        return mean_of(None if record.answered is None else float(record.answered) for record in self.records)

    def to_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "category": self.name,
            "images": len(self.records),
            "anomalous": self.anomalous,
            "metrics": self.metrics,
            "answers_with_anchors": self.answered,
            "f1_threshold": self.f1_threshold,
            "checks": self.checks,
            "left_out": [{"name": item.name, "reason": item.reason} for item in self.left_out],
            "curve": [[round(recall, 5), round(precision, 5)] for recall, precision in self.curve],
            "per_image": [
                {"name": one.name, "specie": one.specie, "iou": one.iou, "score": one.rank_score, "mask_px": one.mask_px}
                | ({} if one.unlike is None else {"unlike": one.unlike})
                | ({} if one.answer is None else {"answer": one.answer})
                for one in self.records
            ],
        }


@dataclass(frozen=True)
class SetResult:
    """The categories of one set."""

    name: str
    layout: str
    categories: tuple[CategoryResult, ...]
    notes: tuple[str, ...] = ()
    """What was found in its masks that a reader should know."""

    @property
    def mean(self) -> Metrics:
        """Over the categories that have the metric (4.1: per category, then the mean)."""
        return {key: mean_of(category.metrics[key] for category in self.categories) for key in METRICS}

    @property
    def images(self) -> int:
        """Images scored."""
        return sum(len(category.records) for category in self.categories)


@dataclass(frozen=True)
class Evaluation:
    """All sets, and how they were scored."""

    subject: str
    """Model or predictions."""
    protocol: dict[str, Any]
    threshold: float | None
    """M = P > threshold; None where the model's own masks count, by its own operating point."""
    masks: str
    """What makes the masks, in words."""
    sets: tuple[SetResult, ...]
    facts: dict[str, Any]
    """Version, date, limit, seed and the like."""
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> Metrics:
        """Over the sets that have the metric."""
        return {key: mean_of(one.mean[key] for one in self.sets) for key in METRICS}

    def to_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "subject": self.subject,
            "protocol": self.protocol,
            "threshold": self.threshold,
            "masks": self.masks,
            **self.facts,
            "notes": list(self.notes),
            "mean_of_sets": self.mean,
            "sets": [
                {
                    "set": one.name,
                    "layout": one.layout,
                    "mean": one.mean,
                    "categories": [category.to_dict() for category in one.categories],
                }
                for one in self.sets
            ],
        }
