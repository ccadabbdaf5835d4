"""Drawing on float images: thin, typed names over OpenCV.

An ``Image`` is float32 [H, W, 3] (or one channel [H, W]) in 0..1, a ``Mask`` is bool [H, W]. Points are (x, y) in pixels.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Image",
    "Mask",
    "blurred",
    "box_corners",
    "closed",
    "depth_inside",
    "draw_disc",
    "draw_ellipse",
    "draw_path",
    "fill_polygon",
    "grey_level",
    "greyed",
    "grown",
    "largest_channel",
    "resampled",
    "shading",
    "shrunk",
    "stretched",
    "turned",
]

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
_SUBPIXEL_BITS = 3


def blurred(image: Image, sigma_px: float) -> Image:
    """Gaussian blur; below a fifth of a pixel nothing happens."""
    return image if sigma_px < 0.2 else np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px), np.float32)


def grey_level(image: Image) -> Image:
    """Mean of the channels, [H, W, 3] -> [H, W]; a matrix product is ten times quicker than a mean over the last axis."""
    return np.asarray(image @ np.full(3, 1 / 3, np.float32), np.float32)


def greyed(image: Image) -> Image:
    """The image without its colour, still [H, W, 3]."""
    return np.asarray(cv2.merge([grey_level(image)] * 3), np.float32)


def largest_channel(image: Image) -> Image:
    """Maximum over the channels, [H, W, 3] -> [H, W]."""
    return np.asarray(np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2]), np.float32)


def stretched(grid: Image, height: int, width: int) -> Image:
    """``grid`` enlarged to [height, width] by cubic interpolation."""
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def resampled(image: Image, x: Image, y: Image, wrap: bool = False) -> Image:
    """``image`` read at the positions (x, y), both [H, W] in pixels; outside it is mirrored or repeated."""
    border = cv2.BORDER_WRAP if wrap else cv2.BORDER_REFLECT_101
    return np.asarray(
        cv2.remap(image, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, borderMode=border), np.float32
    )


def turned(
    image: Image,
    centre: tuple[float, float],
    angle_deg: float,
    scale: float = 1.0,
    shift: tuple[float, float] = (0, 0),
    mirror: bool = False,
) -> Image:
    """``image`` turned about ``centre``, scaled and moved; what comes in from outside is zero, or mirrored."""
    matrix = cv2.getRotationMatrix2D(centre, angle_deg, scale)
    matrix[:, 2] += np.asarray(shift)
    border = cv2.BORDER_REFLECT_101 if mirror else cv2.BORDER_CONSTANT
    return np.asarray(cv2.warpAffine(image, matrix, (image.shape[1], image.shape[0]), borderMode=border), np.float32)


def shading(height_map: Image, light_rad: float) -> Image:
    """Light and shade of a relief lit from ``light_rad``; the strongest value is 1 or -1. [H, W] -> [H, W]"""
    slope = math.cos(light_rad) * cv2.Sobel(height_map, cv2.CV_32F, 1, 0) + math.sin(light_rad) * cv2.Sobel(
        height_map, cv2.CV_32F, 0, 1
    )
    return np.asarray(slope / (np.abs(slope).max() + 1e-6), np.float32)


def draw_path(canvas: Image, points: NDArray[np.floating], thickness_px: int, value: float = 1.0) -> None:
    """A smooth-edged line through ``points`` [N, 2], drawn in place with sub-pixel ends."""
    fixed = np.round(points * 2**_SUBPIXEL_BITS).astype(np.int32)
    cv2.polylines(canvas, [fixed], False, value, max(1, thickness_px), cv2.LINE_AA, _SUBPIXEL_BITS)


def fill_polygon(canvas: Image, points: NDArray[np.floating], value: float = 1.0) -> None:
    """A filled polygon with smooth edges, drawn in place."""
    cv2.fillPoly(canvas, [np.round(points * 2**_SUBPIXEL_BITS).astype(np.int32)], value, cv2.LINE_AA, _SUBPIXEL_BITS)


def draw_disc(canvas: Image, centre: Sequence[float] | NDArray[np.floating], radius_px: float, value: float = 1.0) -> None:
    """A filled disc with a smooth edge, drawn in place."""
    one = 2**_SUBPIXEL_BITS
    cv2.circle(
        canvas,
        (round(centre[0] * one), round(centre[1] * one)),
        max(1, round(radius_px * one)),
        value,
        -1,
        cv2.LINE_AA,
        _SUBPIXEL_BITS,
    )


def draw_ellipse(
    canvas: Image, centre: Sequence[float], axes_px: tuple[float, float], angle_deg: float, value: float = 1.0
) -> None:
    """A filled ellipse with half-axes ``axes_px``, drawn in place."""
    axes = (max(1, round(axes_px[0])), max(1, round(axes_px[1])))
    cv2.ellipse(canvas, (round(centre[0]), round(centre[1])), axes, angle_deg, 0, 360, value, -1, cv2.LINE_AA)


def box_corners(centre: Sequence[float], size_px: tuple[float, float], angle_deg: float) -> NDArray[np.float32]:
    """The four corners [4, 2] of a turned box of full width and height ``size_px``."""
    return np.asarray(cv2.boxPoints(((float(centre[0]), float(centre[1])), size_px, angle_deg)), np.float32)


def _kernel(radius_px: int) -> NDArray[np.uint8]:
    return np.ones((2 * radius_px + 1, 2 * radius_px + 1), np.uint8)


def grown(mask: Mask, radius_px: int) -> Mask:
    """``mask`` wider by ``radius_px`` on each side."""
    return np.asarray(cv2.dilate(mask.astype(np.uint8), _kernel(radius_px)), np.bool_)


def shrunk(mask: Mask, radius_px: int) -> Mask:
    """``mask`` narrower by ``radius_px`` on each side; the image's border does not shrink it."""
    return np.asarray(cv2.erode(mask.astype(np.uint8), _kernel(radius_px)), np.bool_)


def closed(mask: Mask, radius_px: int) -> Mask:
    """``mask`` with gaps narrower than twice ``radius_px`` filled."""
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, _kernel(radius_px)), np.bool_)


def depth_inside(mask: Mask) -> Image:
    """Distance in pixels from each pixel of ``mask`` to the nearest one outside it."""
    return np.asarray(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3), np.float32)
