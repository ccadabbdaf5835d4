"""The kinds of defect, where and how large they come, and painting one of them."""

import math
from dataclasses import dataclass

import numpy as np

from agvas_core.data.synthetic import area_defects as areas
from agvas_core.data.synthetic import thin_defects as lines
from agvas_core.data.synthetic.canvas import Ground, Painter, Painting, settled
from agvas_core.data.synthetic.noise import chance, log_uniform, pick
from agvas_core.data.synthetic.raster import Mask, grown

__all__ = ["KINDS", "PAINTERS", "Recipe", "centre_in", "draw_radius", "paint"]

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
        Recipe(lines.scratch, 0.1, 0.9, may_repeat=True),
        Recipe(lines.streak, 0.2, 1.1, weight=0.35, may_repeat=True),
    ),
    "crack": (Recipe(lines.crack, 0.15, 1.0), Recipe(lines.hairline, 0.1, 1.2, weight=1.6)),
    "hole": (
        Recipe(areas.pit, 0.012, 0.09, may_repeat=True),
        Recipe(areas.bite, 0.02, 0.16, at_edge=True),
    ),
    "spots": (Recipe(areas.spots, 0.02, 0.14),),
    "stain": (
        Recipe(areas.stain, 0.02, 0.2, may_be_large=True, may_repeat=True),
        Recipe(areas.lesion, 0.02, 0.2, may_be_large=True, may_repeat=True),
    ),
    "patch": (
        Recipe(areas.missing, 0.03, 0.2, may_be_large=True),
        Recipe(areas.shifted, 0.04, 0.22, may_be_large=True),
        Recipe(areas.foreign, 0.025, 0.2, may_be_large=True, may_repeat=True),
        Recipe(areas.burr, 0.02, 0.1, weight=0.4, at_edge=True),
    ),
    "dent": (
        Recipe(areas.dent, 0.03, 0.2, may_be_large=True, may_repeat=True),
        Recipe(areas.swelling, 0.04, 0.2, weight=0.4, may_be_large=True),
        Recipe(areas.buckle, 0.06, 0.22, weight=0.6, may_be_large=True),
    ),
    "thread": (Recipe(lines.thread, 0.15, 0.9),),
    "worn": (Recipe(areas.worn, 0.05, 0.25, may_be_large=True),),
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
