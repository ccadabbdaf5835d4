"""Generated products: one part, photographed again and again, good and with defects.

    product = SyntheticProduct(seed=3, kind="object", size=(360, 480))
    product.good(0).image       # uint8 [360, 480, 3]; every index is another photograph of the same part
    product.bad(0).labels       # uint8 [360, 480]: 0 normal, i + 1 where defect i lies

What ``agvas fit`` expects from a user: many good pictures of one product, and some bad ones. The same seed, index and
variation give the same bytes in any process.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import UsageError
from agvas_core.data.synthetic.photometry import Photometry
from agvas_core.data.synthetic.raster import value_noise
from agvas_core.data.synthetic.sample import Sample
from agvas_core.data.synthetic.scenes import Scene, frame_scene, object_scene, texture_scene
from agvas_core.data.synthetic.synthesis import DEFAULT_SPEC, SynthesisSpec, expose

__all__ = ["KINDS_OF_PRODUCT", "ProductKind", "SyntheticProduct", "Variation"]

Float = NDArray[np.float32]

ProductKind = Literal["object", "frame", "texture"]
KINDS_OF_PRODUCT: Final[tuple[ProductKind, ...]] = ("object", "frame", "texture")

_DRAW: Final = {"object": object_scene, "frame": frame_scene, "texture": texture_scene}
_ATTEMPTS = 8  # a painter gives up where its defect could not be seen; the next attempt draws another


@dataclass(frozen=True)
class Variation:
    """How far two good photographs of the same product differ."""

    turn_deg: float = 1.0
    """The part is turned by up to this much to either side; 180 for parts that lie as they fall."""
    shift: float = 0.006
    """Standard deviation of its place, as a share of the picture's sides."""
    colour: float = 0.0
    """How much the colour of whole parts differs, 0..0.3."""
    grain: float = 0.01
    """Contrast of a slow unevenness that is new in each picture, 0..0.1."""
    light: float = 0.03
    """Standard deviation of brightness, and of its slope across the picture."""


class SyntheticProduct:
    """One product of the endless set of products.

    Args:
        seed: which product.
        kind: ``object`` lies on a background, ``frame`` fills the picture, ``texture`` is a surface without a place of its own.
        size: height and width in pixels, 96..1024.
        variation: how good pictures differ.

    Raises:
        UsageError: a size or kind that is not possible.
    """

    def __init__(
        self,
        seed: int,
        kind: ProductKind = "object",
        size: tuple[int, int] = (480, 480),
        variation: Variation = Variation(),  # immutable
        spec: SynthesisSpec = DEFAULT_SPEC,
    ) -> None:
        if kind not in KINDS_OF_PRODUCT:
            raise UsageError(f"kind is {kind!r}; it can be {', '.join(KINDS_OF_PRODUCT)}")
        if not (min(size) >= 96 and max(size) <= 1024):
            raise UsageError(f"size is {size[0]}x{size[1]} px; sides must lie in 96..1024")
        self.seed = seed
        self.kind = kind
        self.size = size
        self.variation = variation
        self.spec = spec

    def good(self, index: int) -> Sample:
        """Good picture ``index``."""
        return self._picture(index, bad=False)

    def bad(self, index: int) -> Sample:
        """Picture ``index`` of a defective part: one to three defects, more where they repeat."""
        return self._picture(index, bad=True)

    @cached_property
    def _master(self) -> tuple[Scene, Photometry]:
        """The part itself and the camera's settings, the same for all pictures."""
        rng = np.random.default_rng([self.seed, 0, 0])
        height, width = self.size
        if self.kind == "texture":  # larger than a picture, so that each shows another place
            height, width = 2 * height, 2 * width
        scene = _DRAW[self.kind](rng, height, width, self.spec.shown_families)
        camera = Photometry.draw(rng, *self.size)
        grey = camera.grey and not self.variation.colour
        camera = replace(
            camera,
            light=None,  # drawn for each picture, below
            noise=float(rng.uniform(0.003, 0.012)),
            blur_px=float(rng.uniform(0.3, 0.8)),
            grey=grey,
            jpeg_quality=None,
        )
        return scene, camera

    def _picture(self, index: int, *, bad: bool) -> Sample:
        scene, camera = self._master
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng([self.seed, 1 + index, 1 + bad, attempt])
            placed = self._placed(rng, scene)
            lit = replace(placed, image=_lit(rng, placed.image, self.variation.light))
            sample = expose(rng, lit, camera, self.spec, defective=lambda: bad)
            if bool(sample.defects) == bad:
                return sample
        raise UsageError(
            f"no defect can be seen on product {self.seed} ({self.kind}, {self.size[0]}x{self.size[1]} px): take another seed or a larger size"
        )

    def _placed(self, rng: np.random.Generator, scene: Scene) -> Scene:
        """The part where this picture shows it, in this part's own colour."""
        height, width = self.size
        variation = self.variation
        tint = 1 + variation.colour * (rng.normal(0, 0.35) + rng.normal(0, 0.5, 3))
        tint = np.clip(tint, 0.4, 1.6).astype(np.float32)
        grain = np.float32(variation.grain) * value_noise(rng, height, width, int(rng.integers(6, 20)))[..., None]
        if self.kind == "texture":
            y = int(rng.integers(height + 1))
            x = int(rng.integers(width + 1))
            surface = scene.image[y : y + height, x : x + width]
            return Scene(_clipped(surface * tint + grain), np.ones(self.size, bool), scene.kind, scene.family)
        turn = rng.uniform(-variation.turn_deg, variation.turn_deg)
        limit = 2 * variation.shift
        shift = np.clip(rng.normal(0, variation.shift, 2), -limit, limit)
        scale = 1.02 if self.kind == "frame" else 1.0  # a frame's rim stays outside the picture
        matrix = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), turn, scale), np.float64)
        matrix[:, 2] += shift * (width, height)
        surface = _clipped(_warp(scene.image, matrix, cv2.BORDER_REFLECT_101) * tint + grain)
        if scene.backdrop is None:
            return Scene(surface, np.ones(self.size, bool), scene.kind, scene.family)
        grown = cv2.dilate(scene.part.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(np.float32)
        soft = np.asarray(cv2.GaussianBlur(grown, (0, 0), 0.8), np.float32)
        alpha = _warp(soft, matrix, cv2.BORDER_CONSTANT)[..., None]
        part = _warp(scene.part.astype(np.float32), matrix, cv2.BORDER_CONSTANT) > 0.5
        image = _clipped(scene.backdrop * (1 - alpha) + surface * alpha)
        return Scene(image, part, scene.kind, scene.family, scene.backdrop)


def _warp(image: Float, matrix: NDArray[np.float64], border: int) -> Float:
    height, width = image.shape[:2]
    warped = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(warped, np.float32)


def _lit(rng: np.random.Generator, image: Float, spread: float) -> Float:
    """Another brightness, and a slope of it across the picture."""
    height, width = image.shape[:2]
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None]
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    level, across, down = (np.float32(rng.normal(0, spread)) for _ in range(3))
    return _clipped(image * (1 + level + across * x + down * y)[..., None])


def _clipped(image: NDArray[np.floating]) -> Float:
    return np.asarray(np.clip(image, 0, 1), np.float32)
