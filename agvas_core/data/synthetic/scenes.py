"""Whole good images: textures, parts on a background, parts that fill the frame."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from agvas_core.data.synthetic.photometry import any_colour, tint
from agvas_core.data.synthetic.raster import (
    Image,
    Mask,
    blurred,
    box_corners,
    chance,
    coordinates,
    count_between,
    curve,
    depth_inside,
    draw_disc,
    draw_ellipse,
    draw_path,
    fill_polygon,
    fractal_noise,
    logistic_step,
    pick,
    shading,
    shrunk,
    turned,
    unit_px,
    value_noise,
    white_noise,
)
from agvas_core.data.synthetic.textures import flat, mixed_texture, plain_ground, rolled, texture

__all__ = [
    "Scene",
    "Silhouette",
    "bands",
    "frame_scene",
    "lettering",
    "mirrored_marks",
    "object_scene",
    "organic_scene",
    "rings",
    "silhouette",
    "texture_scene",
]


# Outlines of parts: what of the image is part and what is background.


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


# Structure that a good part has: rings, symmetric marks, bands, lettering. Each is a brightness offset, float32 [H, W].


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


# Organic ground: skin, fruit, leaf, felt; smooth, uneven, with hair, folds and glints that are all normal.


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
