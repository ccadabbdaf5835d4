"""Defects with an area: pits, bites, spots, stains, patches, dents, worn ground."""

import math

import numpy as np

from agvas_core.data.synthetic.canvas import Ground, Painting
from agvas_core.data.synthetic.noise import chance, coordinates, count_between, fractal_noise, pick, value_noise
from agvas_core.data.synthetic.photometry import any_colour
from agvas_core.data.synthetic.raster import Image, blurred, box_corners, draw_disc, fill_polygon, resampled, shading, turned
from agvas_core.data.synthetic.shapes import BLOB_REACH, blob
from agvas_core.data.synthetic.textures import texture
from agvas_core.data.synthetic.thin_defects import line_amplitude, sign

__all__ = [
    "bite",
    "buckle",
    "burr",
    "dent",
    "foreign",
    "lesion",
    "missing",
    "pit",
    "shifted",
    "spots",
    "stain",
    "swelling",
    "worn",
]

Centre = tuple[float, float]


def _mix(image: Image, other: Image, share: Image) -> Image:
    return np.asarray(image + (other - image) * share[..., None], np.float32)


def _blob(
    rng: np.random.Generator, ground: Ground, centre: Centre, radius: float, roughness: float
) -> tuple[tuple[slice, slice], Image, Image]:
    """Window, the image in it, and how far out each of its pixels lies."""
    window, local = ground.window(centre, BLOB_REACH * radius)
    image = ground.image[window]
    return window, image, blob(rng, image.shape[0], image.shape[1], local, radius, roughness)


def pit(rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: Centre, radius: float) -> Painting:
    """A hole or inclusion with a sharp edge, sometimes with a bright or dark rim."""
    window, image, away = _blob(rng, ground, centre, radius, look.uniform(0, 0.3))
    inside = np.clip((1 - away) * radius / 1.5 + 0.5, 0, 1)
    if chance(look, 0.12):
        colour = any_colour(look)
    else:
        colour = np.full(3, look.uniform(0, 0.15) if ground.brightness > 0.22 else look.uniform(0.5, 1), np.float32)
    strength = np.float32(pick(look, (1.0, look.uniform(0.45, 0.9))))
    rim = np.exp(-(((away - 1) * radius / 2) ** 2)) * np.float32(pick(look, (0.0, 0.0, 0.3, -0.2)))
    after = _mix(image, np.broadcast_to(colour, image.shape), inside * strength) + rim[..., None]
    return Painting(window, np.asarray(after, np.float32), np.maximum(inside, (np.abs(rim) > 0.12).astype(np.float32)))


def bite(rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: Centre, radius: float) -> Painting | None:
    """A piece broken off the edge: the backdrop shows."""
    if ground.backdrop is None:
        return None
    window, image, away = _blob(rng, ground, centre, radius, look.uniform(0.05, 0.4))
    inside = np.clip((1 - away) * radius + 0.5, 0, 1)
    return Painting(window, _mix(image, ground.backdrop[window], inside), inside, off_part=True)


def burr(rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: Centre, radius: float) -> Painting | None:
    """Material that sticks out over the edge."""
    part = ground.part[ground.window(centre, BLOB_REACH * radius)[0]]
    if ground.backdrop is None or not part.any():
        return None
    window, image, away = _blob(rng, ground, centre, radius, look.uniform(0.05, 0.4))
    outside = blurred((~part).astype(np.float32), 0.7)
    inside = np.clip((1 - away) * radius + 0.5, 0, 1) * outside
    colour = image[part].mean(0) * np.float32(look.uniform(0.7, 1.3))
    grain = 1 + np.float32(0.08) * value_noise(rng, image.shape[0], image.shape[1], 10)
    return Painting(window, _mix(image, np.asarray(colour * grain[..., None], np.float32), inside), inside, off_part=True)


def spots(rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: Centre, radius: float) -> Painting:
    """A group of small dots."""
    window, local = ground.window(centre, 3 * radius)
    image = ground.image[window]
    canvas = np.zeros(image.shape[:2], np.float32)
    for _ in range(count_between(rng, 3, 14)):
        at = np.array(local) + rng.normal(0, 1, 2) * radius
        draw_disc(canvas, (at[0], at[1]), max(1.0, look.uniform(1, 4) * rng.uniform(0.6, 1.3) * ground.unit))
    alpha = blurred(canvas, 0.6)
    coat = np.ones(3, np.float32) if chance(look, 0.6) else (1 + look.normal(0, 0.6, 3)).astype(np.float32)
    strength = alpha * np.float32(sign(look, ground) * 1.3 * line_amplitude(look, ground))
    return Painting(window, np.asarray(image + strength[..., None] * coat, np.float32), alpha, thin=True)


def stain(rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: Centre, radius: float) -> Painting:
    """A film of colour through which the ground shows; soft or sharp at its edge."""
    window, image, away = _blob(rng, ground, centre, radius, look.uniform(0, 0.35))
    film = np.clip((1 - away) * look.uniform(1.5, 8), 0, 1)
    colour = any_colour(look) if chance(look, 0.5) else np.full(3, look.uniform(0, 0.5), np.float32)
    depth = np.float32(look.uniform(0.25, 0.85))
    covering = np.broadcast_to(colour, image.shape) if chance(look, 0.5) else image * colour
    return Painting(window, _mix(image, np.asarray(covering, np.float32), film * depth), film)


def lesion(rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: Centre, radius: float) -> Painting:
    """A pigmented or rusted spot with a texture of its own, in one or two shades."""
    window, image, away = _blob(rng, ground, centre, radius, look.uniform(0.02, 0.28))
    h, w = away.shape
    film = np.clip((1 - away) * look.uniform(2, 14), 0, 1)
    base = image.mean((0, 1))
    colour = np.clip(base * look.uniform(0.2, 0.8) * (1 + look.normal(0, 0.2, 3)), 0, 1)
    mottle = look.uniform(0.02, 0.12) * fractal_noise(rng, h, w, count_between(rng, 4, 14), 4)
    inner = colour + mottle[..., None]
    if chance(look, 0.4):  # a darker heart
        heart = np.clip((rng.uniform(0.4, 0.8) - away) * 4, 0, 1)[..., None]
        inner = inner * (1 - look.uniform(0.2, 0.6) * heart)
    share = film * np.float32(look.uniform(0.5, 1))
    return Painting(window, _mix(image, np.asarray(inner, np.float32), share), film)


def _region(rng: np.random.Generator, ground: Ground, centre: Centre, radius: float) -> tuple[tuple[slice, slice], Image]:
    """A sharp region for a patch: a blob, a box, or an island of noise. -> window, [h, w] of 0 and 1"""
    form = rng.random()
    if form < 0.5:
        window, _, away = _blob(rng, ground, centre, radius, rng.uniform(0, 0.35))
        return window, (away < 1).astype(np.float32)
    window, local = ground.window(centre, BLOB_REACH * radius)
    h, w = ground.image[window].shape[:2]
    region = np.zeros((h, w), np.float32)
    if form < 0.8:
        size = (2 * radius * rng.uniform(0.5, 1.3), 2 * radius * rng.uniform(0.4, 1.1))
        fill_polygon(region, box_corners(local, size, pick(rng, (0.0, 90.0, rng.uniform(0, 180)))))
        return window, region
    x, y = coordinates(h, w)
    away = np.hypot(x - np.float32(local[0]), y - np.float32(local[1])) / np.float32(radius)
    return window, (fractal_noise(rng, h, w, 5, 3) * 0.8 > (away - 0.9) * 2.2).astype(np.float32) * (away < BLOB_REACH * 0.95)


def missing(rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: Centre, radius: float) -> Painting:
    """The structure is gone: smeared over, or one flat shade."""
    window, region = _region(rng, ground, centre, radius)
    image = ground.image[window]
    if chance(look, 0.55):
        fill = blurred(image, max(4.0, 0.5 * radius))
    else:
        shade = np.percentile(ground.image[::8, ::8].reshape(-1, 3), pick(look, (3, 97)), axis=0)
        fill = np.zeros_like(image) + shade.astype(np.float32)
    return Painting(window, _mix(image, fill, blurred(region, 0.8)), region)


def shifted(rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: Centre, radius: float) -> Painting:
    """The structure is there, but turned, scaled or moved: misaligned, cut and rejoined."""
    window, region = _region(rng, ground, centre, radius)
    image = ground.image[window]
    angle = pick(look, (look.uniform(20, 160), 0.0), (0.7, 0.3))
    move = (look.uniform(-0.8, 0.8) * radius, look.uniform(-0.8, 0.8) * radius)
    middle = (image.shape[1] / 2, image.shape[0] / 2)
    other = turned(image, middle, angle, pick(look, (1.0, 0.5, 0.6, 1.6, 2.0)), move, mirror=True)
    if chance(look, 0.3):
        other = other + (look.normal(0, 0.08) * np.ones(3)).astype(np.float32)
    return Painting(window, _mix(image, np.asarray(other, np.float32), blurred(region, 0.5)), region)


def foreign(rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: Centre, radius: float) -> Painting:
    """Another material lies on the part or shows through it."""
    window, region = _region(rng, ground, centre, radius)
    image = ground.image[window]
    other, _ = texture(look, max(48, image.shape[0]), max(48, image.shape[1]), ground.families)
    share = blurred(region, rng.uniform(0.3, 1.5)) * np.float32(look.uniform(0.35, 1))
    return Painting(window, _mix(image, other[: image.shape[0], : image.shape[1]], share), region)


def dent(rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: Centre, radius: float) -> Painting:
    """A hollow or a bump: light on one side, shade on the other."""
    window, image, away = _blob(rng, ground, centre, radius, look.uniform(0, 0.25))
    relief = np.exp(-away * away * np.float32(look.uniform(1.2, 3)))
    light = shading(np.asarray(relief, np.float32), look.uniform(0, 2 * math.pi))
    after = image * (1 + np.float32(min(0.9, 2.5 * line_amplitude(look, ground))) * light[..., None])
    return Painting(window, np.asarray(after, np.float32), (away < 1.1).astype(np.float32))


def swelling(rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: Centre, radius: float) -> Painting:
    """A dent or bump whose ground also changed colour a little."""
    raised = dent(rng, look, ground, centre, radius)
    film = blurred(raised.alpha, max(1.0, 0.08 * radius))[..., None]
    after = raised.image * (1 + np.float32(look.normal(0, 0.15)) * film) + look.normal(0, 0.06, 3).astype(np.float32) * film
    return Painting(raised.window, np.asarray(after, np.float32), raised.alpha)


def buckle(rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: Centre, radius: float) -> Painting:
    """The structure itself is pulled out of shape."""
    window, image, away = _blob(rng, ground, centre, radius, 0.1)
    x, y = coordinates(image.shape[0], image.shape[1])
    pull = np.exp(-away * away * np.float32(1.2)) * np.float32(look.uniform(6, 18) * ground.unit)
    direction, wave = look.uniform(0, 2 * math.pi), np.float32(look.uniform(1, 4) / radius)
    to_x = x + pull * np.float32(math.cos(direction)) * np.sin(y * wave)
    to_y = y + pull * (np.float32(math.sin(direction)) * np.sin(x * wave) + np.float32(0.5))
    return Painting(window, resampled(image, to_x, to_y), (away < 1).astype(np.float32))


def worn(rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: Centre, radius: float) -> Painting:
    """Rubbed ground: smoother or rougher than the rest, a little brighter or darker."""
    window, region = _region(rng, ground, centre, radius)
    image = ground.image[window]
    smooth = blurred(image, look.uniform(1, 3.5) * max(1.0, ground.unit))
    h, w = region.shape
    if chance(look, 0.5):
        other = smooth
    else:
        other = image + (image - smooth) * np.float32(look.uniform(1, 2))
        other = other + np.float32(look.uniform(0.02, 0.1)) * value_noise(rng, h, w, min(h, w) / 2)[..., None]
    other = other + np.float32(pick(look, (-1, 1)) * look.uniform(0, 0.09))
    return Painting(window, _mix(image, np.asarray(other, np.float32), blurred(region, look.uniform(0.5, 2.5))), region)
