"""Effects of camera, lens and light on every image, good or bad."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.data.synthetic.raster import (
    Image,
    blurred,
    chance,
    count_between,
    greyed,
    pick,
    unit_px,
    value_noise,
    white_noise,
)

__all__ = ["Photometry", "any_colour", "colour_ramp", "grey_to_colour", "material_colour", "tint"]


@dataclass(frozen=True)
class Photometry:
    """Settings of one exposure. Drawn before defects are painted, because what they hide must not be labelled.

    ``blur_px`` and ``noise`` (deviation, of full scale) are zero where switched off; ``jpeg_quality`` is None for none.
    """

    light: int | None
    blur_px: float
    noise: float
    coloured_noise: bool
    grey: bool
    gamma: float
    jpeg_quality: int | None

    @classmethod
    def draw(cls, rng: np.random.Generator, h: int, w: int) -> "Photometry":
        return cls(
            light=count_between(rng, 0, 2) if chance(rng, 0.6) else None,
            blur_px=rng.uniform(0.4, 1.4) * max(0.5, unit_px(h, w)) if chance(rng, 0.4) else 0.0,
            noise=rng.uniform(0.003, 0.035) if chance(rng, 0.6) else 0.0,
            coloured_noise=chance(rng, 0.5),
            grey=chance(rng, 0.35),
            gamma=rng.uniform(0.6, 1.6) if chance(rng, 0.5) else 1.0,
            jpeg_quality=count_between(rng, 35, 95) if chance(rng, 0.3) else None,
        )

    def apply(self, rng: np.random.Generator, image: Image) -> NDArray[np.uint8]:
        """float32 [H, W, 3] in 0..1 -> uint8 [H, W, 3]"""
        h, w = image.shape[:2]
        if self.light is not None:
            image = image * self._gain(rng, h, w)[..., None]
        image = blurred(image, self.blur_px)
        if self.grey:
            image = greyed(image)
        if self.noise > 0:
            if self.coloured_noise and not self.grey:
                image = image + np.float32(self.noise) * rng.standard_normal((h, w, 3), dtype=np.float32)
            else:
                image = image + np.float32(self.noise) * white_noise(rng, h, w)[..., None]
        levels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
        if self.gamma != 1.0:
            curve = (np.linspace(0, 1, 256) ** self.gamma * 255 + 0.5).astype(np.uint8)
            levels = curve[levels]
        if self.jpeg_quality is not None:
            _, encoded = cv2.imencode(".jpg", levels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality])
            decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)
            levels = np.ascontiguousarray(decoded[..., ::-1])
        return np.asarray(levels, np.uint8)

    def _gain(self, rng: np.random.Generator, h: int, w: int) -> Image:
        """Uneven light, which is normal: from one side, falling off to the corners, or in slow patches. [H, W]"""
        x = np.linspace(0, 1, w, dtype=np.float32)[None]
        y = np.linspace(0, 1, h, dtype=np.float32)[:, None]
        if self.light == 0:
            angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.9)
            gain = 1 + np.float32(strength * math.cos(angle)) * (x - 0.5) + np.float32(strength * math.sin(angle)) * (y - 0.5)
        elif self.light == 1:
            at = rng.uniform(0.3, 0.7, 2)
            gain = 1 - np.float32(rng.uniform(0, 0.9)) * ((x - np.float32(at[0])) ** 2 + (y - np.float32(at[1])) ** 2)
        else:
            gain = 1 + np.float32(rng.uniform(0, 0.25)) * np.clip(value_noise(rng, h, w, 2), -1.5, 1.5)
        return np.asarray(gain, np.float32)


# Colours of materials: mostly grey or faintly tinted, as real parts are, sometimes saturated.


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
