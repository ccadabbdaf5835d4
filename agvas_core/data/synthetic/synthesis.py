"""Procedural images with defects, their masks and what can be said about them: the public entry of the generator.

    sample = synthesize(seed=0, index=17)
    sample.image            # uint8 [256, 256, 3]
    sample.labels           # uint8 [256, 256]: 0 normal, i + 1 where sample.defects[i] lies

The same seed, index, size and spec give the same bytes in any process. Nothing here imports torch. The number of OpenCV's
threads is the caller's business: with workers, ``cv2.setNumThreads(1)`` in each.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import StrictModel
from agvas_core.data.synthetic.canvas import Ground, Painting, ground_of
from agvas_core.data.synthetic.defects import KINDS, PAINTERS, paint
from agvas_core.data.synthetic.photometry import Photometry
from agvas_core.data.synthetic.raster import Mask, chance, count_between, log_uniform, pick, value_noise
from agvas_core.data.synthetic.sample import LINEAR_KINDS, Defect, Sample, in_words
from agvas_core.data.synthetic.scenes import Scene, frame_scene, object_scene, organic_scene, texture_scene
from agvas_core.data.synthetic.textures import FAMILIES, HELD_OUT_FAMILIES

__all__ = [
    "DEFAULT_SPEC",
    "HELD_OUT_FAMILIES",
    "KINDS",
    "MAX_SIDE_PX",
    "MIN_SIDE_PX",
    "Defect",
    "Sample",
    "SynthesisSpec",
    "expose",
    "synthesize",
]


# What kinds of synthetic image come, and how often.


class SynthesisSpec(StrictModel):
    """What kinds of image come, and how often. Shares of scenes need not add up to one."""

    texture: float = Field(0.48, ge=0)  # prototype's mix of scenes
    object: float = Field(0.30, ge=0)
    frame: float = Field(0.12, ge=0)
    organic: float = Field(0.10, ge=0)
    normal_fraction: float = Field(0.33, ge=0, le=1)  # without a defect: IoU_nor .26 -> .86 in the prototype
    several_fraction: float = Field(0.45, ge=0, le=1)  # of the others: two kinds or three
    repeated_fraction: float = Field(0.12, ge=0, le=1)  # of the others: 5 to 20 of one kind, spread over the part
    large_fraction: float = Field(0.22, ge=0, le=1)  # of defects: covering 5 to 30 % of the part, where the kind allows it
    max_defects: int = Field(3, ge=1, le=8)
    kinds: tuple[str, ...] = KINDS
    families: tuple[str, ...] = tuple(FAMILIES)
    held_out_families: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> "SynthesisSpec":
        for given, known, what in (
            (self.kinds, KINDS, "kinds"),
            (self.families + self.held_out_families, tuple(FAMILIES), "families"),
        ):
            if unknown := sorted(set(given) - set(known)):
                raise ValueError(f"unknown {what} {', '.join(unknown)}; known are {', '.join(known)}")
        if not self.kinds or not self.shown_families:
            raise ValueError("no kind or no family is left; name at least one of each")
        if self.texture + self.object + self.frame + self.organic <= 0:
            raise ValueError("all shares of scenes are 0; give at least one of texture, object, frame, organic")
        return self

    @property
    def shown_families(self) -> tuple[str, ...]:
        """The families that may appear anywhere in an image."""
        return tuple(name for name in self.families if name not in self.held_out_families)


DEFAULT_SPEC = SynthesisSpec()

MIN_SIDE_PX, MAX_SIDE_PX = 96, 2048
# Cracks and lines are most of what real sets hold; threads least.
KIND_WEIGHTS = {
    "line": 1.3,
    "crack": 2.0,
    "hole": 1.1,
    "spots": 1.0,
    "stain": 1.3,
    "patch": 1.5,
    "dent": 1.0,
    "thread": 0.7,
    "worn": 0.8,
}


def synthesize(seed: int, index: int, size: tuple[int, int] = (256, 256), spec: SynthesisSpec = DEFAULT_SPEC) -> Sample:
    """Image ``index`` of the endless set ``seed``; ``size`` is (height, width) in pixels.

    Raises:
        UsageError: a side is outside 96..2048 px, or seed or index is negative.
    """
    h, w = size
    if not (min(h, w) >= MIN_SIDE_PX and max(h, w) <= MAX_SIDE_PX):
        raise UsageError(
            f"image is to be {h}x{w} px; sides must lie in {MIN_SIDE_PX}..{MAX_SIDE_PX}: choose such a size and resize afterwards"
        )
    if seed < 0 or index < 0:
        raise UsageError(f"seed {seed}, index {index}: both must be 0 or more")
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    scene = _draw_scene(rng, h, w, spec)
    exposure = Photometry.draw(rng, h, w)
    return expose(rng, scene, exposure, spec, defective=lambda: not chance(rng, spec.normal_fraction))


def expose(
    rng: np.random.Generator,
    scene: Scene,
    exposure: Photometry,
    spec: SynthesisSpec = DEFAULT_SPEC,
    *,
    defective: Callable[[], bool],
) -> Sample:
    """A scene as the camera sees it, with defects painted on where ``defective()`` says so."""
    canvas = _Canvas(ground_of(scene, exposure, spec.shown_families))
    if defective():
        _add_defects(rng, canvas, scene, spec)
    image = canvas.ground.image if scene.cover is None else scene.cover(canvas.ground.image)
    return Sample(exposure.apply(rng, image), canvas.labels, tuple(canvas.defects), scene.kind, scene.family)


class _Canvas:
    """The image while defects are being added, with what was added so far."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.labels: NDArray[np.uint8] = np.zeros(ground.shape, np.uint8)
        self.defects: list[Defect] = []

    def add(self, kind: str, done: tuple[Ground, Painting, Mask] | None) -> bool:
        """Records what ``paint`` gave; False where it gave nothing."""
        if done is None:
            return False
        ground, painting, mask = done
        label = len(self.defects) + 1
        self.labels[painting.window][mask] = label
        before = self.ground.image[painting.window]
        self.defects.append(in_words(kind, *painting.window, mask, before, painting.image, ground.shape, label))
        self.ground = ground
        return True


def _draw_scene(rng: np.random.Generator, h: int, w: int, spec: SynthesisSpec) -> Scene:
    kind = pick(rng, ("texture", "object", "frame", "organic"), (spec.texture, spec.object, spec.frame, spec.organic))
    if kind == "organic":
        return organic_scene(rng, h, w)
    draw = {"texture": texture_scene, "object": object_scene, "frame": frame_scene}[kind]
    scene = draw(rng, h, w, spec.shown_families)
    if chance(rng, 0.15):  # slow unevenness of the material is normal
        uneven = 1 + np.float32(rng.uniform(0, 0.15)) * value_noise(rng, h, w, 4)[..., None]
        image = np.asarray(np.clip(scene.image * uneven, 0, 1), np.float32)
        backdrop = None if scene.backdrop is None else np.asarray(np.clip(scene.backdrop * uneven, 0, 1), np.float32)
        scene = Scene(image, scene.part, scene.kind, scene.family, backdrop, scene.cover)
    return scene


def _add_defects(rng: np.random.Generator, canvas: _Canvas, scene: Scene, spec: SynthesisSpec) -> None:
    """One plan per image: a lesion on organic ground, many of one kind, or one to three of different kinds."""
    if scene.kind == "organic" and "stain" in spec.kinds and chance(rng, 0.8):
        _add_lesion(rng, canvas)
        if not chance(rng, spec.several_fraction * 0.3):
            return
    elif chance(rng, spec.repeated_fraction):
        _add_repeated(rng, canvas, spec)
        if not chance(rng, 0.3):
            return
    wanted = 1
    if chance(rng, spec.several_fraction):
        wanted = min(2 if chance(rng, 0.7) else 3, spec.max_defects)
    kinds = list(spec.kinds)
    for attempt in range(wanted + 3):
        if len(canvas.defects) >= wanted and attempt >= wanted:
            break
        kind = pick(rng, kinds, [KIND_WEIGHTS[name] for name in kinds])
        if canvas.add(kind, paint(rng, canvas.ground, kind, large=chance(rng, spec.large_fraction))):
            wanted_left = wanted - len(canvas.defects)
            if wanted_left <= 0:
                break
            # A second defect is mostly of another kind: pairs of kinds are what referring is learned from.
            kinds = [name for name in kinds if name != kind] or kinds


def _add_lesion(rng: np.random.Generator, canvas: _Canvas) -> None:
    """One pigmented or raised area, often a large one."""
    kind, recipe = ("dent", PAINTERS["dent"][1]) if chance(rng, 0.2) else ("stain", PAINTERS["stain"][1])
    h, w = canvas.ground.shape
    radius = rng.uniform(0.06, 0.36) * min(h, w)
    # What is examined is mostly in the middle of the picture, as in dermatoscopy.
    centre = (w * float(np.clip(rng.normal(0.5, 0.15), 0, 0.99)), h * float(np.clip(rng.normal(0.5, 0.15), 0, 0.99)))
    canvas.add(kind, paint(rng, canvas.ground, kind, recipe=recipe, radius=radius, centre=centre if chance(rng, 0.7) else None))


def _add_repeated(rng: np.random.Generator, canvas: _Canvas, spec: SynthesisSpec) -> None:
    """Five to twenty of one kind that look alike, spread over the part."""
    options = [(kind, recipe) for kind in spec.kinds for recipe in PAINTERS[kind] if recipe.may_repeat]
    if not options:
        return
    kind, recipe = pick(rng, options)
    low, high = (0.05, 0.25) if kind in LINEAR_KINDS else (0.012, 0.055)
    radius = max(2.0, log_uniform(rng, low, high) * canvas.ground.side_px)
    look_seed = int(rng.integers(2**32))
    missed = 0
    for _ in range(count_between(rng, 5, 20)):
        missed += not canvas.add(kind, paint(rng, canvas.ground, kind, recipe=recipe, look_seed=look_seed, radius=radius))
        if missed > 3:
            return
