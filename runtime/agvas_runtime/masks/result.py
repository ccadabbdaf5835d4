"""What comes back for one frame."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RUN_FILE", "Region", "Result", "Verdict"]

RUN_FILE = "run.json"
"""Marks a folder of results: ``--overwrite`` touches no other, and none is read as a folder of parts."""


class Verdict(StrEnum):
    """NO_VERDICT is never PASS."""

    PASS = "PASS"
    FAIL = "FAIL"
    NO_VERDICT = "NO_VERDICT"


@dataclass(frozen=True)
class Region:
    """One connected anomaly, in pixels of the frame."""

    polygon: list[list[int]]
    """Outer contour, [[x, y], ...]."""
    holes: list[list[list[int]]]
    """Inner contours, each [[x, y], ...]."""
    box: tuple[int, int, int, int]
    """x, y, width, height."""
    area_px: int
    centroid: tuple[float, float]
    """x, y."""
    mean_score: float
    max_score: float


@dataclass(frozen=True)
class Result:
    """Mask, verdict and how they came about.

    ``image`` is RGB uint8 [H, W, 3], ``score_map`` float32 [H, W] in 0..1 (P of eq. 8), ``mask`` bool [H, W] (M); all three are
    None when ``verdict`` is NO_VERDICT.
    """

    name: str
    index: int
    verdict: Verdict
    score: float | None
    """Highest value of the score map."""
    operating_point: str
    """Which of the bundle's: ``balanced``, ``strict``; ``threshold`` where the caller named one."""
    threshold: float
    """Pixels above it belong to a region,"""
    seed_threshold: float
    """which counts where it reaches this."""
    prompt: str
    """The instruction as the model read it."""
    bundle: str
    """Name and first 12 hex digits of the manifest's sha256: ``nano@0123456789ab``."""
    regions: list[Region] = field(default_factory=list)
    image: NDArray[np.uint8] | None = None
    score_map: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None
    error: str | None = None
    tiles: int = 1
    mode: str = "direct"
    """How the model was to answer: ``direct``, ``describe``, ``describe-plus``, ``explain``."""
    answer: str | None = None
    """What the model said; ``[mask]`` stands where its anchors stood. None in direct mode, whose answer is always the same."""
    accept: float | None = None
    """Did the model answer (1) or refuse (0)? In direct mode its own probability of the one against the other."""
    timing: dict[str, float] = field(default_factory=dict)
    """Milliseconds per stage: read, preprocess, vision, lmm, decoder, postprocess, total."""

    def to_dict(self) -> dict[str, Any]:
        """The line of results.jsonl: everything but the arrays."""
        height, width = self.image.shape[:2] if self.image is not None else (None, None)
        return {
            "name": self.name,
            "index": self.index,
            "verdict": str(self.verdict),
            "score": self.score,
            "operating_point": self.operating_point,
            "threshold": self.threshold,
            "seed_threshold": self.seed_threshold,
            "regions": [
                {
                    "polygon": region.polygon,
                    "holes": region.holes,
                    "box": list(region.box),
                    "area_px": region.area_px,
                    "centroid": [round(value, 2) for value in region.centroid],
                    "mean_score": round(region.mean_score, 5),
                    "max_score": round(region.max_score, 5),
                }
                for region in self.regions
            ],
            "width": width,
            "height": height,
            "tiles": self.tiles,
            "prompt": self.prompt,
            "mode": self.mode,
            "answer": self.answer,
            "accept": None if self.accept is None else round(self.accept, 5),
            "bundle": self.bundle,
            "error": self.error,
            "timing_ms": {stage: round(ms, 3) for stage, ms in self.timing.items()},
        }
