"""Outlines of parts: what of the image is part and what is background."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from agvas_core.data.chance import chance, count_between, pick
from agvas_core.data.noise import coordinates, unit_px
from agvas_core.data.raster import Image, blurred, box_corners, draw_disc, draw_ellipse, draw_path, fill_polygon, turned

__all__ = ["Silhouette", "silhouette"]


@dataclass(frozen=True)
class Silhouette:
    """A part's outline: ``alpha`` float32 [H, W] in 0..1, its centre, half-size and main axis; ``round`` parts take rings."""

    alpha: Image
    centre: tuple[float, float]
    radius_px: float
    angle_deg: float
    name: str

    @property
    def round(self) -> bool:
        return self.name in ("disc", "ellipse", "washer")


@dataclass(frozen=True)
class _Pose:
    height: int
    width: int
    centre: tuple[float, float]
    radius: float  # half of the part's longer side
    angle: float  # degrees

    def blank(self) -> Image:
        return np.zeros((self.height, self.width), np.float32)


def _disc(rng: np.random.Generator, pose: _Pose) -> Image:
    alpha = pose.blank()
    draw_disc(alpha, pose.centre, pose.radius)
    return alpha


def _washer(rng: np.random.Generator, pose: _Pose) -> Image:
    alpha = _disc(rng, pose)
    draw_disc(alpha, pose.centre, pose.radius * rng.uniform(0.2, 0.65), 0.0)
    return alpha


def _ellipse(rng: np.random.Generator, pose: _Pose) -> Image:
    alpha = pose.blank()
    draw_ellipse(alpha, pose.centre, (pose.radius, pose.radius * rng.uniform(0.35, 0.95)), pose.angle)
    return alpha


def _rod(rng: np.random.Generator, pose: _Pose) -> Image:
    """A capsule, a pin, a tablet."""
    alpha = pose.blank()
    half_width = pose.radius * rng.uniform(0.12, 0.45)
    direction = np.array([math.cos(math.radians(pose.angle)), math.sin(math.radians(pose.angle))]) * (pose.radius - half_width)
    draw_path(alpha, np.stack([pose.centre - direction, pose.centre + direction]), round(2 * half_width))
    return alpha


def _screw(rng: np.random.Generator, pose: _Pose) -> Image:
    """Sections of different width along one axis, some with a thread."""
    x, y = coordinates(pose.height, pose.width)
    c, s = math.cos(math.radians(pose.angle)), math.sin(math.radians(pose.angle))
    along = (x - pose.centre[0]) * c + (y - pose.centre[1]) * s
    across = np.abs((y - pose.centre[1]) * c - (x - pose.centre[0]) * s)
    count = count_between(rng, 2, 5)
    edges = np.concatenate([[-pose.radius], np.sort(rng.uniform(-pose.radius, pose.radius, count - 1)), [pose.radius]])
    alpha = pose.blank()
    for start, end in itertools.pairwise(edges):
        half_width = pose.radius * rng.uniform(0.08, 0.45)
        if chance(rng, 0.4):
            teeth = 1 + 0.12 * np.sin(along * (rng.uniform(0.4, 1.5) / unit_px(pose.height, pose.width)))
            section = across < half_width * teeth
        else:
            section = across < half_width
        alpha[(along >= start) & (along <= end) & section] = 1
    return blurred(alpha, 0.8)


def _polygon(rng: np.random.Generator, pose: _Pose) -> Image:
    """A nut or a plate with equal sides, often with a bore."""
    alpha = pose.blank()
    corners = np.linspace(0, 2 * math.pi, count_between(rng, 3, 8), endpoint=False) + math.radians(pose.angle)
    fill_polygon(
        alpha, np.stack([pose.centre[0] + pose.radius * np.cos(corners), pose.centre[1] + pose.radius * np.sin(corners)], 1)
    )
    if chance(rng, 0.6):
        draw_disc(alpha, pose.centre, pose.radius * rng.uniform(0.15, 0.5), 0.0)
    return alpha


def _plate(rng: np.random.Generator, pose: _Pose) -> Image:
    """A sheet with bores, rounded or cut corners."""
    unit = unit_px(pose.height, pose.width)
    alpha = pose.blank()
    size = (2 * pose.radius * rng.uniform(0.6, 1), 2 * pose.radius * rng.uniform(0.35, 0.95))
    corners = box_corners(pose.centre, size, pose.angle)
    fill_polygon(alpha, corners)
    if chance(rng, 0.35):
        soft = blurred(alpha, rng.uniform(3, 9) * unit)
        alpha = np.asarray(np.clip((soft - 0.5) * 6 + 0.5, 0, 1), np.float32)
    for corner in corners[: count_between(rng, 0, 2)]:
        draw_disc(alpha, corner, rng.uniform(4, 12) * unit, 0.0)
    for _ in range(pick(rng, (0, 0, 1, 2, 4))):
        bore = np.array(pose.centre) + rng.normal(0, 0.3, 2) * min(size) * 0.5
        draw_disc(alpha, bore, rng.uniform(3, 16) * unit, 0.0)
    return alpha


def _grown(rng: np.random.Generator, pose: _Pose) -> Image:
    """A nut, a biscuit, a cut of meat: a wavy outline."""
    x, y = coordinates(pose.height, pose.width)
    dx, dy = x - pose.centre[0], (y - pose.centre[1]) * rng.uniform(1, 1.5)
    bearing = np.arctan2(dy, dx)
    reach = np.ones_like(bearing)
    for order in range(1, 9):
        reach += np.float32(rng.normal(0, 0.05) / order**0.7) * np.cos(order * bearing + np.float32(rng.uniform(0, 6)))
    return np.asarray(np.clip(pose.radius * reach - np.hypot(dx, dy) + 0.5, 0, 1), np.float32)


def _several(rng: np.random.Generator, pose: _Pose) -> Image:
    """A handful of equal parts, loose or in a row."""
    alpha = pose.blank()
    size = pose.radius * rng.uniform(0.15, 0.4)
    axes = (size, size * rng.uniform(0.4, 1))
    count = count_between(rng, 2, 11)
    in_row = chance(rng, 0.4)
    for i in range(count):
        if in_row:
            share = (i + 0.5) / count * 2 - 1
            direction = (math.cos(math.radians(pose.angle)), math.sin(math.radians(pose.angle)))
            centre = (
                pose.centre[0] + share * pose.radius * 2 * direction[0],
                pose.centre[1] + share * pose.radius * 2 * direction[1],
            )
            draw_ellipse(alpha, centre, axes, pose.angle)
        else:
            draw_ellipse(
                alpha, (rng.uniform(0.1, 0.9) * pose.width, rng.uniform(0.1, 0.9) * pose.height), axes, rng.uniform(0, 180)
            )
    return alpha


_SHAPES: dict[str, Callable[[np.random.Generator, _Pose], Image]] = {
    "disc": _disc,
    "washer": _washer,
    "ellipse": _ellipse,
    "rod": _rod,
    "screw": _screw,
    "polygon": _polygon,
    "plate": _plate,
    "grown": _grown,
    "several": _several,
}
_WEIGHTS = (2.0, 0.7, 1.0, 0.9, 1.2, 0.9, 1.6, 1.0, 0.8)
_LONG = ("rod", "screw", "plate", "several")


def silhouette(rng: np.random.Generator, h: int, w: int) -> Silhouette:
    """A random outline near the image's middle; in long images mostly a long part along them."""
    unit = unit_px(h, w)
    centre = (w / 2 + rng.normal(0, 8) * unit, h / 2 + rng.normal(0, 8) * unit)
    long_image = max(h, w) > 1.5 * min(h, w)
    if long_image and chance(rng, 0.7):
        name = pick(rng, _LONG)
        angle = (0.0 if w > h else 90.0) + rng.normal(0, 1.5)
        radius = rng.uniform(0.3, 0.47) * (max(h, w) if name != "plate" else min(h, w))
        if name in ("rod", "screw"):
            # Their thickness is a share of their length: keep it inside the short side.
            radius = min(radius, 1.05 * min(h, w))
    else:
        name = pick(rng, tuple(_SHAPES), _WEIGHTS)
        angle = pick(rng, (0.0, 90.0, rng.uniform(0, 180)))
        radius = rng.uniform(0.24, 0.49) * min(h, w)
    alpha = _SHAPES[name](rng, _Pose(h, w, centre, radius, angle))
    if chance(rng, 0.1):  # seen from slightly aside
        alpha = turned(alpha, centre, rng.uniform(-4, 4))
    if cv2.countNonZero((alpha > 0.5).astype(np.uint8)) < 0.01 * h * w:  # turned out too thin to carry a defect
        alpha, name = _disc(rng, _Pose(h, w, centre, radius, angle)), "disc"
    return Silhouette(alpha, centre, radius, angle, name)
