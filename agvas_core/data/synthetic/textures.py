"""The texture families by name.

``FAMILIES[name](rng, h, w)`` gives float32 [h, w, 3], not yet clipped; ``texture`` draws a family and clips it to 0..1.
"""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from agvas_core.data.synthetic.photometry import any_colour, colour_ramp, grey_to_colour, tint
from agvas_core.data.synthetic.raster import (
    Image,
    band_noise,
    blurred,
    chance,
    count_between,
    fractal_noise,
    logistic_step,
    oriented_coordinates,
    pick,
    resampled,
    to_unit_range,
    unit_px,
    value_noise,
    white_noise,
)

__all__ = [
    "FAMILIES",
    "HELD_OUT_FAMILIES",
    "TextureFamily",
    "flat",
    "mixed_texture",
    "plain_ground",
    "rolled",
    "texture",
]


# Texture families without a lattice: cast, ground, rolled, sprayed, grown. Each is (rng, h, w) -> float32 [h, w, 3].


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


# Texture families on a lattice: woven, printed, laid, punched, sawn. Each is (rng, h, w) -> float32 [h, w, 3].


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


TextureFamily = Callable[[np.random.Generator, int, int], Image]

FAMILIES: dict[str, TextureFamily] = {
    "asphalt": asphalt,
    "bandpass": bandpass,
    "bricks": bricks,
    "brushed": brushed,
    "cells": cells,
    "clouds": clouds,
    "concrete": concrete,
    "dots": dots,
    "flat": flat,
    "grid": grid,
    "leather": leather,
    "marble": marble,
    "motif": motif,
    "rail": rail,
    "rolled": rolled,
    "speckle": speckle,
    "stripes": stripes,
    "strokes": strokes,
    "terrazzo": terrazzo,
    "weave": weave,
    "wood": wood,
}
HELD_OUT_FAMILIES = ("leather", "motif", "terrazzo", "wood")  # to ask, in validation, how a model does on families it never saw


def texture(rng: np.random.Generator, h: int, w: int, families: Sequence[str]) -> tuple[Image, str]:
    """One of ``families``: float32 [h, w, 3] in 0..1 and its name."""
    name = pick(rng, families)
    return np.asarray(np.clip(FAMILIES[name](rng, h, w), 0, 1), np.float32), name


def mixed_texture(rng: np.random.Generator, h: int, w: int, families: Sequence[str]) -> tuple[Image, str]:
    """A texture, one time in four with the grain of a second one over its structure; named after the first."""
    image, name = texture(rng, h, w, families)
    if chance(rng, 0.25):
        share = np.float32(rng.uniform(0.1, 0.45))
        image = image * (1 - share) + texture(rng, h, w, families)[0] * share
    return image, name
