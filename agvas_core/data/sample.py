"""One synthetic image with its labels, and the words for a defect: place, size, tone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agvas_core.data.raster import Image, Mask

__all__ = ["PLACES", "SIZES", "TONES", "Defect", "Sample", "in_words", "place_name"]

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


def place_name(x: float, y: float) -> str:
    """The cell of a 3 x 3 grid that holds the point (x, y), both as shares of the image in 0..1."""
    row, column = ROWS[min(int(3 * y), 2)], COLUMNS[min(int(3 * x), 2)]
    return f"{row} {column}".strip() or "center"


def _size_name(kind: str, share: float, extent: float) -> str:
    """A line is small or large by its length, everything else by its area."""
    value, low, high = (extent, SHORT_LINE, LONG_LINE) if kind in LINEAR_KINDS else (share, SMALL_SHARE, LARGE_SHARE)
    return "small" if value < low else "large" if value > high else "medium"


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
    place = place_name((x.mean() + columns.start + 0.5) / shape[1], (y.mean() + rows.start + 0.5) / shape[0])
    share = len(x) / (shape[0] * shape[1])
    extent = float(np.hypot(np.ptp(x), np.ptp(y))) / min(shape)
    return Defect(kind, place, _size_name(kind, share, extent), _tone_name((after - before)[mask]), share, label)
