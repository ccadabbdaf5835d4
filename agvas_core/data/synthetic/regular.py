"""Texture families on a lattice: woven, printed, laid, punched, sawn. Each is (rng, h, w) -> float32 [h, w, 3]."""

import math

import cv2
import numpy as np

from agvas_core.data.synthetic.irregular import plain_ground
from agvas_core.data.synthetic.noise import (
    chance,
    count_between,
    fractal_noise,
    logistic_step,
    oriented_coordinates,
    pick,
    to_unit_range,
    unit_px,
    value_noise,
    white_noise,
)
from agvas_core.data.synthetic.photometry import any_colour, colour_ramp, grey_to_colour
from agvas_core.data.synthetic.raster import Image, resampled

__all__ = ["bricks", "dots", "grid", "motif", "rail", "stripes", "weave", "wood"]


def _period(rng: np.random.Generator, h: int, w: int, low_px: float, high_px: float) -> float:
    """A lattice period; below four pixels a lattice would only alias."""
    return max(rng.uniform(low_px, high_px) * unit_px(h, w), 4.0)


def _laid_over(ground: Image, top: Image, share: Image) -> Image:
    return np.asarray(ground + (top - ground) * share[..., None], np.float32)


def weave(rng: np.random.Generator, h: int, w: int) -> Image:
    x, y = oriented_coordinates(rng, h, w, True, rng.uniform(0, 2.5) * unit_px(h, w))
    warp_px = _period(rng, h, w, 5, 22)
    weft_px = max(warp_px * rng.uniform(0.6, 1.6), 4.0)
    u, v = x / warp_px, y / weft_px
    column, row = np.floor(u).astype(np.int32), np.floor(v).astype(np.int32)
    float_length = count_between(rng, 1, 3)  # 1: plain weave, more: twill
    over = (column + float_length * row) % (float_length + 1) < max(1, float_length // 2 + 1)
    warp_relief = np.abs(np.sin(math.pi * u)) ** np.float32(rng.uniform(0.4, 1.5))
    weft_relief = np.abs(np.sin(math.pi * v)) ** np.float32(rng.uniform(0.4, 1.5))
    ramp = colour_ramp(rng, 4)
    unevenness = rng.standard_normal(64).astype(np.float32) * np.float32(rng.uniform(0, 0.06))
    warp = ramp[0] * (0.5 + 0.5 * warp_relief[..., None]) + unevenness[column % 64][..., None]
    weft = ramp[3] * (0.5 + 0.5 * weft_relief[..., None]) + unevenness[row % 64][..., None]
    image = np.where(over[..., None], warp, weft)
    return np.asarray(image + rng.uniform(0, 0.05) * white_noise(rng, h, w)[..., None], np.float32)


def stripes(rng: np.random.Generator, h: int, w: int) -> Image:
    x, _ = oriented_coordinates(rng, h, w, True, rng.uniform(0, 6) * unit_px(h, w))
    field = 0.5 + 0.5 * np.sin(2 * math.pi / _period(rng, h, w, 5, 40) * x)
    if chance(rng, 0.5):
        field = logistic_step(field - rng.uniform(0.2, 0.8), 0.05)
    return grey_to_colour(rng, np.asarray(np.clip(field + 0.1 * value_noise(rng, h, w, 100), 0, 1), np.float32), 2)


def grid(rng: np.random.Generator, h: int, w: int) -> Image:
    x, y = oriented_coordinates(rng, h, w, True, rng.uniform(0, 1.5) * unit_px(h, w))
    px = _period(rng, h, w, 12, 50)
    py = max(px * pick(rng, (1.0, rng.uniform(0.6, 1.6))), 4.0)
    if chance(rng, 0.4):
        y = y + np.where(np.floor(x / px) % 2 > 0, py / 2, 0)
    dx, dy = np.abs((x / px) % 1 - 0.5) * 2, np.abs((y / py) % 1 - 0.5) * 2
    reach = np.maximum(dx, dy) if chance(rng, 0.6) else np.hypot(dx, dy)
    wire = logistic_step(np.asarray(reach - (1 - rng.uniform(0.1, 0.4)), np.float32), 1 / rng.uniform(8, 40))
    top = colour_ramp(rng, 2)[0] * (0.7 + 0.3 * wire[..., None]) + 0.05 * value_noise(rng, h, w, 120)[..., None]
    return _laid_over(plain_ground(rng, h, w), np.asarray(top, np.float32), wire)


def bricks(rng: np.random.Generator, h: int, w: int) -> Image:
    x, y = oriented_coordinates(rng, h, w, chance(rng, 0.4), rng.uniform(0, 1) * unit_px(h, w))
    px = _period(rng, h, w, 24, 100)
    py = max(px * rng.uniform(0.35, 1.1), 4.0)
    row = np.floor(y / py)
    x = x + (row % 2) * px * pick(rng, (0.0, 0.5, 0.33))
    column = np.floor(x / px)
    dx, dy = np.abs((x / px) % 1 - 0.5) * 2, np.abs((y / py) % 1 - 0.5) * 2
    joint = np.maximum(
        logistic_step(np.asarray(dx - 1 + rng.uniform(0.03, 0.12), np.float32), 1 / 60),
        logistic_step(np.asarray(dy - 1 + rng.uniform(0.03, 0.12), np.float32), 1 / 40),
    )
    shades = (rng.standard_normal(997) * rng.uniform(0.01, 0.12)).astype(np.float32)
    stone = plain_ground(rng, h, w) + shades[((row * 31 + column * 17) % 997).astype(np.int32)][..., None]
    return _laid_over(np.asarray(stone, np.float32), np.broadcast_to(colour_ramp(rng, 2)[1], stone.shape), joint)


def wood(rng: np.random.Generator, h: int, w: int) -> Image:
    unit = unit_px(h, w)
    x, _ = oriented_coordinates(rng, h, w)
    bend = value_noise(rng, h, w, 3) * rng.uniform(2, 14) + 3 * value_noise(rng, h, w, 10)
    rings = np.sin(2 * math.pi / _period(rng, h, w, 6, 30) * (x + bend * unit))
    half = max(2, int(rng.uniform(6, 25) * unit))
    along = np.array([-(x[1, 0] - x[0, 0]), x[0, 1] - x[0, 0]]) * half  # fibres run across the gradient of x
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    start, end = (np.round(half + side * along).astype(int) for side in (-1, 1))
    cv2.line(kernel, (int(start[0]), int(start[1])), (int(end[0]), int(end[1])), 1.0, 1)
    fibres = np.asarray(cv2.filter2D(white_noise(rng, h, w), -1, kernel / kernel.sum()), np.float32)
    fibres = fibres / (fibres.std() + 1e-6)
    field = rings * rng.uniform(0.1, 1) + fibres * rng.uniform(0.4, 1.2) + 0.4 * value_noise(rng, h, w, 4)
    return grey_to_colour(rng, to_unit_range(np.asarray(field, np.float32)), 3)


def motif(rng: np.random.Generator, h: int, w: int) -> Image:
    """A printed pattern: one small drawing repeated."""
    unit = unit_px(h, w)
    px = max(6, int(count_between(rng, 14, 64) * unit))
    py = max(6, int(px * rng.uniform(0.7, 1.4)))
    tile = np.zeros((py, px, 3), np.float32) + colour_ramp(rng, 2)[0]
    for _ in range(count_between(rng, 1, 4)):
        colour = [float(v) for v in (colour_ramp(rng, 2)[1] if chance(rng, 0.7) else any_colour(rng))]
        a, b = (int(rng.integers(px)), int(rng.integers(py))), (int(rng.integers(px)), int(rng.integers(py)))
        shape = count_between(rng, 0, 2)
        if shape == 0:
            cv2.circle(tile, a, count_between(rng, 1, max(2, px // 3)), colour, -1, cv2.LINE_AA)
        elif shape == 1:
            cv2.line(tile, a, b, colour, max(1, round(count_between(rng, 1, 3) * unit)), cv2.LINE_AA)
        else:
            cv2.rectangle(tile, a, b, colour, -1)
    x, y = oriented_coordinates(rng, h, w, True, rng.uniform(0, 1.5) * unit)
    image = resampled(tile, np.mod(x, px - 1e-3), np.mod(y, py - 1e-3), wrap=True)
    return np.asarray(image + rng.uniform(0, 0.05) * value_noise(rng, h, w, 150)[..., None], np.float32)


def dots(rng: np.random.Generator, h: int, w: int) -> Image:
    """Perforated sheet, studs, a printed raster."""
    x, y = oriented_coordinates(rng, h, w, True, rng.uniform(0, 1) * unit_px(h, w))
    period = _period(rng, h, w, 8, 36)
    v = y / period
    u = x / period + (np.floor(v) % 2) * pick(rng, (0.0, 0.5))
    away = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    inside = logistic_step(np.asarray(rng.uniform(0.15, 0.4) - away, np.float32), 1 / rng.uniform(15, 60))
    return _laid_over(plain_ground(rng, h, w), np.broadcast_to(colour_ramp(rng, 2)[1], (h, w, 3)), inside)


def rail(rng: np.random.Generator, h: int, w: int) -> Image:
    """A bright running band with streaks along it, darker at both sides."""
    across, along = (w, h) if chance(rng, 0.6) else (h, w)
    position = np.linspace(0, 1, across, dtype=np.float32)
    off_centre = np.abs(position - rng.uniform(0.35, 0.65)) - rng.uniform(0.15, 0.5)
    profile = rng.uniform(0.4, 0.8) * (1 - logistic_step(off_centre, 1 / rng.uniform(15, 60))) + rng.uniform(0.05, 0.3)
    profile = profile + np.interp(position, np.linspace(0, 1, 12), rng.normal(0, 0.06, 12))
    length = int(count_between(rng, 9, 80) * unit_px(h, w)) | 1
    streaks = np.asarray(cv2.blur(white_noise(rng, along, across), (1, length)), np.float32)
    field = profile[None] * (1 + rng.uniform(0.02, 0.15) * streaks / (streaks.std() + 1e-6))
    field = field * (1 + rng.uniform(0, 0.08) * fractal_noise(rng, along, across, 8, 4))
    if (across == h and along == w and h != w) or (h == w and chance(rng, 0.4)):
        field = field.T
    return np.asarray(np.repeat(np.ascontiguousarray(field)[..., None], 3, 2), np.float32)
