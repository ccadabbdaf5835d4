"""Score maps -> PASS or FAIL by the rules of a recipe.

One number says how close a part is to being rejected: its reject score, the lowest seed threshold at which it would still pass. A part
is FAIL exactly where the reject score lies above the seed threshold, so calibration and drift monitor look at the same number.
Where no region is as large or as sure as the rules say, the reject score is the frame's own score, at most the threshold that draws
outlines: it is never set to 0, so drift can be seen on good parts, too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.decision import Candidates, OperatingPoint, find_candidates, image_score, outline_threshold
from agvas_runtime.line.recipe.recipe import ANY, Recipe, Rule, filled
from agvas_runtime.masks.regions import find_regions
from agvas_runtime.masks.result import Region, Verdict

__all__ = ["Finding", "Judge", "Judgement", "Looked"]

Mask = NDArray[np.bool_]


class Looked(NamedTuple):
    """What the model says of one kind on one frame."""

    score_map: NDArray[np.float32]
    """P, float32 [H, W] in 0..1."""
    accept: float
    """The language model's acceptance, 0..1."""


@dataclass(frozen=True)
class Finding:
    """A region that counts in at least one rule."""

    kind: str
    roi: str
    rules: tuple[str, ...]
    region: Region
    length_px: float
    width_px: float

    def to_dict(self, mm_per_px: float | None = None) -> dict[str, Any]:
        """As the ledger and every sink have it; millimetres where the recipe knows them."""
        sizes = {"area_px": self.region.area_px, "length_px": round(self.length_px, 2), "width_px": round(self.width_px, 2)}
        if mm_per_px is not None:
            sizes |= {
                "area_mm2": round(self.region.area_px * mm_per_px**2, 5),
                "length_mm": round(self.length_px * mm_per_px, 4),
                "width_mm": round(self.width_px * mm_per_px, 4),
            }
        return {
            "kind": self.kind,
            "roi": self.roi,
            "rules": list(self.rules),
            "box": list(self.region.box),
            **sizes,
            "max_score": round(self.region.max_score, 5),
            "mean_score": round(self.region.mean_score, 5),
            "polygon": self.region.polygon,
            **({"holes": self.region.holes} if self.region.holes else {}),
        }


@dataclass(frozen=True)
class Judgement:
    """PASS or FAIL, and why."""

    verdict: Verdict
    reject_score: float
    """0..1; the part is FAIL where it lies above the seed threshold."""
    findings: tuple[Finding, ...]
    broken: tuple[str, ...]
    """Names of the rules that the part breaks."""
    mask: Mask
    """Pixels of all findings, bool [H, W]."""


class Judge:
    """The rules of one recipe on frames of one size. Threads may share it."""

    def __init__(self, recipe: Recipe, point: OperatingPoint, height: int, width: int) -> None:
        self.recipe, self.point = recipe, point
        self._floor = min(point.threshold, point.seed_threshold)  # no region counts at this score or below
        ignored = filled(recipe.ignore, height, width) if recipe.ignore else None
        self._inside = {roi: _inside(recipe, roi, ignored, height, width) for roi in {rule.roi for rule in recipe.rules}}
        self._labels = [rule.name or f"rule {number}" for number, rule in enumerate(recipe.rules, 1)]
        self._sizes = [_sizes(rule, recipe.mm_per_px) for rule in recipe.rules]
        self._shape = (height, width)

    def judge(self, looked: Mapping[str, Looked]) -> Judgement:
        """The verdict on one part, from kind -> what the model says."""
        mask = np.zeros(self._shape, bool)
        findings: list[Finding] = []
        reject_score, broken = 0.0, [False] * len(self.recipe.rules)
        for kind, (score_map, accept) in looked.items():
            if accept < self.point.gate:
                reject_score = max(reject_score, min(image_score(score_map, self.point), self._floor))
                continue
            for roi, inside in self._inside.items():
                rules = [number for number, rule in enumerate(self.recipe.rules) if rule.roi == roi and rule.kind in (ANY, kind)]
                if not rules:
                    continue
                within = score_map if inside is None else np.where(inside, score_map, np.float32(0))
                raw = image_score(within, self.point)
                if raw <= self._floor:  # most good parts
                    reject_score = max(reject_score, raw)
                    continue
                shapes = _Shapes(find_candidates(within, outline_threshold(self.point, raw)))
                counted: dict[int, list[str]] = {}  # candidate -> rules
                for number in rules:
                    fits = self._fits(number, shapes)
                    kth = _kth(shapes.candidates.peaks[fits], self.recipe.rules[number].max_count)
                    score = min(raw, kth if kth is not None else self._floor)
                    reject_score = max(reject_score, score)
                    broken[number] |= score > self.point.seed_threshold
                    if raw <= self.point.seed_threshold:
                        continue
                    for index in np.flatnonzero(fits & (shapes.candidates.peaks > self.point.seed_threshold)):
                        counted.setdefault(int(index), []).append(self._labels[number])
                findings += _findings(kind, roi, shapes, counted, within, mask)
        return Judgement(
            Verdict.FAIL if any(broken) else Verdict.PASS,
            reject_score,
            tuple(findings),
            tuple(label for label, is_broken in zip(self._labels, broken, strict=True) if is_broken),
            mask,
        )

    def _fits(self, number: int, shapes: "_Shapes") -> Mask:
        """Which candidates are as large, and as sure, as a rule says, [n]; the seed threshold aside."""
        rule, (area_px, length_px, width_px) = self.recipe.rules[number], self._sizes[number]
        areas, peaks = shapes.candidates.areas, shapes.candidates.peaks
        fits: Mask = (areas >= max(area_px, self.point.min_area_fraction * math.prod(self._shape))) & (peaks > rule.min_score)
        if length_px or width_px:
            fits = fits & (shapes.extents[:, 0] >= length_px) & (shapes.extents[:, 1] >= width_px)
        return fits


class _Shapes:
    """Candidates, and how long and wide they are, which is worked out only where a rule asks."""

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates
        self._extents: NDArray[np.float64] | None = None

    @property
    def extents(self) -> NDArray[np.float64]:
        """Length and width in px, [n, 2]."""
        if self._extents is None:
            labels = self.candidates.labels
            rows, columns = np.nonzero(labels)
            order = np.argsort(labels[rows, columns], kind="stable")
            points = np.stack([columns[order], rows[order]], axis=1).astype(np.float32)  # [P, 2], grouped by candidate
            groups = np.split(points, np.cumsum(self.candidates.areas)[:-1]) if len(self.candidates.areas) else []
            self._extents = np.array([_extent(group) for group in groups]).reshape(-1, 2)
        return self._extents


def _extent(points: NDArray[np.float32]) -> tuple[float, float]:
    """Longer and shorter side of the tightest rectangle around pixels; one pixel is 1 px long and wide."""
    _, sides, _ = cv2.minAreaRect(points)
    return max(sides) + 1.0, min(sides) + 1.0


def _kth(peaks: NDArray[np.float32], allowed: int) -> float | None:
    """The highest seed threshold at which more than ``allowed`` of them still count; None where there are not that many."""
    return float(np.partition(peaks, len(peaks) - allowed - 1)[len(peaks) - allowed - 1]) if len(peaks) > allowed else None


def _inside(recipe: Recipe, roi: str, ignored: Mask | None, height: int, width: int) -> Mask | None:
    """The pixels that count in a ROI; None for all."""
    inside = None if roi == ANY else filled([recipe.rois[roi]], height, width)
    if ignored is None:
        return inside
    return ~ignored if inside is None else inside & ~ignored


def _sizes(rule: Rule, mm_per_px: float | None) -> tuple[float, float, float]:
    """Least area (px), length and width (px) of a rule, 0 where it has none."""
    mm = mm_per_px or 1.0  # a rule in millimetres and a recipe without their size do not pass validation
    area = rule.min_area_px or (rule.min_area_mm2 or 0.0) / mm**2
    return area, rule.min_length_px or (rule.min_length_mm or 0.0) / mm, rule.min_width_px or (rule.min_width_mm or 0.0) / mm


def _findings(
    kind: str, roi: str, shapes: _Shapes, counted: dict[int, list[str]], score_map: NDArray[np.float32], mask: Mask
) -> list[Finding]:
    """The counted candidates as findings; their pixels are added to ``mask``."""
    if not counted:
        return []
    window, labels = shapes.candidates.window, shapes.candidates.labels
    wanted = np.zeros(len(shapes.candidates.areas) + 1, bool)
    wanted[[index + 1 for index in counted]] = True
    part = wanted[labels]
    mask[window] |= part
    origin_y, origin_x = window[0].start, window[1].start
    found = []
    for region in find_regions(part, np.ascontiguousarray(score_map[window])):
        x, y = region.polygon[0]
        index = int(labels[y, x]) - 1
        length, width = shapes.extents[index]
        found.append(Finding(kind, roi, tuple(counted[index]), _moved(region, origin_x, origin_y), float(length), float(width)))
    return found


def _moved(region: Region, dx: int, dy: int) -> Region:
    x, y, width, height = region.box
    return replace(
        region,
        polygon=[[px + dx, py + dy] for px, py in region.polygon],
        holes=[[[px + dx, py + dy] for px, py in hole] for hole in region.holes],
        box=(x + dx, y + dy, width, height),
        centroid=(region.centroid[0] + dx, region.centroid[1] + dy),
    )
