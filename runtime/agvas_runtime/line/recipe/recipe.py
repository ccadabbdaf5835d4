"""A recipe: everything that decides about one product. A YAML file; ``recipe.file`` reads it.

    product: bracket-42
    prompt: Please segment the scratches in this image.
    frame: {width_px: 1280, height_px: 1024}
    rois:
      face: [[40, 40], [1240, 40], [1240, 980], [40, 980]]
    mm_per_px: 0.05
    rules:
      - {roi: face, min_length_mm: 1.5}

The model is asked once for each kind. Of its score map, a region above ``thresholds`` counts in a rule where it lies in the rule's
ROI, outside ``ignore``, and is as large as the rule says; more than ``max_count`` of them make the part FAIL.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Annotated, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from agvas_core.contract.decision import OperatingPoint
from agvas_core.contract.prompts import MAX_INSTRUCTION_CHARS, Mode
from agvas_core.contract.validation import FiniteModel, did_you_mean

__all__ = ["ANY", "Calibration", "FrameSize", "ImageLimits", "Keep", "Kind", "Polygon", "Recipe", "Rule", "filled"]


# Polygons of a recipe: what they must be, and the pixels they hold.


MAX_POINTS = 1000
MAX_PX = 100_000

Point = tuple[float, float]


def _checked(points: tuple[Point, ...]) -> tuple[Point, ...]:
    if not 3 <= len(points) <= MAX_POINTS:
        raise ValueError(f"a polygon of {len(points)} points; 3 to {MAX_POINTS} are needed, [[x, y], ...]")
    for x, y in points:
        if not (0 <= x <= MAX_PX and 0 <= y <= MAX_PX):
            raise ValueError(f"the point [{x:g}, {y:g}] lies outside 0 to {MAX_PX} px")
    edges = [(np.array(a), np.array(b)) for a, b in zip(points, points[1:] + points[:1], strict=True)]
    if (crossing := _crossing(edges)) is not None:
        raise ValueError(f"edges {crossing[0] + 1} and {crossing[1] + 1} cross: give the points in their order along the outline")
    if abs(sum(_cross(a, b) for a, b in edges)) < 1.0:
        raise ValueError("a polygon with no area: its points lie on one line")
    return points


Polygon = Annotated[tuple[Point, ...], AfterValidator(_checked)]
"""[[x, y], ...] in pixels of the frame, along the outline, either way round."""


def filled(polygons: Iterable[tuple[Point, ...]], height: int, width: int) -> NDArray[np.bool_]:
    """The pixels inside any of the polygons, bool [height, width]; pixel centres on the outline are inside."""
    mask = np.zeros((height, width), np.uint8)
    for polygon in polygons:  # one by one: together, OpenCV would cut out where two overlap
        cv2.fillPoly(mask, [np.round(np.array(polygon)).astype(np.int32)], 1)
    return mask.astype(bool)


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(a[0] * b[1] - a[1] * b[0])


def _crossing(edges: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> tuple[int, int] | None:
    """The first two edges that cross properly, or None."""
    begin = np.array([a for a, _ in edges])  # [N, 2]
    end = np.array([b for _, b in edges])

    def side(p: NDArray[np.float64], q: NDArray[np.float64], r: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.sign(
            (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0])
        )
        return found

    for index, (a, b) in enumerate(edges):
        apart = (side(begin, end, a) * side(begin, end, b) < 0) & (side(a, b, begin) * side(a, b, end) < 0)
        if apart.any():
            return index, int(np.flatnonzero(apart)[0])
    return None


ANY = "*"
"""As a rule's ROI: the whole frame, less what is ignored. As its kind: every kind, each counted by itself."""
ANOMALY = "anomaly"
"""The one kind of a recipe that names none."""


def _name(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text) is None:
        raise ValueError(
            f"{text!r} is no name: letters A to Z, digits, dots, dashes and underscores are possible, 64 of them, the first a letter or digit"
        )
    return text


Name = Annotated[str, AfterValidator(_name)]
Words = Annotated[str, Field(min_length=1, max_length=MAX_INSTRUCTION_CHARS)]
Positive = Annotated[float, Field(gt=0.0, le=1e9)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class FrameSize(FiniteModel):
    """What the camera must give; a frame of another size gets NO_VERDICT."""

    width_px: int = Field(ge=1, le=100_000)
    height_px: int = Field(ge=1, le=100_000)


class Kind(FiniteModel):
    """One kind of anomaly, asked for in its own words."""

    prompt: Words


class Rule(FiniteModel):
    """More than ``max_count`` regions that are as large as this make the part FAIL."""

    name: str | None = Field(default=None, max_length=100)
    roi: str = ANY
    kind: str = ANY
    min_score: Share = 0.0
    """A region's highest score lies above this, and above the recipe's seed threshold in any case."""
    min_area_px: Positive | None = None
    min_area_mm2: Positive | None = None
    min_length_px: Positive | None = None
    """Longer side of the tightest rectangle, turned as need be."""
    min_length_mm: Positive | None = None
    min_width_px: Positive | None = None
    """Its shorter side."""
    min_width_mm: Positive | None = None
    max_count: int = Field(default=0, ge=0, le=10_000)

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        for px, mm in (("min_area_px", "min_area_mm2"), ("min_length_px", "min_length_mm"), ("min_width_px", "min_width_mm")):
            if getattr(self, px) is not None and getattr(self, mm) is not None:
                raise ValueError(f"both {px} and {mm} are given: leave one out")
        return self

    @property
    def in_mm(self) -> str | None:
        """The first limit that is in millimetres, by its key."""
        return next((key for key in ("min_area_mm2", "min_length_mm", "min_width_mm") if getattr(self, key) is not None), None)


class Keep(FiniteModel):
    """Which images stay on disk, losslessly, and for how long. Rows of the ledger always stay."""

    rejects: bool = True
    no_verdicts: bool = True
    sample_every: int = Field(default=100, ge=0, le=10_000_000)
    """Each n-th part of the station, whatever its verdict; 0: none."""
    first: int = Field(default=200, ge=0, le=10_000_000)
    """Of the station: all of so many are kept while it is commissioned, for review and replay."""
    max_gb: Positive = 20.0
    """Beyond it, the oldest images go."""


class ImageLimits(FiniteModel):
    """What makes a frame unfit for a verdict; see ``image_check``. A limit that is None is not checked."""

    min_focus: Positive | None = None
    min_mean: Share | None = None
    max_mean: Share | None = None
    max_clipped: Share | None = None

    @property
    def any(self) -> bool:
        """Whether there is a limit."""
        return self != ImageLimits()


class Calibration(FiniteModel):
    """How the thresholds came about; written by ``agvas calibrate``, read by the drift monitor."""

    date: str
    bundle: str
    good_parts: int = Field(ge=1)
    bad_parts: int = Field(default=0, ge=0)
    max_false_reject: float = Field(gt=0.0, lt=1.0)
    confidence: float = Field(gt=0.0, lt=1.0)
    false_rejects: int = Field(ge=0)
    """Good parts of the calibration that these thresholds reject."""
    false_reject_bound: float = Field(gt=0.0, le=1.0)
    """Upper bound of the share of good parts that will be rejected, at ``confidence``."""
    escapes: int | None = Field(default=None, ge=0)
    """Bad parts that these thresholds let pass."""
    score_quantiles: tuple[Share, ...] = ()
    """Of the good parts' reject scores, evenly spaced from the lowest to the highest."""
    focus: tuple[float, float] | None = None
    """5 % and 95 % quantile of the good parts' focus."""
    product: Name | None = None
    """Of the recipe that was calibrated; unknown where None."""
    thresholds: OperatingPoint | None = None
    """That the bound holds for; unknown where None."""
    decides: str | None = Field(default=None, pattern="^[0-9a-f]{12}$")
    """``Recipe.decides`` of the recipe that was calibrated; unknown where None."""


class Recipe(FiniteModel):
    """One product; see the module."""

    product: Name
    note: str = Field(default="", max_length=2000)
    model: str = Field(default="nano", min_length=1, max_length=1000)
    """A bundled name, or the folder or zip of a bundle."""
    bundle: str | None = Field(default=None, pattern=r"^.{1,200}@[0-9a-f]{12}$")
    """The one bundle that this recipe was made for: ``nano@0123456789ab``; any where None."""
    prompt: Words | None = None
    mode: Mode = Mode.DIRECT
    normal_look: Words | None = None
    kinds: dict[Name, Kind] = {}
    """In place of ``prompt``; the model looks once for each."""
    frame: FrameSize | None = None
    mm_per_px: Positive | None = None
    rois: dict[Name, Polygon] = {}
    ignore: tuple[Polygon, ...] = ()
    thresholds: OperatingPoint | None = None
    """The bundle's balanced operating point where None."""
    rules: tuple[Rule, ...] = Field(default=(Rule(),), min_length=1, max_length=100)
    deadline_ms: float = Field(default=2000.0, ge=1.0, le=600_000.0)
    """From the trigger; a part without a verdict by then has NO_VERDICT."""
    keep: Keep = Keep()
    image: ImageLimits = ImageLimits()
    bits: int | None = Field(default=None, ge=9, le=16)
    """That 16-bit pictures of this product use; all 16 where None. What the command line says wins."""
    calibration: Calibration | None = None

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if self.kinds and self.prompt is not None:
            raise ValueError("both prompt and kinds are given; each kind has its own prompt: leave prompt out")
        if self.mode == Mode.DESCRIBE_PLUS and self.normal_look is None:
            raise ValueError("mode is describe-plus and normal_look is missing: say how a good part looks")
        if self.mode != Mode.DESCRIBE_PLUS and self.normal_look is not None:
            raise ValueError(f"normal_look is given and mode is {self.mode}: only describe-plus reads it; leave one out")
        for number, rule in enumerate(self.rules, 1):
            self._check_rule(rule, number)
        self._check_polygons()
        return self

    def _check_rule(self, rule: Rule, number: int) -> None:
        label = f"rule {number}"
        if rule.in_mm and self.mm_per_px is None:
            raise ValueError(
                f"{label} has {rule.in_mm} and the recipe has no mm_per_px: give the size of a pixel, or limits in px"
            )
        for what, name, known in (("roi", rule.roi, self.rois), ("kind", rule.kind, self.prompts)):
            if name != ANY and name not in known:
                meant = did_you_mean(name, known) or (f"; there is {', '.join(known)}" if known else "; there is none")
                raise ValueError(f"{label} has {what} {name!r}, which the recipe does not define{meant}")

    def _check_polygons(self) -> None:
        polygons = [(f"roi {name}", polygon) for name, polygon in self.rois.items()]
        polygons += [(f"ignore polygon {number}", polygon) for number, polygon in enumerate(self.ignore, 1)]
        if not polygons:
            return
        if self.frame is None:
            raise ValueError(
                "polygons are in pixels of one frame size, and frame is missing: give frame: {width_px: , height_px: }"
            )
        for label, polygon in polygons:
            for x, y in polygon:
                if x > self.frame.width_px or y > self.frame.height_px:
                    raise ValueError(
                        f"{label} has the point [{x:g}, {y:g}] outside the frame of {self.frame.width_px}x{self.frame.height_px} px"
                    )
        unused = set(self.rois) - {rule.roi for rule in self.rules}
        if unused:
            raise ValueError(f"no rule looks at roi {min(unused)!r}: name it in a rule (roi: {min(unused)}), or remove it")

    @property
    def decides(self) -> str:
        """Hash of all that a verdict depends on, beside thresholds and product: prompts, ROIs, rules, scale and model."""
        keys = {"prompt", "mode", "normal_look", "kinds", "mm_per_px", "rois", "ignore", "rules", "bits", "model"}
        text = json.dumps(self.model_dump(mode="json", include=keys), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def prompts(self) -> dict[str, str | None]:
        """Kind -> its words; None for the bundle's own."""
        return {name: kind.prompt for name, kind in self.kinds.items()} if self.kinds else {ANOMALY: self.prompt}
