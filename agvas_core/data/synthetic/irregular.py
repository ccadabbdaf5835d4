"""Texture families without a lattice: cast, ground, rolled, sprayed, grown. Each is (rng, h, w) -> float32 [h, w, 3]."""

import math

import cv2
import numpy as np

from agvas_core.data.synthetic.noise import (
    band_noise,
    chance,
    count_between,
    fractal_noise,
    oriented_coordinates,
    pick,
    to_unit_range,
    unit_px,
    value_noise,
    white_noise,
)
from agvas_core.data.synthetic.photometry import colour_ramp, grey_to_colour, tint
from agvas_core.data.synthetic.raster import Image, blurred

__all__ = [
    "asphalt",
    "bandpass",
    "brushed",
    "cells",
    "clouds",
    "concrete",
    "flat",
    "leather",
    "marble",
    "plain_ground",
    "rolled",
    "speckle",
    "strokes",
    "terrazzo",
]


def _tinted(rng: np.random.Generator, grey: Image, deviation: float) -> Image:
    return np.asarray(np.clip(grey, 0, 1)[..., None] * tint(rng, deviation), np.float32)


def _pepper(rng: np.random.Generator, h: int, w: int, share: float) -> Image:
    """Grains and pits of -1 and 1 on ``share`` of the pixels."""
    draw = rng.random((h, w), dtype=np.float32)
    return np.asarray((draw < share / 2).astype(np.float32) - (draw > 1 - share / 2), np.float32)


def clouds(rng: np.random.Generator, h: int, w: int) -> Image:
    field = fractal_noise(rng, h, w, count_between(rng, 4, 40), 5, rng.uniform(0.4, 0.85))
    return grey_to_colour(rng, to_unit_range(field))


def speckle(rng: np.random.Generator, h: int, w: int) -> Image:
    field = blurred(white_noise(rng, h, w), rng.uniform(0.5, 2.0) * unit_px(h, w))
    field = field / (field.std() + 1e-6) + rng.uniform(0, 1) * fractal_noise(rng, h, w, 8, 4)
    if chance(rng, 0.5):
        field = field + 2.5 * (field > rng.uniform(1.3, 2.2))
    return grey_to_colour(rng, to_unit_range(field))


def bandpass(rng: np.random.Generator, h: int, w: int) -> Image:
    frequency = min(rng.uniform(0.02, 0.2) / unit_px(h, w), 0.3)
    direction = (rng.uniform(0, math.pi), rng.uniform(0.05, 0.5)) if chance(rng, 0.5) else None
    field = band_noise(rng, h, w, frequency, rng.uniform(0.1, 0.5) * frequency, direction)
    if chance(rng, 0.5):  # a labyrinth
        field = np.tanh(field * np.float32(rng.uniform(1, 6)))
    return grey_to_colour(rng, to_unit_range(field + 0.15 * white_noise(rng, h, w)))


def cells(rng: np.random.Generator, h: int, w: int) -> Image:
    """Voronoi cells: pebbles, flakes, or the embossing of artificial leather."""
    count = int(rng.integers(80, 1800) * max(h, w) / min(h, w))
    seeds = np.full((h, w), 255, np.uint8)
    seeds[rng.integers(0, h, count), rng.integers(0, w, count)] = 0
    distance, index = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    depth = np.asarray(distance / (distance.max() + 1e-6), np.float32)
    look = count_between(rng, 0, 2)
    if look == 0:
        field = 1 - depth
    elif look == 1:
        field = rng.random(int(index.max()) + 1, dtype=np.float32)[index]
    else:
        relief = blurred(1 - depth, 1.0)
        slope = cv2.Sobel(relief, cv2.CV_32F, 1, 0) * rng.normal() + cv2.Sobel(relief, cv2.CV_32F, 0, 1) * rng.normal()
        field = np.asarray(slope, np.float32)
    field = to_unit_range(field)
    if chance(rng, 0.4):
        field = field + 0.3 * to_unit_range(fractal_noise(rng, h, w, 6))
    return grey_to_colour(rng, to_unit_range(field))


def leather(rng: np.random.Generator, h: int, w: int) -> Image:
    relief = fractal_noise(rng, h, w, count_between(rng, 24, 70), 3, 0.6)
    if chance(rng, 0.6):
        relief = -np.abs(relief)
    slope = cv2.Sobel(relief, cv2.CV_32F, 1, 0) * rng.normal() + cv2.Sobel(relief, cv2.CV_32F, 0, 1) * rng.normal()
    return grey_to_colour(rng, to_unit_range(np.asarray(slope + 0.2 * relief, np.float32)), 2)


def flat(rng: np.random.Generator, h: int, w: int) -> Image:
    """Paint, plastic, a machined face: nearly nothing to see."""
    field = rng.uniform(0.08, 0.92) + rng.uniform(0, 0.05) * fractal_noise(rng, h, w, 3, 3)
    field = field + rng.uniform(0, 0.04) * value_noise(rng, h, w, count_between(rng, 40, 250))
    return _tinted(rng, field.astype(np.float32), pick(rng, (0.0, 0.15, 0.45), (0.5, 0.35, 0.15)))


def brushed(rng: np.random.Generator, h: int, w: int) -> Image:
    """Metal with a grain along one axis."""
    length = int(count_between(rng, 15, 90) * unit_px(h, w)) | 1
    along = (length, 1) if chance(rng, 0.5) else (1, length)
    grain = np.asarray(cv2.blur(white_noise(rng, h, w), along), np.float32)
    field = grain / (grain.std() + 1e-6) * rng.uniform(0.3, 1) + rng.uniform(0, 0.5) * white_noise(rng, h, w)
    field = field + rng.uniform(0, 1) * value_noise(rng, h, w, 3)
    return _tinted(rng, np.asarray(rng.uniform(0.2, 0.8) + rng.uniform(0.02, 0.12) * field, np.float32), 0.03)


def rolled(rng: np.random.Generator, h: int, w: int) -> Image:
    """Hot-rolled or ground steel: grey, low in contrast, faint streaks along the rolling direction, cloudy scale."""
    length = int(count_between(rng, 40, 250) * unit_px(h, w)) | 1
    upright = chance(rng, 0.65)
    streaks = np.asarray(cv2.blur(white_noise(rng, h, w), (1, length) if upright else (length, 1)), np.float32)
    streaks = streaks / (streaks.std() + 1e-6)
    scale = fractal_noise(rng, h, w, count_between(rng, 2, 10), 4, rng.uniform(0.4, 0.75))
    grain = blurred(white_noise(rng, h, w), rng.uniform(0.4, 1.0))
    field = rng.uniform(0.12, 0.75) + rng.uniform(0.006, 0.045) * streaks + rng.uniform(0, 0.04) * scale
    field = field + rng.uniform(0.005, 0.06) * grain
    if chance(rng, 0.4):  # slow profile across the strip
        position = np.linspace(0, 1, w if upright else h)
        profile = np.interp(position, np.linspace(0, 1, 7), rng.normal(0, 0.06, 7))
        field = field + (profile[None, :] if upright else profile[:, None])
    return _tinted(rng, field.astype(np.float32), 0.02)


def concrete(rng: np.random.Generator, h: int, w: int) -> Image:
    field = fractal_noise(rng, h, w, 3, 7, rng.uniform(0.55, 0.95)) + rng.uniform(0, 0.8) * white_noise(rng, h, w)
    if chance(rng, 0.5):  # pits and grains spread everywhere are normal
        pits = blurred(_pepper(rng, h, w, rng.uniform(0.001, 0.012)), rng.uniform(0.7, 1.8) * unit_px(h, w))
        field = field + rng.uniform(1.5, 5) * pits / (np.abs(pits).max() + 1e-6)
    return _tinted(rng, np.asarray(rng.uniform(0.25, 0.75) + rng.uniform(0.03, 0.12) * field, np.float32), 0.04)


def asphalt(rng: np.random.Generator, h: int, w: int) -> Image:
    """Pavement: coarse grain of stones, bright and dark, tar patches, faint wheel tracks."""
    stones = band_noise(rng, h, w, min(rng.uniform(0.08, 0.25) / max(unit_px(h, w), 0.7), 0.4), 0.08)
    sparkle = blurred(_pepper(rng, h, w, rng.uniform(0.005, 0.06)), rng.uniform(0.4, 0.9))
    field = stones * rng.uniform(0.3, 1) + sparkle / (sparkle.std() + 1e-6) * rng.uniform(0, 0.7)
    field = field + rng.uniform(0, 0.9) * fractal_noise(rng, h, w, 2, 3)
    return _tinted(rng, np.asarray(rng.uniform(0.3, 0.65) + rng.uniform(0.02, 0.09) * field, np.float32), 0.04)


def marble(rng: np.random.Generator, h: int, w: int) -> Image:
    x, _ = oriented_coordinates(rng, h, w)
    veins = np.abs(
        np.sin(x / (rng.uniform(20, 80) * unit_px(h, w)) + rng.uniform(0.3, 1.5) * fractal_noise(rng, h, w, 4, 5, 0.6))
    )
    field = veins ** rng.uniform(0.3, 1) + 0.1 * value_noise(rng, h, w, 80)
    return grey_to_colour(rng, np.asarray(np.clip(field, 0, 1), np.float32))


def terrazzo(rng: np.random.Generator, h: int, w: int) -> Image:
    field = fractal_noise(rng, h, w, count_between(rng, 16, 64), 3, 0.5)
    levels = np.sort(rng.normal(0, 0.8, count_between(rng, 2, 4)))
    chips = colour_ramp(rng, 2)[0] + rng.normal(0, rng.uniform(0.05, 0.25), (len(levels) + 1, 1))
    image = np.clip(chips, 0, 1).astype(np.float32)[np.digitize(field, levels)]
    return np.asarray(image + 0.02 * white_noise(rng, h, w)[..., None], np.float32)


def strokes(rng: np.random.Generator, h: int, w: int) -> Image:
    """Felt, carpet, a field of marks: many strokes everywhere are normal."""
    unit = unit_px(h, w)
    count = int(rng.integers(150, 1200) * max(h, w) / min(h, w))
    angle = rng.uniform(0, math.pi) + rng.normal(0, pick(rng, (0.1, 0.5, 3.0)), count)
    reach = np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(4, 24) * unit / 2
    middle = rng.random((count, 2)) * (w, h)
    ends = np.round(np.stack([middle - reach, middle + reach], 1)).astype(np.int32)
    canvas = np.zeros((h, w), np.float32)
    thickness = max(1, round(count_between(rng, 1, 2) * unit))
    groups = np.array_split(ends, 12)  # one call per shade is much quicker than one per stroke
    for shade, group in zip(rng.normal(0, 1, len(groups)), groups, strict=True):
        cv2.polylines(canvas, list(group), False, float(shade), thickness, cv2.LINE_AA)
    return grey_to_colour(rng, to_unit_range(canvas + 0.5 * white_noise(rng, h, w)))


def plain_ground(rng: np.random.Generator, h: int, w: int) -> Image:
    """A quiet material that structure can be laid on."""
    family = pick(rng, (clouds, speckle, flat, brushed, concrete, rolled, flat))
    return np.asarray(np.clip(family(rng, h, w), 0, 1), np.float32)
