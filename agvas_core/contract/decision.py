"""From a score map to a mask: one rule for the runtime, for training's calibration and for evaluation.

    mask = anomaly_mask(score_map, decision.point("strict"), accept=reply.accept)

Hysteresis: a region is what lies above ``threshold`` and hangs together; it counts where it reaches ``seed_threshold`` somewhere and
is large enough. So the first number draws outlines and the second one makes verdicts, and moving one leaves the other alone: a single
threshold that spares good parts also eats the rims of defects. The paper's M = P > 0.5 (sec. 3.1) is the default: both 0.5.

A product (``agvas fit``) decides by ``image_score`` in place of the highest pixel: the mean of a small share of the highest
pixels, which a single noisy pixel cannot raise. A frame whose image score does not exceed ``seed_threshold`` has no region.
"""

from typing import Any, NamedTuple, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from agvas_core.contract.defaults import BALANCED, STRICT
from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import StrictModel

__all__ = [
    "BALANCED",
    "STRICT",
    "Candidates",
    "Decision",
    "OperatingPoint",
    "anomaly_mask",
    "find_candidates",
    "image_score",
    "mean_of_highest",
    "outline_threshold",
]

SAMPLE = 20_000  # values that are looked at to guess which ones are high

_FLAT = ("threshold", "min_area_fraction")  # what a decision of schema 1 had in place of operating points


class OperatingPoint(StrictModel):
    """How sure a model must be; pixels and shares are of the whole frame."""

    threshold: float = Field(default=0.5, gt=0.0, lt=1.0)  # sec. 3.1
    """Pixels above it belong to a region."""
    seed_threshold: float = Field(default=0.5, gt=0.0, lt=1.0)
    """A region counts where at least one pixel lies above this."""
    min_area_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Regions smaller than this share of the frame do not count."""
    gate: float = Field(default=0.0, ge=0.0, le=1.0)
    """No region counts where the language model's acceptance, the probability that it answers instead of refusing, is below this."""

    image_share: float = Field(default=0.0, ge=0.0, le=0.5)
    """The frame's score is the mean of this share of its highest pixels, and no region counts where that does not exceed
    ``seed_threshold``; ``threshold`` may then lie above it. 0: the score is the highest pixel."""

    @model_validator(mode="after")
    def _seeds_lie_in_regions(self) -> Self:
        if self.seed_threshold < self.threshold and not self.image_share:
            raise ValueError(
                f"seed_threshold {self.seed_threshold} is below threshold {self.threshold}: a region's seed lies in it; raise it to "
                f"{self.threshold} or more"
            )
        return self

    def at(self, threshold: float) -> Self:
        """The same with plain thresholding: every pixel above ``threshold`` is a region's, and every region counts that is large enough."""
        return self.model_copy(update={"threshold": threshold, "seed_threshold": threshold})

    @property
    def plain(self) -> bool:
        """Whether every region has a seed by itself."""
        return self.seed_threshold == self.threshold


class Decision(StrictModel):
    """From logits to a verdict (paper eq. 8), the same for every user of the bundle."""

    alpha: float = Field(default=0.5, ge=0.0, le=1.0)  # eq. 8
    operating_points: dict[str, OperatingPoint] = {BALANCED: OperatingPoint()}
    """By name. ``balanced`` is the default and always there; ``strict`` spares good parts, and comes with calibration."""

    @model_validator(mode="before")
    @classmethod
    def _one_point(cls, given: Any) -> Any:
        """Bundles and checkpoints of schema 1 have one threshold and one least area, and no name for them."""
        if not isinstance(given, dict) or not any(key in given for key in _FLAT) or "operating_points" in given:
            return given
        flat = {key: given[key] for key in _FLAT if key in given}
        if "threshold" in flat:
            flat["seed_threshold"] = flat["threshold"]
        rest = {key: value for key, value in given.items() if key not in _FLAT}
        return rest | {"operating_points": {BALANCED: flat}}

    @model_validator(mode="after")
    def _has_a_default(self) -> Self:
        if BALANCED not in self.operating_points:
            raise ValueError(f"operating_points has {sorted(self.operating_points)}; {BALANCED} is needed: it is the default")
        return self

    def point(self, name: str = BALANCED) -> OperatingPoint:
        """The operating point of that name.

        Raises:
            UsageError: there is none.
        """
        if name not in self.operating_points:
            raise UsageError(
                f"this model has no operating point {name!r}; it has {', '.join(self.operating_points)}: choose one of these, or "
                "calibrate its checkpoint (agvas train --calibrate-only) and export it again"
            )
        return self.operating_points[name]


class Candidates(NamedTuple):
    """The regions above a threshold, before any of them is judged."""

    window: tuple[slice, slice]
    """The rows and columns of the frame that hold all of them."""
    labels: NDArray[np.int32]
    """[h, w], of the window: 0 outside, i + 1 in region i."""
    areas: NDArray[np.int64]
    """Pixels of each, [n]."""
    peaks: NDArray[np.float32]
    """Highest score in each, [n]."""


def find_candidates(score_map: NDArray[np.float32], threshold: float) -> Candidates:
    """Connected regions of the pixels above ``threshold``; pixels that touch at a corner belong together.

    Args:
        score_map: float32 [H, W].
    """
    above = (score_map > threshold).view(np.uint8)
    x, y, width, height = cv2.boundingRect(above)
    window = np.s_[y : y + height, x : x + width]  # anomalies are small: labelling all of a large frame is the slow part
    if width == 0:
        return Candidates(window, np.zeros((0, 0), np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    part = np.ascontiguousarray(above[window])
    count, found, stats, _ = cv2.connectedComponentsWithStats(part, connectivity=8, ltype=cv2.CV_32S)
    labels = np.asarray(found, np.int32)
    peaks = np.zeros(count, np.float32)
    inside = part.view(bool)
    np.maximum.at(peaks, labels[inside], score_map[window][inside])
    return Candidates(window, labels, stats[1:, cv2.CC_STAT_AREA].astype(np.int64), peaks[1:])


def image_score(score_map: NDArray[np.float32], point: OperatingPoint) -> float:
    """The score of a frame, 0..1, of its score map, float32 [H, W]: what the operating point compares with its seed threshold."""
    return mean_of_highest(score_map, point.image_share)


def outline_threshold(point: OperatingPoint, score: float) -> float:
    """The threshold of pixels in a frame with this image score: never so high that a frame which fails has no region."""
    return min(point.threshold, score * (1 - 1e-5)) if point.image_share else point.threshold


def mean_of_highest(values: NDArray[np.float32], share: float) -> float:
    """Mean of the highest ``share`` of ``values``, of one value at least; the highest one where ``share`` is 0."""
    flat = values.ravel()
    count = max(1, round(share * flat.size))
    if count == 1:
        return float(flat.max())
    # Most values are far below: a sample says which, and only the others are sorted. The result does not depend on the sample.
    sample = flat[:: max(1, flat.size // SAMPLE)]
    floor = np.quantile(sample, max(0.0, 1.0 - 2.0 * count / flat.size))
    high = flat[flat >= floor]
    if high.size < count:
        high = flat
    return float(np.partition(high, high.size - count)[high.size - count :].mean(dtype=np.float64))


def anomaly_mask(score_map: NDArray[np.float32], point: OperatingPoint, accept: float = 1.0) -> NDArray[np.bool_]:
    """M of a score map P, bool [H, W].

    Args:
        score_map: float32 [H, W] in 0..1.
        accept: the language model's acceptance of the frame, 0..1.
    """
    if accept < point.gate:
        return np.zeros(score_map.shape, bool)
    if point.image_share:
        score = image_score(score_map, point)
        if score <= point.seed_threshold:
            return np.zeros(score_map.shape, bool)
        point = point.model_copy(update={"threshold": outline_threshold(point, score), "image_share": 0.0})
    if point.plain and point.min_area_fraction == 0:
        return score_map > point.threshold
    mask = np.zeros(score_map.shape, bool)
    if float(score_map.max()) <= point.seed_threshold:  # most good frames end here
        return mask
    window, labels, areas, peaks = find_candidates(score_map, point.threshold)
    counts = (peaks > point.seed_threshold) & (areas >= point.min_area_fraction * score_map.size)
    mask[window] = np.concatenate([[False], counts])[labels]
    return mask
