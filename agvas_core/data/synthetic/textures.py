"""The texture families by name.

``FAMILIES[name](rng, h, w)`` gives float32 [h, w, 3], not yet clipped; ``texture`` draws a family and clips it to 0..1.
"""

from collections.abc import Callable, Sequence

import numpy as np

from agvas_core.data.synthetic import irregular, regular
from agvas_core.data.synthetic.noise import chance, pick
from agvas_core.data.synthetic.raster import Image

__all__ = ["FAMILIES", "HELD_OUT_FAMILIES", "TextureFamily", "mixed_texture", "texture"]

TextureFamily = Callable[[np.random.Generator, int, int], Image]

FAMILIES: dict[str, TextureFamily] = {
    "asphalt": irregular.asphalt,
    "bandpass": irregular.bandpass,
    "bricks": regular.bricks,
    "brushed": irregular.brushed,
    "cells": irregular.cells,
    "clouds": irregular.clouds,
    "concrete": irregular.concrete,
    "dots": regular.dots,
    "flat": irregular.flat,
    "grid": regular.grid,
    "leather": irregular.leather,
    "marble": irregular.marble,
    "motif": regular.motif,
    "rail": regular.rail,
    "rolled": irregular.rolled,
    "speckle": irregular.speckle,
    "stripes": regular.stripes,
    "strokes": irregular.strokes,
    "terrazzo": irregular.terrazzo,
    "weave": regular.weave,
    "wood": regular.wood,
}
HELD_OUT_FAMILIES = ("leather", "motif", "terrazzo", "wood")  # to ask, in validation, how a model does on families it never saw


def texture(rng: np.random.Generator, h: int, w: int, families: Sequence[str]) -> tuple[Image, str]:
    """One of ``families``: float32 [h, w, 3] in 0..1 and its name."""
    name = pick(rng, families)
    return np.asarray(np.clip(FAMILIES[name](rng, h, w), 0, 1), np.float32), name


def mixed_texture(rng: np.random.Generator, h: int, w: int, families: Sequence[str]) -> tuple[Image, str]:
    """A texture, one time in four with the grain of a second one over its structure; named after the first."""
    image, name = texture(rng, h, w, families)
    if chance(rng, 0.25):
        share = np.float32(rng.uniform(0.1, 0.45))
        image = image * (1 - share) + texture(rng, h, w, families)[0] * share
    return image, name
