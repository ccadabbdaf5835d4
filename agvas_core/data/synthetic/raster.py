"""Drawing on float images: thin, typed names over OpenCV; noise fields; random outlines.

An ``Image`` is float32 [H, W, 3] (or one channel [H, W]) in 0..1, a ``Mask`` is bool [H, W]. Points are (x, y) in pixels.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLOB_REACH",
    "Image",
    "Mask",
    "band_noise",
    "blob",
    "blurred",
    "box_corners",
    "chance",
    "closed",
    "coordinates",
    "count_between",
    "curve",
    "depth_inside",
    "draw_disc",
    "draw_ellipse",
    "draw_path",
    "fill_polygon",
    "fractal_noise",
    "grey_level",
    "greyed",
    "grown",
    "largest_channel",
    "log_uniform",
    "logistic_step",
    "oriented_coordinates",
    "pick",
    "resampled",
    "shading",
    "shrunk",
    "stretched",
    "to_unit_range",
    "turned",
    "unit_px",
    "value_noise",
    "white_noise",
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


# Noise fields and warped coordinates: what every texture is made of. All fields are float32 [H, W].


# Small draws that the generator makes everywhere.


T = TypeVar("T")


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Between ``low`` and ``high``, every octave as likely as any other: sizes of defects come this way."""
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def count_between(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(rng.integers(low, high + 1))


def pick(rng: np.random.Generator, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
    """One of ``options``; ``weights`` need not add up to one."""
    if weights is None:
        return options[int(rng.integers(len(options)))]
    edges = np.cumsum(weights)
    return options[min(int(np.searchsorted(edges, rng.random() * edges[-1], side="right")), len(options) - 1)]


DESIGN_PX = 256  # sizes in the generator are given in pixels of an image whose shorter side is this


def unit_px(height: int, width: int) -> float:
    """Pixels of this image per pixel of the design: sizes scale with the shorter side."""
    return min(height, width) / DESIGN_PX


def white_noise(rng: np.random.Generator, height: int, width: int) -> Image:
    """Independent normal values."""
    return rng.standard_normal((height, width), dtype=np.float32)


def value_noise(rng: np.random.Generator, height: int, width: int, cells: float) -> Image:
    """Smooth noise with about ``cells`` cells along the shorter side; mean 0, deviation about 0.7."""
    cell_px = max(min(height, width) / max(cells, 1.0), 1.0)
    rows, columns = max(2, round(height / cell_px)), max(2, round(width / cell_px))
    return stretched(white_noise(rng, rows + 1, columns + 1), height, width)


def fractal_noise(
    rng: np.random.Generator, height: int, width: int, cells: float, octaves: int = 5, persistence: float = 0.55
) -> Image:
    """Octaves of value noise, each twice as fine and ``persistence`` times as strong; mean 0, deviation 1."""
    field = np.zeros((height, width), np.float32)
    amplitude = 1.0
    for _ in range(octaves):
        if cells > min(height, width):
            break
        field += amplitude * value_noise(rng, height, width, cells)
        amplitude *= persistence
        cells *= 2
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), np.float32)


def band_noise(
    rng: np.random.Generator,
    height: int,
    width: int,
    frequency: float,
    bandwidth: float,
    direction: tuple[float, float] | None = None,
) -> Image:
    """Noise around one spatial frequency (cycles per pixel); ``direction`` is (angle, spread) in radians, or none for all."""
    fy = np.fft.fftfreq(height).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(width).astype(np.float32)[None]
    response = np.exp(-((np.hypot(fx, fy) - frequency) ** 2) / (2 * bandwidth**2))
    if direction is not None:
        response = response * np.exp(-(np.sin(np.arctan2(fy, fx) - direction[0]) ** 2) / (2 * direction[1] ** 2))
    field = np.fft.irfft2(np.fft.rfft2(white_noise(rng, height, width)) * response, s=(height, width)).astype(np.float32)
    return np.asarray(field / (field.std() + 1e-6), np.float32)


def to_unit_range(field: Image) -> Image:
    """``field`` stretched so that its 1 % and 99 % quantiles become 0 and 1."""
    low, high = np.percentile(field[::4, ::4], [1, 99])
    return np.asarray(np.clip((field - low) / (high - low + 1e-6), 0, 1), np.float32)


def logistic_step(distance: Image, softness: float) -> Image:
    """0 below zero, 1 above, over about four times ``softness``."""
    return np.asarray(1 / (1 + np.exp(-np.clip(distance / softness, -30, 30))), np.float32)


def coordinates(height: int, width: int) -> tuple[Image, Image]:
    """x and y of each pixel, each [H, W]."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return x, y


def oriented_coordinates(
    rng: np.random.Generator, height: int, width: int, turn: bool = True, warp_px: float = 0.0
) -> tuple[Image, Image]:
    """Coordinates in a random orientation (upright is common on real parts), bent by up to about ``warp_px``."""
    x, y = coordinates(height, width)
    if turn:
        angle = pick(rng, (0.0, math.pi / 2, rng.uniform(0, math.pi)), (0.35, 0.15, 0.5)) + rng.normal(0, 0.03)
        c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        x, y = c * x + s * y, c * y - s * x
    if warp_px > 0:
        x = x + np.float32(warp_px) * value_noise(rng, height, width, int(rng.integers(2, 7)))
        y = y + np.float32(warp_px) * value_noise(rng, height, width, int(rng.integers(2, 7)))
    return x, y


# Outlines of defects: ragged blobs and wandering curves.


BLOB_REACH = 2.0  # a blob never reaches further than this many of its radii
STEP_PX = 4.0  # length of one step of a curve, in design pixels


def blob(
    rng: np.random.Generator, height: int, width: int, centre: tuple[float, float], radius_px: float, roughness: float
) -> Image:
    """How far out each pixel lies, [H, W]: below 1 inside, 1 on the outline, then growing.

    The outline is an ellipse of half-axis ``radius_px`` whose edge wanders by about ``roughness`` (0 smooth .. 0.4 ragged).
    """
    x, y = coordinates(height, width)
    angle, flattening = rng.uniform(0, math.pi), rng.uniform(0.4, 1)
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    u = (dx * np.float32(math.cos(angle)) + dy * np.float32(math.sin(angle))) / np.float32(radius_px)
    v = (dy * np.float32(math.cos(angle)) - dx * np.float32(math.sin(angle))) / np.float32(radius_px * flattening)
    away = np.sqrt(u * u + v * v)
    if roughness > 0.02:
        cells = np.clip(min(height, width) / radius_px * 1.5, 2, 60)
        # The wandering fades towards BLOB_REACH, so that a window of that size never cuts the blob off.
        away = away + np.float32(roughness) * fractal_noise(rng, height, width, float(cells), 3) * np.clip(
            BLOB_REACH - away, 0, 1
        )
    return np.asarray(away, np.float32)


def curve(
    rng: np.random.Generator,
    start: NDArray[np.floating],
    length_px: float,
    wobble: float,
    unit: float,
    heading_rad: float | None = None,
    bend: float = 0.03,
) -> NDArray[np.float64]:
    """Points [N, 2] of a path from ``start``; ``wobble`` is the change of heading per step: 0 straight, 0.5 jagged."""
    step = STEP_PX * max(unit, 0.5)
    count = max(3, round(length_px / step))
    heading = rng.uniform(0, 2 * math.pi) if heading_rad is None else heading_rad
    headings = heading + np.cumsum(rng.normal(0, bend) + rng.normal(0, max(wobble, 0.0), count))
    moves = np.stack([np.cos(headings), np.sin(headings)], 1) * (length_px / count)
    return np.asarray(np.concatenate([np.zeros((1, 2)), np.cumsum(moves, 0)]) + start, np.float64)
