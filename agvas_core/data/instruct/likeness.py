"""The normal image most like a given one (paper A.2: SSIM and the Bhattacharyya distance of colour histograms, following MMAD).

The paper leaves their combination open. Ours is the mean of the two as likenesses, (SSIM + 1 - distance) / 2: structure says that the
part lies and is cut the same way, colours that it is the same variant in the same light. Both are taken on views of 128 px, where
neither noise nor the anomaly itself decides.
"""

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_core.data.instruct.pictures import Rgb
from agvas_core.files import read_rgb

__all__ = ["Fingerprint", "ReferenceShelf", "bhattacharyya", "fingerprint", "likeness", "ssim"]

VIEW_PX: Final = 128
BINS: Final = 8  # per channel, 512 in all
MAX_REFERENCES: Final = 500  # of a category; more say little that these do not, and each is decoded once
SIGMA: Final = 1.5  # Wang et al. 2004, with the constants below
WINDOW: Final = 11
C1: Final = (0.01 * 255) ** 2
C2: Final = (0.03 * 255) ** 2

Plane = NDArray[np.float64]


@dataclass(frozen=True)
class Fingerprint:
    """What of an image is compared; means and variances are computed once and compared often."""

    grey: Plane  # [128, 128], 0..255
    mean: Plane
    variance: Plane
    colours: NDArray[np.float32]  # [8, 8, 8], sums to 1


def fingerprint(image: Rgb) -> Fingerprint:
    """What is compared of ``image``, RGB uint8 [H, W, 3]."""
    view = np.asarray(cv2.resize(image, (VIEW_PX, VIEW_PX), interpolation=cv2.INTER_AREA), np.uint8)
    grey = np.asarray(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), np.float64)
    mean = _blurred(grey)
    histogram = cv2.calcHist([view], [0, 1, 2], None, [BINS] * 3, [0, 256] * 3)
    return Fingerprint(grey, mean, _blurred(grey * grey) - mean * mean, np.asarray(histogram / histogram.sum(), np.float32))


def ssim(one: Fingerprint, other: Fingerprint) -> float:
    """Structural similarity of the grey views, -1 to 1, 1 for equal (Wang et al. 2004: Gaussian window of 11 px)."""
    covariance = _blurred(one.grey * other.grey) - one.mean * other.mean
    above = (2 * one.mean * other.mean + C1) * (2 * covariance + C2)
    below = (one.mean**2 + other.mean**2 + C1) * (one.variance + other.variance + C2)
    return float((above / below).mean())


def bhattacharyya(one: Fingerprint, other: Fingerprint) -> float:
    """Distance of the colour histograms, 0 for equal to 1 for disjoint: sqrt(1 - sum sqrt(p q))."""
    return float(cv2.compareHist(one.colours, other.colours, cv2.HISTCMP_BHATTACHARYYA))


def likeness(one: Fingerprint, other: Fingerprint) -> float:
    """Mean of SSIM and 1 - distance: 1 for equal views."""
    return (ssim(one, other) + 1 - bhattacharyya(one, other)) / 2


class ReferenceShelf:
    """The normal images of one category. Safe to use from several threads."""

    def __init__(self, paths: Sequence[Path], *, limit: int = MAX_REFERENCES) -> None:
        """Of more than ``limit`` images, ``limit`` are chosen, the same ones each time."""
        listed = sorted(paths)
        self._paths = sorted(random.Random(len(listed)).sample(listed, limit)) if len(listed) > limit else listed
        self._looks: list[tuple[Path, Fingerprint]] | None = None
        self._lock = threading.Lock()
        self.unreadable: list[str] = []
        """Why images were left out, known after the first search."""

    def nearest(self, image: Rgb) -> Path | None:
        """The normal image most like ``image``; None where there is none. The first by name among equals."""
        wanted = fingerprint(image)
        best = max(self._known(), key=lambda pair: likeness(wanted, pair[1]), default=None)
        return best[0] if best else None

    def _known(self) -> list[tuple[Path, Fingerprint]]:
        with self._lock:
            if self._looks is None:
                self._looks = [(path, seen) for path in self._paths if (seen := self._seen(path)) is not None]
            return self._looks

    def _seen(self, path: Path) -> Fingerprint | None:
        try:
            return fingerprint(read_rgb(path, path.name))
        except ImageError as error:
            self.unreadable.append(str(error))
            return None


def _blurred(plane: Plane) -> Plane:
    """Gaussian mean, without the rim where the window would reach over the edge."""
    half = WINDOW // 2
    return np.asarray(cv2.GaussianBlur(plane, (WINDOW, WINDOW), SIGMA), np.float64)[half:-half, half:-half]
