"""Outlines of defects: ragged blobs and wandering curves."""

import math

import numpy as np
from numpy.typing import NDArray

from agvas_core.data.synthetic.noise import coordinates, fractal_noise
from agvas_core.data.synthetic.raster import Image

__all__ = ["BLOB_REACH", "blob", "curve"]

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
