"""Colours of materials: mostly grey or faintly tinted, as real parts are, sometimes saturated."""

import numpy as np
from numpy.typing import NDArray

from agvas_core.data.chance import chance, count_between, pick
from agvas_core.data.raster import Image

__all__ = ["any_colour", "colour_ramp", "grey_to_colour", "material_colour", "tint"]


LEVELS = 2048  # of the table that a field is mapped through: far finer than the eight bits of the result


def material_colour(rng: np.random.Generator) -> NDArray[np.float32]:
    """One colour [3], its saturation drawn from four levels."""
    colour = rng.random(3)
    saturation = pick(rng, (0.0, 0.15, 0.35, 0.7), (0.3, 0.3, 0.25, 0.15))
    grey = colour.mean()
    return np.asarray(np.clip(grey + (colour - grey) * saturation * 1.5, 0.02, 0.98), np.float32)


def any_colour(rng: np.random.Generator) -> NDArray[np.float32]:
    """One colour [3] from the whole cube."""
    return rng.random(3).astype(np.float32)


def tint(rng: np.random.Generator, deviation: float) -> NDArray[np.float32]:
    """Factors [3] around one, by which a grey image becomes faintly coloured."""
    return np.clip(1 + rng.normal(0, deviation, 3), 0.2, 2.0).astype(np.float32)


def colour_ramp(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """``count`` colours [count, 3] from dark to bright around one material colour; now and then unrelated ones."""
    if chance(rng, 0.15):
        return rng.random((count, 3)).astype(np.float32)
    middle = material_colour(rng)
    contrast = rng.uniform(0.08, 0.8)
    steps = (np.linspace(0, 1, max(2, count))[:count] - 0.5) * contrast
    wander = rng.normal(0, 0.02, (count, 3))
    return np.clip(middle + steps[:, None] + wander, 0.02, 0.98).astype(np.float32)


def grey_to_colour(rng: np.random.Generator, field: Image, count: int | None = None) -> Image:
    """A field [H, W] in 0..1 mapped through a ramp of ``count`` colours. -> [H, W, 3]"""
    ramp = colour_ramp(rng, count or count_between(rng, 2, 4))
    stops = np.linspace(0, LEVELS - 1, len(ramp))
    table = np.stack([np.interp(np.arange(LEVELS), stops, ramp[:, channel]) for channel in range(3)], 1).astype(np.float32)
    return table.take((np.clip(field, 0, 1) * (LEVELS - 1)).astype(np.int32), axis=0)
