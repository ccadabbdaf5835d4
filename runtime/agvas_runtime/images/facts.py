"""Properties of a frame without a model: focus, brightness, clipping."""

from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["ImageFacts", "image_facts"]

LOOK_PX: Final = 640  # the longer side that is looked at
DARK, BRIGHT = 2, 253


class ImageFacts(NamedTuple):
    """Of one frame."""

    focus: float
    """Mean square of the gradient over the square of the mean grey: fine detail, whatever the exposure. Only to be compared between
    frames of the same scene."""
    mean: float
    """Grey, 0 to 1."""
    clipped: float
    """Share of pixels that are black or white to the last step."""


def image_facts(image: NDArray[np.uint8]) -> ImageFacts:
    """Of an RGB frame [H, W, 3]."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    clipped = float(((grey <= DARK) | (grey >= BRIGHT)).mean())
    scale = LOOK_PX / max(grey.shape)
    if scale < 1:
        size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
        grey = np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)
    along = cv2.Sobel(grey, cv2.CV_32F, 1, 0)
    down = cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    mean = float(grey.mean())
    focus = float((along * along + down * down).mean()) / max(mean, 1.0) ** 2
    return ImageFacts(focus, mean / 255, clipped)
