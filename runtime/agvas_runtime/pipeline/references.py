"""A frame against a product's good images: distance maps, one score map with the model's own, and whether it is the product at all.

    references = open_references(bundle, vision)
    judged = references.judge(image, zero_shot, point)     # zero_shot: the model's own score map

``agvas fit`` uses the same functions, so what it measures is what runs later.

Every map is brought to a grid of ``GRID_PX`` x ``GRID_PX`` that shows the whole frame, and to one scale: how rare a value is on good
images. Two statistics are made of them, rarity of the joint distance plus that of the model's score map, which outlines defects best, and
the same with the deep distance (without colour), which tells defective images best. A fitted head's map is added to both. The score map is the first, scaled so that the
mean of its highest share is the geometric mean of that of both; then score = statistic / (statistic + half).
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.decision import OperatingPoint, image_score, mean_of_highest
from agvas_core.contract.errors import UnlikeError
from agvas_core.contract.manifest import BANK
from agvas_core.contract.preprocess import ViewSpec
from agvas_core.contract.product import Kind, MapScale, Product, load_array
from agvas_runtime.bundle import Bundle
from agvas_runtime.images.views import make_views
from agvas_runtime.masks.regions import judge_map
from agvas_runtime.pipeline.frame_logits import Judged
from agvas_runtime.stages.open import DEFAULT_BACKEND, HEAD_BACKENDS, REFERENCE_BACKENDS, StageSettings, open_head
from agvas_runtime.stages.open import open_references as open_stage
from agvas_runtime.stages.protocol import Features, HeadStage, ReferenceStage, VisionStage

__all__ = [
    "GRID_PX",
    "Compared",
    "Prepared",
    "ReferenceCells",
    "References",
    "Scales",
    "Statistics",
    "at_frame_size",
    "distance_grid",
    "frame_facts",
    "grids",
    "head_input",
    "head_map",
    "map_facts",
    "open_references",
    "squash",
    "zero_shot_grid",
]

Float = NDArray[np.float32]
Rgb = NDArray[np.uint8]

GRID_PX: Final = 256
"""Side of the grid on which maps are compared; it shows the whole frame, whatever its aspect."""
BLUR_CELLS: Final = 1.0
"""Deviation of the blur of a distance map: one cell is a noisy place to look for a defect."""
LOWEST_P: Final = 1e-4
"""Of the model's score map, before its logit is taken."""
HEAD_UNIT: Final = np.float32(3.0)
"""Rarities are divided by this before a head takes them, so that they are of the size of its other inputs."""


def distance_grid(distances: Float) -> Float:
    """Distances of the cells [h, w] on the grid [GRID_PX, GRID_PX]."""
    blurred = cv2.GaussianBlur(distances, (0, 0), BLUR_CELLS)
    return np.asarray(cv2.resize(blurred, (GRID_PX, GRID_PX), interpolation=cv2.INTER_LINEAR), np.float32)


def zero_shot_grid(score_map: Float) -> Float:
    """The model's own score map P [H, W] on the grid, as logits: [GRID_PX, GRID_PX]."""
    way = cv2.INTER_AREA if min(score_map.shape) >= GRID_PX else cv2.INTER_LINEAR
    small = np.clip(cv2.resize(score_map, (GRID_PX, GRID_PX), interpolation=way), LOWEST_P, 1 - LOWEST_P)
    return np.asarray(np.log(small / (1 - small)), np.float32)


class Statistics(NamedTuple):
    """The two statistics of a frame on the grid, in nats."""

    pixel: Float
    image: Float

    def fused(self, share: float) -> Float:
        """The one that scores come of; ``share`` of the highest values is what an image's score is the mean of."""
        pixel, image = (max(mean_of_highest(each, share), 1e-6) for each in self)
        return np.asarray(np.maximum(self.pixel * np.float32((image / pixel) ** 0.5), 0), np.float32)


class Scales(NamedTuple):
    """What brings the maps of a frame to one scale, and how they are added up."""

    joint: MapScale
    deep: MapScale
    zero_shot: MapScale
    zero_shot_weight: float = 1.0
    head: MapScale | None = None
    """None where the product has no fitted head."""

    @classmethod
    def of(cls, product: Product) -> "Scales":
        """Those that a product was fitted with."""
        return cls(product.joint, product.deep, product.zero_shot, product.zero_shot_weight, product.head)

    def rarities(self, maps: Mapping[Kind, NDArray[np.floating]]) -> dict[Kind, Float]:
        """How rare the values of the maps of a frame are, on the grid; of the head's where there is one."""
        known = {"joint": self.joint, "deep": self.deep, "zero_shot": self.zero_shot, "head": self.head}
        return {kind: scale(each.astype(np.float32)) for kind, each in maps.items() if (scale := known[kind]) is not None}

    def added(self, rarities: Mapping[Kind, Float]) -> Statistics:
        """The two statistics."""
        own, head = rarities["zero_shot"], rarities.get("head", np.float32(0))
        return Statistics(rarities["joint"] + np.float32(self.zero_shot_weight) * own + head, rarities["deep"] + own + head)

    def statistics(self, maps: Mapping[Kind, NDArray[np.floating]]) -> Statistics:
        """Of the maps of a frame on the grid."""
        return self.added(self.rarities(maps))


def head_input(rarities: Mapping[Kind, Float], cells: tuple[int, int]) -> Float:
    """What a fitted head takes beside the embedding: rarities of joint and deep distance and of the model's own score map, [3, h, w] at
    ``cells`` = (h, w), divided by ``HEAD_UNIT``."""
    kinds: tuple[Kind, ...] = ("joint", "deep", "zero_shot")
    small = [cv2.resize(rarities[kind], cells[::-1], interpolation=cv2.INTER_AREA) for kind in kinds]
    return np.stack(small).astype(np.float32) / HEAD_UNIT


def head_map(head: HeadStage, rarities: Mapping[Kind, Float], embedding: Float) -> Float:
    """Logits of a fitted head on the grid, of a frame with these rarities and this embedding [h, w, D]."""
    logits = head(embedding[None], head_input(rarities, (embedding.shape[0], embedding.shape[1]))[None])[0]
    return np.asarray(cv2.resize(logits, (GRID_PX, GRID_PX), interpolation=cv2.INTER_LINEAR), np.float32)


def squash(total: Float, half: float) -> Float:
    """Sums of rarities, 0 and more, to scores 0..1; ``half`` becomes 0.5."""
    return np.asarray(total / (total + np.float32(half)), np.float32)


LOOK_PX: Final = 256
"""Longer side at which a frame's own facts are taken."""
WHITE: Final = 250


def frame_facts(image: Rgb) -> dict[str, float]:
    """What limits are set on before any model looks, of an RGB frame [H, W, 3]; names as in ``RangeLimit.fact``.

    brightness: mean grey, 0..1. clipped: share of white pixels. focus: variance of the Laplacian. aspect: width over height.
    """
    height, width = image.shape[:2]
    scale = LOOK_PX / max(height, width)
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.float32)
    return {
        "brightness": float(grey.mean()) / 255,
        "clipped": float((small >= WHITE).all(2).mean()),
        "focus": float(cv2.Laplacian(grey, cv2.CV_32F).var()),
        "aspect": width / height,
    }


def at_frame_size(score: Float, size: tuple[int, int]) -> Float:
    """A score map on the grid enlarged to a frame of (H, W) px."""
    return np.asarray(cv2.resize(score, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


FAR_SHARE, SOME_FAR = 0.45, 0.25
FEW_FAR: Final = 0.6


def map_facts(deep: Float, far_cell: float, mean_distance: float) -> dict[str, float]:
    """And what the deep distances [h, w] say of the frame as a whole.

    distance: their mean, over that of good images. A large defect is no other product: where fewer than ``FAR_SHARE`` of the cells are
    farther than nearly all cells of good images, it counts ``FEW_FAR``, and with fewer than ``SOME_FAR`` at most 1.
    """
    ratio = float(deep.mean()) / max(mean_distance, 1e-6)
    share = float((deep > far_cell).mean())
    if share > FAR_SHARE:
        return {"distance": ratio}
    return {"distance": FEW_FAR * ratio if share > SOME_FAR else min(FEW_FAR * ratio, 1.0)}


class References:
    """A product's good images, ready to be compared with.

    Args:
        bank: float32 [rows, D].
        vision: of the same bundle, for a model whose reference graph takes its features.
        head: of a product that has a fitted one.
    """

    def __init__(
        self,
        bundle: Bundle,
        product: Product,
        bank: Float,
        stage: ReferenceStage,
        vision: VisionStage,
        head: HeadStage | None = None,
    ) -> None:
        self.product, self.bank, self.head = product, bank, head
        self.scales = Scales.of(product)
        self.cells = ReferenceCells(bundle, product.view, stage, vision)

    def judge(self, image: Rgb, zero_shot: Float, point: OperatingPoint, seen: "Prepared | None" = None) -> Judged:
        """Score map, score, mask and regions of an RGB frame [H, W, 3].

        Args:
            zero_shot: the model's own score map, float32 [H, W].
            seen: what the model's own pass kept of the frame (``Scored.whole``), which saves the references a pass.

        Raises:
            UnlikeError: the frame is unlike every good image: what is out of bounds, its value and the limit.
        """
        score_map = self.score_map(image, zero_shot, point.image_share, seen)
        return Judged(score_map, image_score(score_map, point), *judge_map(score_map, point))

    def score_map(self, image: Rgb, zero_shot: Float, share: float, seen: "Prepared | None" = None) -> Float:
        """The score map alone, float32 [H, W] in 0..1; arguments and errors are those of ``judge``."""
        product = self.product
        self._check(frame_facts(image))
        found = self.cells.compare(self.cells.prepare(image, seen), self.bank, product.colour_weight)
        self._check(map_facts(found.deep, product.far_cell, product.mean_distance))
        rarities = self.scales.rarities(grids(found, zero_shot))
        if self.head is not None:
            rarities |= self.scales.rarities({"head": head_map(self.head, rarities, found.embedding)})
        statistics = self.scales.added(rarities)
        return at_frame_size(squash(statistics.fused(share), product.half), (image.shape[0], image.shape[1]))

    def _check(self, facts: Mapping[str, float]) -> None:
        for limit in self.product.limits:
            if limit.fact in facts and (fault := limit.fault(facts[limit.fact])) is not None:
                raise UnlikeError(
                    f"{UnlikeError.START} {fault} (the good images of {self.product.name} have {limit.good[0]:.4g} to {limit.good[1]:.4g}): check "
                    "camera, light and part; if such parts are good, add images of them with agvas fit --add"
                )


class Compared(NamedTuple):
    """The cells of one frame, and their distances to the nearest row of a bank."""

    embedding: Float
    """[h, w, D]."""
    deep: Float
    """[h, w]."""
    joint: Float


class Prepared(NamedTuple):
    """A frame as the reference stage takes it."""

    pixels: Rgb
    """[h, w, 3], the view whose cells are compared."""
    semantic: Rgb | None = None
    """[hs, ws, 3], where the stage takes features that the vision stage is still to make."""
    features: Features | None = None
    """Of the vision stage, where it has seen this view already."""

    @property
    def feature_bytes(self) -> int:
        """Memory that the features take."""
        return 0 if self.features is None else sum(each.nbytes for each in self.features.decoder.values())


class ReferenceCells:
    """The reference stage with what it needs of a frame.

    Args:
        vision: of the same bundle, for a reference graph that takes its features.
    """

    def __init__(self, bundle: Bundle, view: ViewSpec, stage: ReferenceStage, vision: VisionStage | None) -> None:
        self.view, self.stage, self._vision = view, stage, vision
        references = bundle.manifest.references
        self._names = () if references is None else references.features
        self._semantic = bundle.manifest.semantic_view

    @property
    def shared_view(self) -> ViewSpec | None:
        """The view of a whole frame whose features the stage takes; None where it has an encoder of its own."""
        return self.view if self._names else None

    def prepare(self, image: Rgb, seen: Prepared | None = None) -> Prepared:
        """Of an RGB frame [H, W, 3].

        Args:
            seen: of ``shared_view``, with all features of the vision stage, where it has seen it already.
        """
        if seen is not None and seen.features is not None:
            f_s, f_align, maps = seen.features
            return Prepared(seen.pixels, None, Features(f_s, f_align, {name: maps[name] for name in self._names}))
        views = make_views(image, [self.view, *([self._semantic] if self._names else [])])
        return Prepared(views[0].pixels, views[1].pixels if self._names else None)

    def embed(self, frame: Prepared) -> Float:
        """Embedding [h, w, D] of the cells."""
        return np.asarray(self.stage.embed(frame.pixels[None], self._features(frame))[0], np.float32)

    def compare(self, frame: Prepared, bank: Float, colour_weight: float) -> Compared:
        """Distances to the rows of ``bank`` [rows, D]; ``colour_weight`` is that of the squared colour distance."""
        found = self.stage(frame.pixels[None], bank, self._features(frame), colour_weight=colour_weight)
        return Compared(*(np.asarray(values[0], np.float32) for values in found))

    def _features(self, frame: Prepared) -> Features | None:
        if frame.features is not None or frame.semantic is None:
            return frame.features
        assert self._vision is not None, "a graph without a view of its own takes the vision stage's features"
        return self._vision(frame.semantic[None], frame.pixels[None])


def grids(found: Compared, zero_shot: Float) -> dict[Kind, Float]:
    """All maps of a frame on the grid."""
    return {
        "joint": distance_grid(found.joint),
        "deep": distance_grid(found.deep),
        "zero_shot": zero_shot_grid(zero_shot),
    }


def open_references(
    bundle: Bundle, vision: VisionStage, backend: str = DEFAULT_BACKEND, settings: StageSettings | None = None
) -> References | None:
    """The references of a product; None for a bundle that knows no product.

    Args:
        vision: the bundle's vision stage.
        backend: of the vision stage; where it has no reference stage, ONNX Runtime on the CPU takes its place.

    Raises:
        BundleError: the bank does not suit the bundle.
        UsageError, SetupError: as ``open_stages``.
    """
    product = bundle.product
    if product is None:
        return None
    bank = load_array(bundle.folder / BANK, (product.rows, product.channels))
    stage = open_stage(bundle, backend if backend in REFERENCE_BACKENDS else DEFAULT_BACKEND, settings)
    head = None if product.head is None else open_head(bundle, backend if backend in HEAD_BACKENDS else DEFAULT_BACKEND, settings)
    return References(bundle, product, bank, stage, vision, head)
