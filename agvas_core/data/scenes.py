"""Whole good images: textures, parts on a background, parts that fill the frame. Organic ground is in ``organic.py``."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from agvas_core.data.chance import chance, pick
from agvas_core.data.irregular import flat, plain_ground, rolled
from agvas_core.data.noise import coordinates, logistic_step, unit_px, value_noise, white_noise
from agvas_core.data.palette import any_colour, tint
from agvas_core.data.raster import Image, Mask, blurred, depth_inside, draw_path, shading, shrunk, turned
from agvas_core.data.silhouettes import Silhouette, silhouette
from agvas_core.data.structure import bands, lettering, mirrored_marks, rings
from agvas_core.data.textures import mixed_texture, texture

__all__ = ["Scene", "frame_scene", "object_scene", "texture_scene"]


@dataclass(frozen=True)
class Scene:
    """A good image before any defect: ``image`` [H, W, 3] in 0..1 and the ``part`` region [H, W] that may carry defects.

    ``backdrop`` is what shows where the part is broken away; ``cover`` draws what lies over part and defect alike.
    """

    image: Image
    part: Mask
    kind: str
    family: str
    backdrop: Image | None = None
    cover: Callable[[Image], Image] | None = None


def texture_scene(rng: np.random.Generator, h: int, w: int, families: Sequence[str]) -> Scene:
    """One material fills the image."""
    image, family = mixed_texture(rng, h, w, families)
    return Scene(image, np.ones((h, w), np.bool_), "texture", family)


def _material(rng: np.random.Generator, h: int, w: int, families: Sequence[str]) -> tuple[Image, str]:
    """What a part is made of: quiet more often than not."""
    if chance(rng, 0.55):
        image, family = plain_ground(rng, h, w), "plain"
        mean = image.mean((0, 1))
        image = mean + (image - mean) * np.float32(rng.uniform(0.1, 0.8))
    else:
        image, family = texture(rng, h, w, families)
    if chance(rng, 0.35):
        image = image * np.clip(1 + rng.normal(0, 0.4, 3), 0.3, 1.8).astype(np.float32)
    return np.asarray(np.clip(image, 0, 1), np.float32), family


def _background(rng: np.random.Generator, h: int, w: int) -> Image:
    look = rng.random()
    if look < 0.35:
        image = np.full((h, w, 3), pick(rng, (0.02, 0.05, 0.95, 1.0, rng.random())), np.float32)
    elif look < 0.5:
        image = np.zeros((h, w, 3), np.float32) + any_colour(rng)
    elif look < 0.8:
        image = flat(rng, h, w)
    else:
        image = plain_ground(rng, h, w)
    if chance(rng, 0.4):
        image = image * (1 + np.float32(rng.uniform(0, 0.3)) * value_noise(rng, h, w, 2)[..., None])
    if chance(rng, 0.3):
        image = image + np.float32(rng.uniform(0.01, 0.06)) * white_noise(rng, h, w)[..., None]
    return np.asarray(np.clip(image, 0, 1), np.float32)


def _lit(rng: np.random.Generator, image: Image, part: Mask, shape: Silhouette) -> Image:
    """A bevel, a light from one side, and now and then a highlight, as on polished dark metal."""
    h, w = part.shape
    unit = unit_px(h, w)
    relief = np.minimum(depth_inside(part) / (rng.uniform(4, 40) * unit), 1) ** np.float32(rng.uniform(0.4, 1))
    relief = blurred(np.asarray(relief, np.float32), rng.uniform(1, 4) * unit)
    light = 1 + np.float32(rng.uniform(0.1, 0.9)) * shading(relief, rng.uniform(0, 2 * math.pi))
    image = np.asarray(image * (light * (1 - np.float32(rng.uniform(0, 0.5)) * (1 - relief)))[..., None], np.float32)
    if chance(rng, 0.35):
        x, y = coordinates(h, w)
        at = shape.centre + rng.normal(0, 0.4, 2) * shape.radius_px
        half_x, half_y = shape.radius_px * rng.uniform(0.05, 0.4, 2)
        glow = np.exp(
            -(((x - np.float32(at[0])) / np.float32(half_x)) ** 2) - ((y - np.float32(at[1])) / np.float32(half_y)) ** 2
        )
        image = image + np.asarray(rng.uniform(0.1, 0.6), np.float32) * glow[..., None]
    return np.asarray(image, np.float32)


def _structure(rng: np.random.Generator, h: int, w: int, shape: Silhouette) -> Image:
    field = np.zeros((h, w), np.float32)
    look = rng.random()
    if look < (0.7 if shape.round else 0.1):
        field = rings(rng, h, w, shape.centre, shape.radius_px * 1.02)
    elif look < 0.75:
        field = mirrored_marks(rng, h, w, shape.centre, shape.angle_deg)
    elif look < 0.88:
        field = bands(rng, h, w, shape.angle_deg)
    if chance(rng, 0.25):
        letters = lettering(rng, h, w, shape.centre, shape.angle_deg + rng.normal(0, 5))
        field = field + letters * np.float32(pick(rng, (-1, 1)) * rng.uniform(0.08, 0.5))
    return field


def _holder(rng: np.random.Generator, h: int, w: int, shape: Silhouette) -> tuple[Callable[[Image], Image], Mask]:
    """A rod or wire that holds the part, with its shadow: in front of it, and normal. -> what draws it, and where it is"""
    unit = unit_px(h, w)
    start = np.array(shape.centre) + rng.normal(0, 0.15, 2) * shape.radius_px
    end = start + np.array([rng.normal(0, 0.3), pick(rng, (-1.5, -0.6))]) * shape.radius_px
    thickness = max(1, round(rng.uniform(1.5, 6) * unit))
    rod, shadow = np.zeros((h, w), np.float32), np.zeros((h, w), np.float32)
    draw_path(rod, np.stack([start, end]), thickness)
    draw_path(shadow, np.stack([start, start + (end - start) @ _rotation(rng.uniform(0.3, 2.5))]), thickness)
    shadow = blurred(shadow, rng.uniform(1, 3) * unit) * np.float32(rng.uniform(0.2, 0.6))
    grey = np.float32(rng.uniform(0.15, 0.8))

    def cover(image: Image) -> Image:
        image = image * (1 - shadow[..., None])
        return np.asarray(image + (grey - image) * rod[..., None], np.float32)

    return cover, np.asarray(rod > 0.2, np.bool_)


def _rotation(angle_rad: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    c, s = math.cos(angle_rad), math.sin(angle_rad)
    return np.array([[c, s], [-s, c]])


def object_scene(rng: np.random.Generator, h: int, w: int, families: Sequence[str]) -> Scene:
    """A part on a background, with the structure, light and shadow that a good one has."""
    unit = unit_px(h, w)
    shape = silhouette(rng, h, w)
    part = np.asarray(shape.alpha > 0.5, np.bool_)
    surface, family = _material(rng, h, w, families)
    backdrop = _background(rng, h, w)
    part_colour = surface[part].mean(0) if part.any() else surface.mean((0, 1))
    for _ in range(4):
        if np.abs(part_colour - backdrop.mean((0, 1))).max() > 0.12:
            break
        backdrop = _background(rng, h, w)
    surface = surface + _structure(rng, h, w, shape)[..., None] * tint(rng, pick(rng, (0.0, 0.5)))
    if chance(rng, 0.7):
        surface = _lit(rng, surface, part, shape)
    surface = np.asarray(np.clip(surface, 0, 1), np.float32)
    if chance(rng, 0.4):
        fallen = turned(shape.alpha, shape.centre, 0, shift=(rng.normal(0, 8) * unit, rng.normal(0, 8) * unit))
        shadow = np.float32(rng.uniform(0.1, 0.6)) * blurred(fallen, rng.uniform(2, 10) * unit)
        backdrop = backdrop * (1 - shadow[..., None])
    edge = blurred(shape.alpha, rng.uniform(0.4, 1.5))[..., None]
    image = np.asarray(backdrop + (surface - backdrop) * edge, np.float32)
    part, cover = shrunk(part, 1), None
    if chance(rng, 0.08):
        cover, hidden = _holder(rng, h, w, shape)
        part = part & ~hidden
    return Scene(image, part, "object", f"{shape.name}/{family}", np.asarray(backdrop, np.float32), cover)


def _banded_frame(rng: np.random.Generator, h: int, w: int, families: Sequence[str]) -> Image:
    """Bands, slots and marks across the frame."""
    angle = pick(rng, (0.0, 90.0, rng.uniform(-4, 4), 90 + rng.uniform(-4, 4)))
    image, _ = _material(rng, h, w, families)
    field = bands(rng, h, w, angle)
    if chance(rng, 0.4):
        field = field + bands(rng, h, w, angle + 90) * np.float32(rng.uniform(0.2, 1))
    if chance(rng, 0.25):
        field = field + mirrored_marks(rng, h, w, (w / 2, h / 2), angle)
    if chance(rng, 0.2):
        at = (w * rng.uniform(0.2, 0.8), h * rng.uniform(0.2, 0.8))
        field = field + lettering(rng, h, w, at, angle) * np.float32(rng.normal(0, 0.3))
    if chance(rng, 0.4):
        field = field * (1 + np.float32(0.3) * value_noise(rng, h, w, 3))
    return np.asarray(image + field[..., None] * tint(rng, pick(rng, (0.0, 0.3))), np.float32)


def _tile_frame(rng: np.random.Generator, h: int, w: int) -> Image:
    """A grey tile under uneven light: bright along its flanks, dark at its borders, ground in one direction."""
    image = rolled(rng, h, w)
    x = np.linspace(-1, 1, w, dtype=np.float32)
    knots = np.linspace(-1, 1, 9)
    glow = np.interp(x, knots, rng.normal(0, rng.uniform(0.03, 0.15), 9)).astype(np.float32)
    slow = 1 + np.float32(rng.uniform(0.05, 0.28)) * value_noise(rng, h, w, pick(rng, (1, 2, 3)))
    image = image * slow[..., None] + blurred(np.repeat(glow[None], h, 0), 4 * unit_px(h, w))[..., None]
    if chance(rng, 0.6):  # the tile's own left and right border
        margin = np.abs(x + rng.normal(0, 0.03)) - rng.uniform(0.85, 1.02)
        image = image * (1 - np.float32(rng.uniform(0.4, 0.95)) * logistic_step(margin, rng.uniform(0.004, 0.03)))[None, :, None]
    return np.asarray(image, np.float32)


def _cut_frame(rng: np.random.Generator, h: int, w: int) -> Image:
    """A moulded or drawn face, grainy along the short side, with bright cut-outs at its long edges."""
    length = int(rng.integers(5, 40) * unit_px(h, w)) | 1
    grain = np.asarray(cv2.blur(white_noise(rng, h, w), (length, 1) if h >= w else (1, length)), np.float32)
    field = (
        rng.uniform(0.35, 0.8)
        + rng.uniform(0.02, 0.1) * grain / (grain.std() + 1e-6)
        + rng.uniform(0, 0.06) * value_noise(rng, h, w, 3)
    )
    side = min(h, w)
    for _ in range(int(rng.integers(0, 5))):
        along = rng.uniform(0, 1) * max(h, w)
        depth, half = rng.uniform(0.02, 0.12) * side, rng.uniform(0.03, 0.1) * side
        far = side if chance(rng, 0.5) else 0
        centre = (far, along) if h >= w else (along, far)
        notch = np.zeros((h, w), np.float32)
        axes = (depth, half) if h >= w else (half, depth)
        cv2.ellipse(
            notch, (int(centre[0]), int(centre[1])), (max(1, int(axes[0])), max(1, int(axes[1]))), 0, 0, 360, 1, -1, cv2.LINE_AA
        )
        field = field + (pick(rng, (1.0, 0.02)) - field) * notch
    return np.asarray(np.repeat(field.astype(np.float32)[..., None], 3, 2), np.float32)


def frame_scene(rng: np.random.Generator, h: int, w: int, families: Sequence[str]) -> Scene:
    """A part larger than the frame; edges that run through the whole image are normal."""
    name = pick(rng, ("banded", "tile", "cut"), (0.55, 0.3, 0.15))
    if name == "banded":
        image = _banded_frame(rng, h, w, families)
    else:
        image = _tile_frame(rng, h, w) if name == "tile" else _cut_frame(rng, h, w)
    if chance(rng, 0.15):  # seen through a round opening
        x, y = coordinates(h, w)
        away = np.hypot((x - w / 2) / w, (y - h / 2) / h).astype(np.float32)
        image = (
            image
            - np.float32(rng.uniform(0.1, 0.7))
            * logistic_step(away - rng.uniform(0.4, 0.65), rng.uniform(0.004, 0.04))[..., None]
        )
    return Scene(np.asarray(np.clip(image, 0, 1), np.float32), np.ones((h, w), np.bool_), "frame", name)
