"""A product: a bundle that has been shown good images (``agvas fit``), and what it knows of them.

    FOLDER/
      manifest.json       of a bundle, with ``product: product.json`` and the product's operating points
      product.json        this module's ``Product``
      bank.npy            float32 [rows, D]: the memory bank, embeddings of cells of good images
      report.html         what a person reads
      head.onnx           the fitted head, where the product has one
      locate.png          grey, uint8: the part as it is looked for, where the product locates it
      ...                 the graphs and the tokenizer of the bundle that it was made from

All of these files are in the manifest's list of hashes, so a product with a missing or changed file does not load.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from agvas_core.contract.errors import BundleError
from agvas_core.contract.manifest import BANK, GraphSpec, TensorSpec
from agvas_core.contract.preprocess import ViewSpec
from agvas_core.contract.validation import FiniteModel

__all__ = [
    "BANK",
    "HEAD",
    "LOCATE",
    "PRODUCT",
    "REPORT",
    "CatchRate",
    "GoodImage",
    "HeadTrial",
    "Locate",
    "LocateSpec",
    "MapScale",
    "PaintedDefect",
    "Product",
    "Promise",
    "RangeLimit",
    "head_spec",
    "load_array",
    "read_product",
]

PRODUCT: Final = "product.json"
REPORT: Final = "report.html"
HEAD: Final = "head.onnx"
LOCATE: Final = "locate.png"
FORMAT: Final = 3
"""Of ``product.json``; raised where an older agvas would read it wrongly."""
OLDEST_FORMAT: Final = 1
"""Read from here on: 2 added ``head`` and ``head_trial``, 3 ``locate``; all may be missing."""

Kind = Literal["joint", "deep", "zero_shot", "head"]
"""What a map measures: distance of all channels, of the encoder's channels; the model's own score map; the fitted head's logits."""


class MapScale(FiniteModel):
    """How rare a map's value is on good images: -log of the share of good cells that reach it, in nats.

    Between the knots it is linear, below the first it is the first, beyond the last it goes on with ``slope``.
    """

    values: tuple[float, ...] = Field(min_length=2, max_length=1000)
    """Of the map, rising."""
    rarity: tuple[float, ...] = Field(min_length=2, max_length=1000)
    """At each of them."""
    slope: float = Field(gt=0.0)
    """Per unit of the map."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if len(self.values) != len(self.rarity):
            raise ValueError(f"{len(self.values)} values and {len(self.rarity)} rarities; as many of each are needed")
        if any(later <= earlier for earlier, later in zip(self.values, self.values[1:], strict=False)):
            raise ValueError("values do not rise")
        if any(later < earlier for earlier, later in zip(self.rarity, self.rarity[1:], strict=False)):
            raise ValueError("rarity falls where it must not")
        return self

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rarity of each value; same shape."""
        found = np.interp(values, self.values, self.rarity)
        beyond = values - np.float32(self.values[-1])
        return np.asarray(found + self.slope * np.maximum(beyond, 0), np.float32)


class RangeLimit(FiniteModel):
    """A fact of an image that must lie within what good images showed, with a margin."""

    fact: str
    """``brightness``, ``clipped``, ``focus``, ``aspect`` or ``distance``; ``agvas_runtime.pipeline.references`` says what they are."""
    low: float | None = None
    high: float | None = None
    good: tuple[float, float]
    """Lowest and highest of the good images."""

    def fault(self, value: float) -> str | None:
        """What is out of bounds, in words; None where nothing is."""
        if self.low is not None and value < self.low:
            return f"{self.fact} is {value:.4g}, the least allowed is {self.low:.4g}"
        if self.high is not None and value > self.high:
            return f"{self.fact} is {value:.4g}, the most allowed is {self.high:.4g}"
        return None


class GoodImage(FiniteModel):
    """One good image, judged by a bank that has nothing of it."""

    name: str
    score: float = Field(ge=0.0, le=1.0)
    facts: dict[str, float] = {}
    sha256: str = ""
    """Of its pixels, so that an image that was learned is known again."""


class PaintedDefect(FiniteModel):
    """One defect that was painted on a good image, to see whether it is found."""

    kind: str
    """Of ``agvas_core.data.synthetic``."""
    length_px: float = Field(ge=0.0)
    """Longer side of its tightest rectangle, in pixels of the image."""
    area_px: int = Field(ge=0)
    score: float = Field(ge=0.0, le=1.0)
    """Of the image with this defect."""
    found: bool
    """Whether that image is FAIL at the product's threshold and a region of its mask touches the defect."""


class CatchRate(FiniteModel):
    """Of the painted defects of one kind and one range of sizes: how many are found."""

    kind: str
    """``all`` for every kind."""
    from_px: float
    to_px: float | None
    """Length; None: and longer."""
    painted: int
    found: int


class Promise(FiniteModel):
    """What the good images say about parts to come."""

    good_images: int = Field(ge=1)
    false_rejects: int = Field(ge=0)
    """Of these, judged by banks that have nothing of them, above the threshold."""
    confidence: float = Field(gt=0.0, lt=1.0)
    bound: float = Field(gt=0.0, le=1.0)
    """At most this share of good parts is rejected, with that confidence (one-sided, Clopper and Pearson)."""
    asked: float | None = None
    """What --max-false-reject asked for."""
    missing: int = 0
    """Good images that are too few for what was asked."""


class HeadTrial(FiniteModel):
    """What a fitted head gained on defects that it was not trained on, and whether the product has it."""

    images: int
    """Good images, with their painted copies, and bad images with masks that were compared."""
    ap: tuple[float, float]
    """Average precision of pixels without and with the head, mean over the images."""
    error: float
    """Standard error of the mean gain."""
    auroc: tuple[float, float]
    """Of good images against the same with one defect, without and with the head."""
    adopted: bool


class Locate(StrEnum):
    """``agvas fit --locate``: how the part is to be found in a frame; AUTO: where the good images show that it moves."""

    AUTO = "auto"
    OUTLINE = "outline"
    TEMPLATE = "template"
    OFF = "off"


class LocateSpec(FiniteModel):
    """How the part is found in a frame, so that only the part is compared with the references.

    Lengths are pixels of a frame of ``frame_px``; frames of the same shape and another size are scaled.
    """

    method: Literal["outline", "template"]
    """``outline``: the part stands out from an even background. ``template``: the place that looks most like the first good image."""
    frame_px: tuple[int, int]
    """Width and height of the good images."""
    work_px: tuple[int, int]
    """Width and height at which the part is looked for."""
    size_px: tuple[int, int]
    """Width and height of the crop."""
    margin_px: int = Field(ge=0)
    """Of the crop around the part; only the margin may lie over the edge of a frame."""
    offset_px: tuple[float, float] = (0.0, 0.0)
    """From the centroid of the outline to the centre of the crop, x and y."""
    least_match: float = Field(ge=0.0, le=1.0)
    """Least correlation with the template."""
    contrast: float = Field(default=0.0, ge=0.0)
    """Distance from the background, in Lab of 8 bits, from which a pixel is of the part."""
    area: tuple[float, float] = (0.0, 1.0)
    """Least and largest share of the frame that the part covers."""
    turns: bool = False
    """Whether the part is also turned to the angle that it has in the first good image."""
    angle_deg: float = 0.0
    """Of the outline's tightest rectangle in the first good image."""

    @property
    def share(self) -> float:
        """Of the frame, that the crop covers."""
        return min(1.0, self.size_px[0] * self.size_px[1] / (self.frame_px[0] * self.frame_px[1]))


class Product(FiniteModel):
    """Contents of ``product.json``."""

    format: int = FORMAT
    name: str
    created: str
    """UTC, ISO 8601."""
    agvas: str
    """Version that wrote it."""
    base: str
    """Identity of the bundle that it was made from."""
    view: ViewSpec
    """How a frame becomes the image whose cells are compared with the bank."""
    rows: int = Field(ge=1)
    channels: int = Field(ge=1)
    """Of the bank."""
    colour_weight: float = Field(default=1.0, ge=0.0)
    """Of the squared distance of the colour channels in the joint distance."""
    joint: MapScale
    deep: MapScale
    zero_shot: MapScale
    zero_shot_weight: float = Field(default=1.0, gt=0.0, le=10.0)
    """Of the model's own score map beside the joint distance, in the score map."""
    head: MapScale | None = None
    """Of the fitted head's logits; None where the product has no head."""
    head_trial: HeadTrial | None = None
    """None where no head was asked for."""
    half: float = Field(gt=0.0)
    """Statistic at which the score is 0.5: about the image threshold."""
    far_cell: float = Field(ge=0.0)
    """Deep distance that 1 % of the cells of good images reach."""
    mean_distance: float = Field(ge=0.0)
    """Mean deep distance of the cells of good images."""
    limits: tuple[RangeLimit, ...] = ()
    promise: Promise
    good: tuple[GoodImage, ...] = Field(min_length=1)
    """That were learned."""
    frame_px: tuple[int, int] | None = None
    """Width and height of the images that were learned; None where they have several sizes."""
    locate: LocateSpec | None = None
    """How the part is found; None where the whole frame is compared. Limits and references are then those of the crop."""
    calibrated: tuple[GoodImage, ...] = ()
    """Good images that were not learned and set the operating point (``agvas calibrate``); empty where the learned ones did."""
    bad: tuple[GoodImage, ...] = ()
    """Images of defective parts that were given, with the scores of the finished product."""
    painted: tuple[PaintedDefect, ...] = ()
    catch: tuple[CatchRate, ...] = ()
    left_out: tuple[str, ...] = ()
    """Images that were given and not used, and why."""
    warnings: tuple[str, ...] = ()
    mm_per_px: float | None = Field(default=None, gt=0.0)
    seed: int = 0
    seconds: dict[str, float] = {}
    """That the steps of the fit took."""


def read_product(folder: Path, name: str = PRODUCT) -> Product:
    """Reads ``product.json`` of a bundle whose hashes were compared.

    Raises:
        BundleError: of another version, or fields that are wrong.
    """
    path = folder / name
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON ({error}): run agvas fit again") from error
    version = raw.get("format") if isinstance(raw, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise BundleError(f"{path} has no format: run agvas fit again")
    if not OLDEST_FORMAT <= version <= FORMAT:
        remedy = "pip install --upgrade agvas" if version > FORMAT else "run agvas fit again"
        raise BundleError(f"{path} has format {version}; this agvas reads {OLDEST_FORMAT} to {FORMAT}: {remedy}")
    try:
        return Product.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where}: {first['msg']}: run agvas fit again") from error


def head_spec(channels: int, stride: int = 8) -> GraphSpec:
    """What ``head.onnx`` takes and gives.

    Args:
        channels: D of an embedding.
        stride: pixels of the view in a cell, which the names of the open axes say.
    """
    rows, columns = f"height/{stride}", f"width/{stride}"

    def tensor(name: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=shape)

    return GraphSpec(
        file=HEAD,
        inputs=(tensor("embedding", "batch", rows, columns, channels), tensor("rarities", "batch", 3, rows, columns)),
        outputs=(tensor("logit", "batch", rows, columns),),
    )


def load_array(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A float32 array of ``shape`` from a .npy file of a product.

    Raises:
        BundleError: it cannot be read, or is another array.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{path} cannot be read ({error}): run agvas fit again") from error
    if not isinstance(found, np.ndarray) or found.dtype != np.float32 or found.shape != shape:
        what = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else type(found).__name__
        raise BundleError(f"{path} is {what}; float32 {list(shape)} is needed: run agvas fit again")
    if not np.isfinite(found).all():
        raise BundleError(f"{path} has values that are NaN or infinite: run agvas fit again")
    return found
