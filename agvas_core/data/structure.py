"""Structure that a good part has: rings, symmetric marks, bands, lettering. Each is a brightness offset, float32 [H, W]."""

import math

import cv2
import numpy as np

from agvas_core.data.chance import chance, count_between, pick
from agvas_core.data.noise import coordinates, logistic_step, unit_px
from agvas_core.data.raster import Image, draw_ellipse, turned

__all__ = ["bands", "lettering", "mirrored_marks", "rings"]

_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def rings(rng: np.random.Generator, h: int, w: int, centre: tuple[float, float], radius_px: float) -> Image:
    """Concentric steps as on a turned part or a bottle seen from above, with ribs and highlights around the axis."""
    x, y = coordinates(h, w)
    dx, dy = (x - centre[0]) / radius_px, (y - centre[1]) / radius_px
    rho = np.sqrt(dx * dx + dy * dy)
    edges = np.sort(rng.uniform(0.1, 1, count_between(rng, 2, 7)))
    steps = rng.normal(0, rng.uniform(0.05, 0.3), len(edges))
    softness = rng.uniform(0.5, 3, len(edges)) * unit_px(h, w) / radius_px
    # The profile depends on the radius alone, so it is worked out once along a line and looked up.
    line = np.linspace(0, 2.5, 1024, dtype=np.float32)
    profile = np.zeros_like(line)
    for edge, step, soft in zip(edges, steps, softness, strict=True):
        profile += np.float32(step) * logistic_step(edge - line, float(soft))
    field = np.interp(rho, line, profile).astype(np.float32)
    ribs, shine = chance(rng, 0.4), chance(rng, 0.6)
    if ribs or shine:
        bearing = np.arctan2(dy, dx)
        if ribs:
            inner, outer = np.sort(rng.uniform(0.2, 1, 2))
            wave = np.sin(count_between(rng, 3, 40) * bearing + np.float32(rng.uniform(0, 6))) > rng.uniform(-0.8, 0.8)
            field = field + np.float32(rng.uniform(0.03, 0.2)) * (wave & (rho > inner) & (rho < outer))
        if shine:
            lobes = np.cos(bearing * pick(rng, (1, 2, 3)) + np.float32(rng.uniform(0, 6))) ** pick(rng, (1, 2, 8))
            ring = np.exp(-(((rho - np.float32(rng.uniform(0.2, 0.9))) / np.float32(_highlight_width(rng))) ** 2))
            field = field + np.float32(rng.uniform(0.05, 0.4)) * lobes * ring
    return np.asarray(field, np.float32)


def _highlight_width(rng: np.random.Generator) -> float:
    """Width of a highlight in shares of the part's radius."""
    return float(rng.uniform(0.02, 0.2))


def mirrored_marks(rng: np.random.Generator, h: int, w: int, centre: tuple[float, float], angle_deg: float) -> Image:
    """Discs, blocks and outlines, most of them on both sides of an axis."""
    side = min(h, w)
    field = np.zeros((h, w), np.float32)
    for _ in range(count_between(rng, 1, 5)):
        value = float(rng.normal(0, 0.2))
        off_axis, y = abs(rng.normal(0, 0.18 * side)), h / 2 + rng.uniform(-0.35, 0.35) * side
        half_x, half_y = int(rng.uniform(0.01, 0.1) * side) + 1, int(rng.uniform(0.01, 0.15) * side) + 1
        shape = count_between(rng, 0, 2)
        for sign in (1, -1):
            x = w / 2 + sign * off_axis
            if shape == 0:
                draw_ellipse(field, (x, y), (half_x, half_y), 0, value)
            else:
                thickness = -1 if shape == 1 else max(1, round(count_between(rng, 1, 3) * unit_px(h, w)))
                cv2.rectangle(field, (int(x) - half_x, int(y) - half_y), (int(x) + half_x, int(y) + half_y), value, thickness)
            if chance(rng, 0.3):  # a mark of its own
                break
    return turned(field, (w / 2, h / 2), -angle_deg, shift=(centre[0] - w / 2, centre[1] - h / 2))


def bands(rng: np.random.Generator, h: int, w: int, angle_deg: float) -> Image:
    """Parallel steps and grooves across the whole image; their straight edges are normal."""
    x, y = coordinates(h, w)
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    reach = abs(c) * w + abs(s) * h
    position = ((x - w / 2) * np.float32(c) + (y - h / 2) * np.float32(s)) / np.float32(reach) + np.float32(0.5)
    edges = np.sort(rng.uniform(0, 1, count_between(rng, 1, 8)))
    steps = rng.normal(0, rng.uniform(0.05, 0.3), len(edges))
    line = np.linspace(-0.2, 1.2, 2048, dtype=np.float32)
    profile = np.zeros_like(line)
    for edge, step in zip(edges, steps, strict=True):
        profile += np.float32(step) * logistic_step(line - edge, rng.uniform(0.4, 3) * unit_px(h, w) / reach)
    if chance(rng, 0.4):
        start, end = np.sort(rng.uniform(0, 1, 2))
        profile += rng.uniform(0.05, 0.2) * np.sin(line * rng.uniform(20, 220)) * (line > start) * (line < end)
    return np.interp(position, line, profile).astype(np.float32)


def lettering(rng: np.random.Generator, h: int, w: int, centre: tuple[float, float], angle_deg: float) -> Image:
    """A code of one to six characters, 0..1."""
    unit = unit_px(h, w)
    code = "".join(_LETTERS[int(i)] for i in rng.integers(0, len(_LETTERS), count_between(rng, 1, 6)))
    font, scale = count_between(rng, 0, 4), max(0.3, rng.uniform(0.4, 1.8) * unit)
    thickness = max(1, round(count_between(rng, 1, 3) * unit))
    (text_width, text_height), _ = cv2.getTextSize(code, font, scale, thickness)
    corner = (
        int(centre[0] - text_width / 2 + rng.normal(0, 8) * unit),
        int(centre[1] + text_height / 2 + rng.normal(0, 12) * unit),
    )
    canvas = np.zeros((h, w), np.uint8)
    cv2.putText(canvas, code, corner, font, scale, 255, thickness, cv2.LINE_AA)
    return turned(np.asarray(canvas / 255, np.float32), centre, -angle_deg)
