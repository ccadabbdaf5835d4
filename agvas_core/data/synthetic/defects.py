"""The kinds of defect, where and how large they come, and painting one of them."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agvas_core.data.synthetic.canvas import Ground, Painter, Painting, settled
from agvas_core.data.synthetic.photometry import any_colour
from agvas_core.data.synthetic.raster import (
    BLOB_REACH,
    Image,
    Mask,
    blob,
    blurred,
    box_corners,
    chance,
    coordinates,
    count_between,
    curve,
    draw_disc,
    draw_path,
    fill_polygon,
    fractal_noise,
    grown,
    log_uniform,
    pick,
    resampled,
    shading,
    turned,
    value_noise,
)
from agvas_core.data.synthetic.textures import texture

__all__ = ["KINDS", "PAINTERS", "Recipe", "centre_in", "draw_radius", "paint"]


# Defects that are thin and long: scratches, rolled-in streaks, cracks, threads.


Paths = list[NDArray[np.float64]]


def _through(path: NDArray[np.float64], centre: tuple[float, float]) -> NDArray[np.float64]:
    """``path`` moved so that its middle lies at ``centre``."""
    return np.asarray(path - path[len(path) // 2] + np.array(centre), np.float64)


def _drawn(ground: Ground, paths: Paths, thickness: list[int]) -> tuple[tuple[slice, slice], Image]:
    """``paths`` drawn in the smallest window that holds them. -> window, strength [h, w] in 0..1"""
    h, w = ground.shape
    points = np.concatenate(paths)
    margin = max(thickness) + 6
    x0, y0 = np.clip(points.min(0).astype(int) - margin, 0, [w - 8, h - 8])
    x1, y1 = np.clip(points.max(0).astype(int) + margin + 1, [x0 + 8, y0 + 8], [w, h])
    canvas = np.zeros((y1 - y0, x1 - x0), np.float32)
    for path, width in zip(paths, thickness, strict=True):
        draw_path(canvas, path - (x0, y0), width)
    return (slice(int(y0), int(y1)), slice(int(x0), int(x1))), canvas


def _softened(drawn: Image, sigma_px: float) -> Image:
    soft = blurred(drawn, sigma_px)
    return np.asarray(soft / (soft.max() + 1e-6), np.float32)


def line_amplitude(look: np.random.Generator, ground: Ground) -> float:
    """Contrast of a defect: in step with the texture it has to stand out of."""
    return min(max(0.08, ground.spread * look.uniform(0.6, 2.2)) * look.uniform(0.8, 1.8), 0.7)


def sign(look: np.random.Generator, ground: Ground) -> float:
    """-1 for a darker defect, 1 for a brighter one; there must be room for it."""
    if ground.brightness > 0.8:
        return -1.0
    return -1.0 if ground.brightness > 0.2 and chance(look, 0.6) else 1.0


def _coat(look: np.random.Generator) -> NDArray[np.float32]:
    """How much each channel takes part, [3]."""
    return np.ones(3, np.float32) if chance(look, 0.6) else (1 + look.normal(0, 0.6, 3)).astype(np.float32)


def scratch(
    rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: tuple[float, float], length: float
) -> Painting:
    """One to three near-parallel, almost straight lines."""
    wobble, heading = pick(look, (0.0, 0.01, 0.05)), rng.uniform(0, 2 * math.pi)
    paths: Paths = []
    for _ in range(pick(rng, (1, 1, 1, 2, 3))):
        start = np.array(centre) + rng.normal(0, 0.08, 2) * length * bool(paths)
        path = curve(rng, start, length * rng.uniform(0.5, 1), wobble, ground.unit, heading + rng.normal(0, 0.08))
        paths.append(_through(path, (start[0], start[1])))
    thickness = max(1, round(pick(look, (1, 1, 2, 3)) * ground.unit))
    window, drawn = _drawn(ground, paths, [thickness] * len(paths))
    alpha = _softened(drawn, look.uniform(0.3, 0.8))
    strength = alpha * np.float32(sign(look, ground) * line_amplitude(look, ground))
    return Painting(window, ground.image[window] + strength[..., None] * _coat(look), alpha, thin=True)


def streak(
    rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: tuple[float, float], length: float
) -> Painting:
    """A broad straight score along one of the image's axes, as rolls and guides leave it; its edges are ragged."""
    heading = pick(look, (0.0, math.pi / 2)) + rng.normal(0, 0.02)
    width = look.uniform(3, 12) * ground.unit
    paths: Paths = []
    for i in range(pick(rng, (1, 1, 2, 3))):
        across = np.array([-math.sin(heading), math.cos(heading)]) * i * width * rng.uniform(1.2, 2.5)
        start = np.array(centre) + across
        paths.append(
            _through(curve(rng, start, length * rng.uniform(0.6, 1.2), 0.004, ground.unit, heading, 0.0), (start[0], start[1]))
        )
    window, drawn = _drawn(ground, paths, [max(2, round(width))] * len(paths))
    h, w = drawn.shape
    ragged = blurred(drawn, 0.25 * width) + np.float32(look.uniform(0, 0.25)) * value_noise(
        rng, h, w, max(2, min(h, w) / (0.5 * width))
    )
    alpha = np.clip((ragged - 0.5) * 4 + 0.5, 0, 1)
    inner = 1 + np.float32(look.uniform(0, 0.35)) * value_noise(rng, h, w, 6)
    strength = alpha * inner * np.float32(sign(look, ground) * line_amplitude(look, ground))
    return Painting(window, ground.image[window] + strength[..., None], np.asarray(alpha, np.float32))


def crack(
    rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: tuple[float, float], length: float
) -> Painting:
    """A jagged dark line with branches."""
    unit = ground.unit
    main = _through(curve(rng, np.zeros(2), length, look.uniform(0.2, 0.5), unit), centre)
    thickness = max(1, round(pick(look, (1, 2, 2, 3, 4)) * unit))
    paths: Paths = [main]
    for _ in range(count_between(rng, 0, 3)):
        joint = main[int(rng.integers(len(main)))]
        paths.append(curve(rng, joint, length * rng.uniform(0.1, 0.4), 0.4, unit))
    window, drawn = _drawn(ground, paths, [thickness] + [max(1, thickness - 1)] * (len(paths) - 1))
    alpha = _softened(drawn, look.uniform(0.3, 1.0))
    before = ground.image[window]
    if chance(look, 0.9):
        image = before * (1 - np.float32(look.uniform(0.35, 0.95)) * alpha[..., None])
    else:
        image = before + np.float32(line_amplitude(look, ground)) * alpha[..., None]
    return Painting(window, np.asarray(image, np.float32), alpha, thin=True)


def hairline(
    rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: tuple[float, float], length: float
) -> Painting:
    """A crack one pixel wide, sometimes broken; its label is as thin as the line."""
    unit = ground.unit
    wobble = pick(look, (0.02, 0.1, 0.3, 0.5))
    heading = pick(look, (look.uniform(0, 2 * math.pi), 0.0, math.pi / 2), (0.6, 0.25, 0.15))  # many follow the grain
    main = _through(curve(rng, np.zeros(2), length, wobble, unit, heading), centre)
    paths: Paths = [main]
    for _ in range(pick(rng, (0, 0, 1, 3))):
        paths.append(curve(rng, main[int(rng.integers(len(main)))], length * rng.uniform(0.1, 0.35), 0.4, unit))
    thickness = max(1, round(0.8 * unit))
    window, drawn = _drawn(ground, paths, [thickness] * len(paths))
    if chance(look, 0.3):
        drawn = drawn * (value_noise(rng, drawn.shape[0], drawn.shape[1], 4) > -0.6)
    alpha = _softened(np.asarray(drawn, np.float32), look.uniform(0.35, 0.8))
    before = ground.image[window]
    if chance(look, 0.85):
        image = before * (1 - np.float32(look.uniform(0.25, 0.85)) * alpha[..., None])
    else:
        image = before + np.float32(look.uniform(0.12, 0.4)) * alpha[..., None]
    return Painting(window, np.asarray(image, np.float32), alpha, thin=True)


def thread(
    rng: np.random.Generator, look: np.random.Generator, ground: Ground, centre: tuple[float, float], length: float
) -> Painting:
    """A fibre lying on the part, with its shadow."""
    path = _through(curve(rng, np.zeros(2), length, look.uniform(0.05, 0.25), ground.unit), centre)
    thickness = max(2, round(count_between(look, 2, 5) * ground.unit))
    window, drawn = _drawn(ground, [path], [thickness])
    _, fallen = _drawn(ground, [path], [thickness])
    shadow = np.roll(blurred(fallen, 1.5 * ground.unit), (max(1, round(2 * ground.unit)),) * 2, (0, 1))
    alpha = _softened(drawn, 0.5)
    if chance(look, 0.4):
        colour = any_colour(look)
    else:
        colour = np.full(3, look.uniform(0.7, 1) if ground.brightness < 0.5 else look.uniform(0, 0.3), np.float32)
    twist = 1 + np.float32(0.1) * value_noise(rng, drawn.shape[0], drawn.shape[1], 40)
    image = ground.image[window] * (1 - np.float32(look.uniform(0.1, 0.4)) * shadow[..., None])
    image = image + (colour * twist[..., None] - image) * alpha[..., None]
    return Painting(window, np.asarray(image, np.float32), alpha, thin=True)


# Defects with an area: pits, bites, spots, stains, patches, dents, worn ground.


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


ATTEMPTS = 4


@dataclass(frozen=True)
class Recipe:
    """One way to make a defect: its painter and its radius (or length, for lines) as shares of the part's shorter side."""

    painter: Painter
    low: float
    high: float
    weight: float = 1.0
    at_edge: bool = False  # sits on the part's outline
    may_be_large: bool = False  # may cover 5 to 30 % of the part
    may_repeat: bool = False


PAINTERS: dict[str, tuple[Recipe, ...]] = {
    "line": (
        Recipe(scratch, 0.1, 0.9, may_repeat=True),
        Recipe(streak, 0.2, 1.1, weight=0.35, may_repeat=True),
    ),
    "crack": (Recipe(crack, 0.15, 1.0), Recipe(hairline, 0.1, 1.2, weight=1.6)),
    "hole": (
        Recipe(pit, 0.012, 0.09, may_repeat=True),
        Recipe(bite, 0.02, 0.16, at_edge=True),
    ),
    "spots": (Recipe(spots, 0.02, 0.14),),
    "stain": (
        Recipe(stain, 0.02, 0.2, may_be_large=True, may_repeat=True),
        Recipe(lesion, 0.02, 0.2, may_be_large=True, may_repeat=True),
    ),
    "patch": (
        Recipe(missing, 0.03, 0.2, may_be_large=True),
        Recipe(shifted, 0.04, 0.22, may_be_large=True),
        Recipe(foreign, 0.025, 0.2, may_be_large=True, may_repeat=True),
        Recipe(burr, 0.02, 0.1, weight=0.4, at_edge=True),
    ),
    "dent": (
        Recipe(dent, 0.03, 0.2, may_be_large=True, may_repeat=True),
        Recipe(swelling, 0.04, 0.2, weight=0.4, may_be_large=True),
        Recipe(buckle, 0.06, 0.22, weight=0.6, may_be_large=True),
    ),
    "thread": (Recipe(thread, 0.15, 0.9),),
    "worn": (Recipe(worn, 0.05, 0.25, may_be_large=True),),
}
KINDS: tuple[str, ...] = tuple(PAINTERS)


def centre_in(rng: np.random.Generator, region: Mask) -> tuple[float, float] | None:
    """A random point (x, y) of ``region``; None where it is empty."""
    h, w = region.shape
    for _ in range(12):
        x, y = int(rng.integers(w)), int(rng.integers(h))
        if region[y, x]:
            return float(x), float(y)
    found = np.flatnonzero(region)
    if not len(found):
        return None
    y, x = divmod(int(found[int(rng.integers(len(found)))]), w)
    return float(x), float(y)


def draw_radius(rng: np.random.Generator, recipe: Recipe, ground: Ground, large: bool) -> float:
    """The painter's size in pixels; a ``large`` one is to cover 5 to 30 % of the part."""
    if large and recipe.may_be_large:
        # A blob's mean flattening is 0.7: its area is about 0.7 pi r^2.
        return math.sqrt(rng.uniform(0.05, 0.32) * float(ground.part.sum()) / (0.7 * math.pi))
    return max(1.5, log_uniform(rng, recipe.low, recipe.high) * ground.side_px)


def paint(
    rng: np.random.Generator,
    ground: Ground,
    kind: str,
    *,
    large: bool = False,
    recipe: Recipe | None = None,
    look_seed: int | None = None,
    radius: float | None = None,
    centre: tuple[float, float] | None = None,
) -> tuple[Ground, Painting, Mask] | None:
    """One defect of ``kind``; None where, after a few attempts, none could be seen.

    ``look_seed`` fixes what repeated defects share: contrast, colour, sharpness. -> ground with it, painting, mask [h, w]
    """
    options = [option for option in PAINTERS[kind] if (ground.backdrop is not None or not option.at_edge)]
    if large:
        options = [option for option in options if option.may_be_large] or options
    for _ in range(ATTEMPTS):
        chosen = recipe or pick(rng, options, [option.weight for option in options])
        region = ground.part & ground.free
        if chosen.at_edge:
            region &= grown(~ground.part, max(1, round(2 * ground.unit)))
        at = centre or centre_in(rng, region)
        if at is None:
            return None
        size = draw_radius(rng, chosen, ground, large) if radius is None else radius * rng.uniform(0.6, 1.4)
        look = np.random.default_rng(int(rng.integers(2**32)) if look_seed is None else look_seed)
        painting = chosen.painter(rng, look, ground, at, size)
        done = None if painting is None else settled(ground, painting)
        if done is not None:
            return ground.after(*done), done[0], done[1]
        if look_seed is not None and chance(rng, 0.5):
            return None
    return None
