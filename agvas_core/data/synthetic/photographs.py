"""Defects painted on photographs: what a product's good images would look like with them.

painted = paint_defects(np.random.default_rng(0), image, count=4)
painted.image                 # uint8 [H, W, 3]
painted.defects[0].kind       # "crack"; painted.labels == 1 where it lies
"""

from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.data.synthetic.canvas import Ground, ground_of
from agvas_core.data.synthetic.defects import KINDS, paint
from agvas_core.data.synthetic.photometry import Photometry
from agvas_core.data.synthetic.raster import log_uniform
from agvas_core.data.synthetic.scenes import Scene
from agvas_core.data.synthetic.textures import FAMILIES

__all__ = ["PaintedImage", "PaintedOn", "paint_defects"]

GREY_STEPS: Final = 3  # channels that differ by less are of a grey image
NOISE: Final = 0.004  # of a camera, as a share of full scale: weaker defects could not be seen
SMALLEST, LARGEST = 0.008, 0.15
"""Radius or length of the small ones, as shares of the image's shorter side: the least that is found is to be known."""
TRIES: Final = 3  # kinds that are tried for each defect, where one cannot be painted at that place
APART: Final = 0.1  # of the shorter side, between two defects, so that each can be judged by itself


@dataclass(frozen=True)
class PaintedOn:
    """One defect."""

    kind: str
    length_px: float
    """Longer side of its tightest rectangle."""
    area_px: int


@dataclass(frozen=True)
class PaintedImage:
    """``image`` uint8 RGB [H, W, 3]; ``labels`` uint8 [H, W]: 0 untouched, i + 1 where ``defects[i]`` lies."""

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    defects: tuple[PaintedOn, ...]


def paint_defects(rng: np.random.Generator, image: NDArray[np.uint8], count: int, kinds: tuple[str, ...] = KINDS) -> PaintedImage:
    """Up to ``count`` defects of different kinds, apart from each other, on an RGB photograph.

    Args:
        kinds: in the order of preference; the first ``count`` are painted where they can be.
    """
    spread = image.astype(np.int16)
    grey = bool(np.abs(spread - spread.mean(2, keepdims=True)).max() < GREY_STEPS)
    exposure = Photometry(None, 0.0, NOISE, False, grey, 1.0, None)
    scene = Scene(np.asarray(image, np.float32) / np.float32(255), np.ones(image.shape[:2], bool), "texture", "photograph")
    ground = ground_of(scene, exposure, tuple(FAMILIES))
    labels = np.zeros(ground.shape, np.uint8)
    margin = max(4, round(APART * min(ground.shape)))
    defects: list[PaintedOn] = []
    for number in range(count):
        for attempt in range(TRIES):
            kind = kinds[(number + attempt * count) % len(kinds)]
            radius = (
                log_uniform(rng, SMALLEST, LARGEST) * ground.side_px if number % 2 else None
            )  # every other as the generator has it
            done = paint(rng, ground, kind, radius=radius)
            if done is not None:
                after, painting, mask = done
                labels[painting.window][mask] = len(defects) + 1
                defects.append(_measured(kind, mask))
                ground = _kept_apart(after, labels, margin)
                break
    painted = np.clip(ground.image * 255 + 0.5, 0, 255).astype(np.uint8)
    return PaintedImage(painted, labels, tuple(defects))


def _measured(kind: str, mask: NDArray[np.bool_]) -> PaintedOn:
    points = np.argwhere(mask)[:, ::-1].astype(np.float32)
    _, sides, _ = cv2.minAreaRect(points)
    return PaintedOn(kind, float(max(sides)) + 1.0, len(points))


def _kept_apart(ground: Ground, labels: NDArray[np.uint8], margin: int) -> Ground:
    """The same with no room within ``margin`` px of the defects so far."""
    taken = cv2.distanceTransform((labels == 0).astype(np.uint8), cv2.DIST_L2, 3) < margin
    return replace(ground, free=ground.free & ~taken)
