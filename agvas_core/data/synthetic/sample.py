"""One synthetic image with its labels, and the words for a defect: place, size, tone."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agvas_core.data.synthetic.raster import Image, Mask

__all__ = ["PLACES", "SIZES", "TONES", "Defect", "Sample", "cropped", "in_words", "place_name"]

MIN_LEFT_PX = 8
SMALL_SHARE, LARGE_SHARE = 0.004, 0.03  # of the image's area
SHORT_LINE, LONG_LINE = 0.15, 0.45  # extent of a line as a share of the image's shorter side
LINEAR_KINDS = ("line", "crack", "thread")
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
SIZES = ("small", "medium", "large")
TONES = ("dark", "bright", "colored")


@dataclass(frozen=True)
class Defect:
    """One defect in words. ``label`` is its value in ``Sample.labels``; ``area_fraction`` its share of the image."""

    kind: str
    place: str
    size: str
    tone: str
    area_fraction: float
    label: int


@dataclass(frozen=True)
class Sample:
    """``image`` uint8 RGB [H, W, 3]; ``labels`` uint8 [H, W]; ``scene`` texture, object, frame or organic."""

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    defects: tuple[Defect, ...]
    scene: str
    family: str

    @property
    def mask(self) -> Mask:
        """Where any defect lies, bool [H, W]."""
        return self.labels > 0


def cropped(sample: Sample, rows: slice, columns: slice) -> Sample:
    """A part of the image, with what is true of that part: defects that it shows, their places and sizes there.

    What is left of a defect with fewer than ``MIN_LEFT_PX`` pixels is anomalous still, but nothing is said of it.
    """
    image, labels = np.ascontiguousarray(sample.image[rows, columns]), np.ascontiguousarray(sample.labels[rows, columns])
    kept = []
    for defect in sample.defects:
        y, x = np.nonzero(labels == defect.label)
        if len(x) >= MIN_LEFT_PX:
            place, size, share = _where(defect.kind, y, x, (0, 0), labels.shape)
            kept.append(replace(defect, place=place, size=size, area_fraction=share))
    return Sample(image, labels, tuple(kept), sample.scene, sample.family)


def place_name(x: float, y: float) -> str:
    """The cell of a 3 x 3 grid that holds the point (x, y), both as shares of the image in 0..1."""
    row, column = ROWS[min(int(3 * y), 2)], COLUMNS[min(int(3 * x), 2)]
    return f"{row} {column}".strip() or "center"


def _size_name(kind: str, share: float, extent: float) -> str:
    """A line is small or large by its length, everything else by its area."""
    value, low, high = (extent, SHORT_LINE, LONG_LINE) if kind in LINEAR_KINDS else (share, SMALL_SHARE, LARGE_SHARE)
    return "small" if value < low else "large" if value > high else "medium"


def _where(
    kind: str, y: NDArray[np.intp], x: NDArray[np.intp], origin: tuple[int, int], shape: tuple[int, ...]
) -> tuple[str, str, float]:
    """Place and size in words, and the share of the image, of pixels (y, x) counted from ``origin``."""
    place = place_name((x.mean() + origin[1] + 0.5) / shape[1], (y.mean() + origin[0] + 0.5) / shape[0])
    share = len(x) / (shape[0] * shape[1])
    extent = float(np.hypot(np.ptp(x), np.ptp(y))) / min(shape)
    return place, _size_name(kind, share, extent), share


def _tone_name(change: Image) -> str:
    """``change`` [N, 3] is what the defect added to each of its pixels."""
    mean = change.mean(0)
    light = float(mean.mean())
    colour = float(np.abs(mean - light).max())
    if colour > 0.07 and colour > 0.6 * abs(light):
        return "colored"
    return "bright" if light > 0 else "dark"


def in_words(
    kind: str, rows: slice, columns: slice, mask: Mask, before: Image, after: Image, shape: tuple[int, int], label: int
) -> Defect:
    """The description of a defect whose ``mask`` [h, w] lies at ``rows`` and ``columns`` of an image of ``shape``."""
    y, x = np.nonzero(mask)
    place, size, share = _where(kind, y, x, (rows.start, columns.start), shape)
    return Defect(kind, place, size, _tone_name((after - before)[mask]), share, label)
