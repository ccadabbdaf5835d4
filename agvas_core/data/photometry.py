"""What camera, lens and light do to every image, good or bad."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.data.chance import chance, count_between
from agvas_core.data.noise import unit_px, value_noise, white_noise
from agvas_core.data.raster import Image, blurred, greyed

__all__ = ["Photometry"]


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
