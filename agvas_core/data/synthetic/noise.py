"""Noise fields and warped coordinates: what every texture is made of. All fields are float32 [H, W]."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from agvas_core.data.synthetic.raster import Image, stretched

__all__ = [
    "band_noise",
    "chance",
    "coordinates",
    "count_between",
    "fractal_noise",
    "log_uniform",
    "logistic_step",
    "oriented_coordinates",
    "pick",
    "to_unit_range",
    "unit_px",
    "value_noise",
    "white_noise",
]


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
