"""From a frame to the pixels an encoder sees; the same code in training, export and runtime.

A *view* is the frame resized for one encoder. Resizing is antialiased and done here, on uint8; the normalisation with mean
and std is part of the model (and so of the exported graph), because TensorRT refuses antialiased resizing but takes
uint8 -> cast -> normalise.
"""

from dataclasses import dataclass
from math import ceil
from typing import Annotated, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, FiniteFloat

from agvas_core.contract.validation import StrictModel

__all__ = [
    "Scales",
    "View",
    "ViewSpec",
    "back_to_frame",
    "check_scales",
    "enlarge",
    "frame_cells",
    "make_view",
    "scaled_views",
    "view_size",
]

Rgb = NDArray[np.uint8]

MAX_VIEW_PX = 8192  # eight times SAM's; a number beyond is a slip, and would ask for more memory than there is

MAX_SCALES = 4  # each costs a pass through all three stages

_Deviation = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


def _all_different(scales: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(scales)) < len(scales):
        raise ValueError(f"scales {scales} has one twice: name each once")
    return scales


Scales = Annotated[
    tuple[Annotated[float, Field(gt=0.0, le=2.0)], ...],
    Field(min_length=1, max_length=MAX_SCALES),
    AfterValidator(_all_different),
]
"""The pixel view is made at ``size_px`` times each of these, and the logits are averaged at frame size."""


class ViewSpec(StrictModel):
    """How a frame becomes the input of one encoder."""

    fit: Literal["stretch", "area", "letterbox"]
    """``stretch``: to a square, aspect lost. ``area``: aspect kept, about ``size_px``**2 pixels. ``letterbox``: the longer side
    is ``size_px``, padded at the right and the bottom to a square (as SAM does)."""
    size_px: int = Field(ge=8, le=MAX_VIEW_PX)
    multiple_px: int = Field(default=1, ge=1, le=MAX_VIEW_PX)
    """Both sides are multiples of this (``area`` only)."""
    max_aspect: float = Field(default=4.0, ge=1.0, allow_inf_nan=False)
    """Longer over shorter side at most; beyond it the aspect is squeezed (``area`` only)."""
    max_upscale: float = Field(default=2.0, ge=1.0, allow_inf_nan=False)
    """Small frames are enlarged by no more than this (``area`` only)."""
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    """Per channel (RGB), of values in 0..1."""
    std: tuple[_Deviation, _Deviation, _Deviation]


@dataclass(frozen=True)
class View:
    """``pixels``: uint8 RGB [h, w, 3]; the frame fills the top-left ``content`` = (h, w) of it, the rest is padding."""

    pixels: Rgb
    content: tuple[int, int]


def view_size(spec: ViewSpec, height: int, width: int) -> tuple[int, int]:
    """Content size (h, w) in pixels of a ``height`` x ``width`` frame under ``spec``."""
    if spec.fit == "stretch":
        return spec.size_px, spec.size_px
    if spec.fit == "letterbox":
        scale = spec.size_px / max(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))
    aspect = min(max(height / width, 1 / spec.max_aspect), spec.max_aspect)
    scale = min(spec.size_px, spec.max_upscale * (height * width) ** 0.5)
    multiple = spec.multiple_px
    # Two multiples at least: the pixel encoder's statistics need more than one cell.
    sides = (max(2, round(scale * aspect**0.5 / multiple)), max(2, round(scale / aspect**0.5 / multiple)))
    return sides[0] * multiple, sides[1] * multiple


def make_view(spec: ViewSpec, frame: Rgb, content: tuple[int, int] | None = None) -> View:
    """Resizes an RGB frame (uint8 [H, W, 3]) as ``spec`` says; ``content`` = (h, w) takes the place of the size that it would choose."""
    height, width = frame.shape[:2]
    content = content or view_size(spec, height, width)
    shrinks = content[0] * content[1] < height * width
    pixels = cv2.resize(frame, content[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if spec.fit == "letterbox":
        square = np.empty((spec.size_px, spec.size_px, 3), np.uint8)
        square[:] = np.round(np.asarray(spec.mean) * 255)  # padding is zero once normalised, as in SAM
        square[: content[0], : content[1]] = pixels
        pixels = square
    return View(np.ascontiguousarray(pixels, dtype=np.uint8), content)


def check_scales(spec: ViewSpec, scales: Scales) -> None:
    """Raises ValueError where the view has one size only, that of an encoder which takes no other."""
    if spec.fit != "area" and scales != (1.0,):
        raise ValueError(
            f"scales {scales} with a pixel view of fit {spec.fit!r}, which has one size: leave scales out, or use 'area'"
        )


def scaled_views(spec: ViewSpec, scales: Scales, height: int, width: int) -> list[ViewSpec]:
    """The view at each scale, finest first, for a ``height`` x ``width`` px frame; those that show it in the same size count once."""
    found: dict[tuple[int, int], ViewSpec] = {}
    for size in sorted((max(8, round(spec.size_px * scale)) for scale in scales), reverse=True):
        view = spec.model_copy(update={"size_px": size})
        found.setdefault(view_size(view, height, width), view)
    return list(found.values())


def back_to_frame(values: NDArray[np.float32], view: View, size: tuple[int, int]) -> NDArray[np.float32]:
    """The part of a map [h, w] over a whole view that shows the frame, not padding, enlarged to ``size`` = (H, W)."""
    (high, wide), enlarged = frame_cells(view, values.shape, size)
    return enlarge(values[:high, :wide], enlarged, size)


def frame_cells(view: View, shape: tuple[int, ...], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of a map of ``shape`` = (h, w) over a whole view: how many rows and columns of cells show a frame of ``size`` = (H, W) px and not
    padding, and the size they are to be enlarged to, of which the frame is the top left corner."""
    cells, enlarged = [], []
    for content, shown, length, target in zip(view.content, view.pixels.shape, shape, size, strict=False):
        exact = content * length / shown  # cells that the frame fills; the last one perhaps only in part
        cells.append(min(length, ceil(exact)))
        enlarged.append(max(target, round(target * cells[-1] / exact)))
    return (cells[0], cells[1]), (enlarged[0], enlarged[1])


def enlarge(cells: NDArray[np.float32], enlarged: tuple[int, int], size: tuple[int, int]) -> NDArray[np.float32]:
    """The top left ``size`` = (H, W) of cells [h, w] enlarged to ``enlarged``."""
    whole = cv2.resize(cells, enlarged[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(whole[: size[0], : size[1]], np.float32)
