"""The result of one frame.

print(result)                      # part.png: FAIL, score 0.91, 2 regions, the largest 34x12 px at (120, 80)
result.save("found.jpg")           # the picture with its outlines; result.show() opens it
frame = result.to_df()             # a pandas table, one row per region
"""

import sys
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.command_line import needs_packages
from agvas_core.contract.errors import ImageError, OutputError, UsageError

if TYPE_CHECKING:
    import pandas as pd

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

    polygon: list[list[int]] = field(repr=False)
    """Outer contour, [[x, y], ...]."""
    holes: list[list[list[int]]] = field(repr=False)
    """Inner contours, each [[x, y], ...]."""
    box: tuple[int, int, int, int]
    """x, y, width, height."""
    area_px: int
    centroid: tuple[float, float]
    """x, y."""
    mean_score: float
    max_score: float


@dataclass(frozen=True, repr=False)
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

    def __str__(self) -> str:
        """One line: name, verdict, score, regions, time; the reason where there is no verdict."""
        if self.verdict is Verdict.NO_VERDICT:
            return f"{self.name}: {self.verdict}, {self.error or 'no reason was given'}"
        parts = [str(self.verdict)]
        if self.score is not None:
            parts.append(f"score {self.score:.3f}")
        if self.regions:
            x, y, width, height = self.regions[0].box
            count = len(self.regions)
            parts.append(
                f"1 region, {width}x{height} px at ({x}, {y})"
                if count == 1
                else f"{count} regions, the largest {width}x{height} px at ({x}, {y})"
            )
        if "total" in self.timing:
            parts.append(f"{self.timing['total']:.0f} ms")
        return f"{self.name}: {', '.join(parts)}"

    def __repr__(self) -> str:
        score = "" if self.score is None else f" {self.score:.3f}"
        return f"<Result {self.name!r} {self.verdict}{score}, regions: {len(self.regions)}>"

    def plot(self, *, max_side_px: int | None = None) -> NDArray[np.uint8]:
        """The picture with outline, light fill and verdict, RGB uint8 [h, w, 3].

        Args:
            max_side_px: larger pictures are drawn smaller; at full size by default.

        Raises:
            ImageError: there is no verdict, and so nothing to draw.
        """
        from agvas_runtime.masks.overlay import draw_overlay

        if self.image is None or self.mask is None:
            raise ImageError(
                f"{self.name} has no picture to draw ({self.error or self.verdict}): look at verdict and error first"
            )
        tag = str(self.verdict) if self.score is None else f"{self.verdict} {self.score:.2f}"
        return draw_overlay(self.image, self.mask, tag=tag, max_side_px=max_side_px or max(self.image.shape[:2]))

    def save(self, path: str | Path, *, max_side_px: int | None = None) -> Path:
        """Writes ``plot`` to a file and returns its path; the suffix says the format: .jpg, .png, .webp, .tif, ...

        The file appears whole or not at all.

        Raises:
            ImageError: there is no verdict.
            UsageError: a suffix of no picture format.
            OutputError: the file cannot be written.
        """
        from PIL import Image

        target = Path(path)
        kind = Image.registered_extensions().get(target.suffix.lower())
        if kind is None or kind not in Image.SAVE:
            raise UsageError(f"{target} has the suffix {target.suffix!r}; .jpg, .png, .webp, .bmp and .tif are possible")
        drawn = Image.fromarray(self.plot(max_side_px=max_side_px))
        part = target.with_name(f"{target.name}.part")
        try:
            # 4:4:4: with the usual halved colour a line of one pixel goes grey.
            drawn.save(part, kind, **({"quality": 90, "subsampling": 0} if kind == "JPEG" else {}))
            part.replace(target)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OutputError(
                f"{target} cannot be written ({error.strerror or error}): check that its folder exists and its permissions"
            ) from error
        return target

    def show(self, *, max_side_px: int = 1600) -> None:
        """Shows ``plot``: in a notebook in its place, else in the viewer of this machine.

        Raises:
            ImageError: there is no verdict.
        """
        from PIL import Image

        drawn = Image.fromarray(self.plot(max_side_px=max_side_px))
        ipython = sys.modules.get("IPython")
        if ipython is not None and ipython.get_ipython() is not None:
            ipython.display.display(drawn)
        else:
            drawn.show(title=str(self))

    def to_df(self) -> "pd.DataFrame":
        """A table of pandas: one row per region, or one row without a region. ``pd.concat`` makes one of several.

        Raises:
            SetupError: pandas is not installed.
        """
        from agvas_runtime.masks.annotations import COLUMNS, table_rows

        with needs_packages():
            import pandas as pd
        return pd.DataFrame(table_rows(self), columns=list(COLUMNS))

    def to_coco(self) -> dict[str, Any]:
        """A COCO data set of this one picture; ``agvas_runtime.masks.annotations.coco_dataset`` takes several."""
        from agvas_runtime.masks.annotations import coco_dataset

        return coco_dataset([self])

    def to_yolo(self) -> str:
        """The text of this picture's YOLO segmentation label file, a line per region; empty where nothing was found.

        Raises:
            ImageError: there is no verdict: an empty file would call the picture good.
        """
        from agvas_runtime.masks.annotations import yolo_labels

        if self.verdict is Verdict.NO_VERDICT:
            raise ImageError(
                f"{self.name} has no verdict ({self.error}), and an empty label file would call it good: leave it out"
            )
        return yolo_labels(self)

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
