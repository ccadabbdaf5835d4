"""Defects that are thin and long: scratches, rolled-in streaks, cracks, threads."""

import math

import numpy as np
from numpy.typing import NDArray

from agvas_core.data.synthetic.canvas import Ground, Painting
from agvas_core.data.synthetic.noise import chance, count_between, pick, value_noise
from agvas_core.data.synthetic.photometry import any_colour
from agvas_core.data.synthetic.raster import Image, blurred, draw_path
from agvas_core.data.synthetic.shapes import curve

__all__ = ["crack", "hairline", "scratch", "streak", "thread"]

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
