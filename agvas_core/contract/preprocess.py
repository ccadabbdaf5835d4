"""From a frame to the pixels an encoder sees; the same code in training, export and runtime.

A *view* is the frame resized for one encoder. Resizing is antialiased and done here, on uint8; the normalisation with mean
and std is part of the model (and so of the exported graph), because TensorRT refuses antialiased resizing but takes
uint8 -> cast -> normalise.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

__all__ = ["View", "ViewSpec", "make_view", "view_size"]

Rgb = NDArray[np.uint8]

MAX_VIEW_PX = 8192  # eight times SAM's; a number beyond is a slip, and would ask for more memory than there is

_Deviation = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class ViewSpec(BaseModel):
    """How a frame becomes the input of one encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


def make_view(spec: ViewSpec, frame: Rgb) -> View:
    """Resizes an RGB frame (uint8 [H, W, 3]) as ``spec`` says."""
    height, width = frame.shape[:2]
    content = view_size(spec, height, width)
    shrinks = content[0] * content[1] < height * width
    pixels = cv2.resize(frame, content[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if spec.fit == "letterbox":
        square = np.empty((spec.size_px, spec.size_px, 3), np.uint8)
        square[:] = np.round(np.asarray(spec.mean) * 255)  # padding is zero once normalised, as in SAM
        square[: content[0], : content[1]] = pixels
        pixels = square
    return View(np.ascontiguousarray(pixels, dtype=np.uint8), content)
