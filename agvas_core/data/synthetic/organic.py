"""Organic ground: skin, fruit, leaf, felt; smooth, uneven, with hair, folds and glints that are all normal."""

import cv2
import numpy as np

from agvas_core.data.synthetic.noise import chance, coordinates, count_between, fractal_noise, logistic_step, unit_px, value_noise
from agvas_core.data.synthetic.raster import Image, Mask, blurred, draw_path
from agvas_core.data.synthetic.scenes import Scene
from agvas_core.data.synthetic.shapes import curve

__all__ = ["organic_scene"]


def _hairs(rng: np.random.Generator, h: int, w: int) -> Image:
    """How much light hairs take away, [H, W] in 0..1."""
    canvas = np.zeros((h, w), np.float32)
    thickness = max(1, round(rng.uniform(0.6, 1.8) * unit_px(h, w)))
    for _ in range(count_between(rng, 2, 24)):
        start = rng.random(2) * (w, h)
        draw_path(canvas, curve(rng, start, rng.uniform(0.2, 1) * min(h, w), 0.04, unit_px(h, w)), thickness)
    return blurred(canvas, 0.6) * np.float32(rng.uniform(0.2, 0.8))


def _glints(rng: np.random.Generator, h: int, w: int) -> Image:
    """Small wet highlights."""
    unit = unit_px(h, w)
    canvas = np.zeros((h, w), np.float32)
    for _ in range(count_between(rng, 1, 11)):
        axes = (max(1, round(rng.uniform(1, 8) * unit)), max(1, round(rng.uniform(1, 4) * unit)))
        at = (int(rng.integers(w)), int(rng.integers(h)))
        cv2.ellipse(canvas, at, axes, rng.uniform(0, 180), 0, 360, rng.uniform(0.3, 0.8), -1)
    return blurred(canvas, 1.2 * unit)


def _vignette(rng: np.random.Generator, h: int, w: int) -> Image:
    """The dark corners of a round optic, [H, W] in 0..1."""
    x, y = coordinates(h, w)
    at = np.array([w / 2, h / 2]) + rng.normal(0, 8, 2) * unit_px(h, w)
    reach = rng.uniform(0.45, 0.68) * (max(h, w) if chance(rng, 0.7) else min(h, w))
    away = np.hypot(x - np.float32(at[0]), y - np.float32(at[1])) - np.float32(reach)
    return logistic_step(away, rng.uniform(0.5, 20) * unit_px(h, w))


def organic_scene(rng: np.random.Generator, h: int, w: int) -> Scene:
    """Smooth organic ground; hair, glints and dark corners lie over whatever defect comes."""
    unit = unit_px(h, w)
    skin = (rng.uniform(0.5, 0.95), rng.uniform(0.35, 0.75), rng.uniform(0.3, 0.75))
    base = np.array(skin if chance(rng, 0.8) else rng.random(3), np.float32)
    mottle = fractal_noise(rng, h, w, count_between(rng, 2, 30), 5)[..., None] * (1 + rng.normal(0, 0.3, 3))
    image = (
        base
        + rng.uniform(0.01, 0.05) * mottle
        + rng.uniform(0, 0.09) * value_noise(rng, h, w, count_between(rng, 2, 4))[..., None]
    )
    if chance(rng, 0.35):  # folds
        ridges = blurred(np.abs(fractal_noise(rng, h, w, count_between(rng, 2, 4), 2)), 3 * unit)
        slope = np.asarray(cv2.Sobel(ridges, cv2.CV_32F, 1, 0), np.float32)
        image = image + rng.uniform(0.025, 0.1) * (slope / (slope.std() + 1e-6))[..., None]
    part: Mask = np.ones((h, w), np.bool_)
    dim: Image | None = None
    if chance(rng, 0.35):
        corners = _vignette(rng, h, w)
        part, dim = np.asarray(corners < 0.3, np.bool_), 1 - corners
    hairs = _hairs(rng, h, w) if chance(rng, 0.3) else None
    glints = _glints(rng, h, w) if chance(rng, 0.3) else None

    def cover(image: Image) -> Image:
        if hairs is not None:
            image = image * (1 - hairs[..., None])
        if glints is not None:
            image = image + glints[..., None]
        return np.asarray(image if dim is None else image * dim[..., None], np.float32)

    family = "ground" if hairs is None else "hairy ground"
    return Scene(np.asarray(np.clip(image, 0, 1), np.float32), part, "organic", family, None, cover)
