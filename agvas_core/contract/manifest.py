"""The bundle's manifest: everything the runtime must know, and the hashes that protect it.

A bundle is a folder with ``manifest.json`` and the files it lists. Nothing in it is opened before its sha256 was compared.
"""

import hashlib
import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from agvas_core.contract.certificate import PARITY_NAME
from agvas_core.contract.decision import Decision
from agvas_core.contract.errors import BundleError
from agvas_core.contract.preprocess import Scales, ViewSpec, check_scales, view_size
from agvas_core.contract.prompts import ANCHOR_TOKENS, FIXED_ANSWER, INSTRUCTIONS, NO_ANOMALY_ANSWER, ChatFormat, Mode
from agvas_core.contract.validation import StrictModel

__all__ = [
    "ADAPTERS",
    "IN_BUNDLE",
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "TRUNK_STRIDES",
    "GraphSpec",
    "Manifest",
    "Precision",
    "PromptSpec",
    "ReferencesSpec",
    "TensorSpec",
    "TilingSpec",
    "check_file_name",
    "read_manifest",
    "read_version",
    "sha256_of",
    "verify_files",
    "write_manifest",
]

SCHEMA_VERSION = 4
OLDEST_VERSION = 2
"""Bundles from here on are read: 3 added ``references`` and ``product``, which may be missing; 4 references that take the trunk's features."""
MANIFEST_NAME = "manifest.json"
BANK = "bank.npy"
"""The memory bank of a product."""
IN_BUNDLE = "vllm"
"""Where a bundle has the form of its language model that vLLM serves (``lmm_folder``)."""
ADAPTERS = "adapters"
"""And where adapters are within it."""


Precision = Literal["fp32", "fp16", "bf16"]

TRUNK_STRIDES: Final = {"trunk_8": 8, "trunk_16": 16}
"""Outputs of a vision graph whose pretrained trunk is the references' own, and their strides in pixels of the pixel view."""


class TensorSpec(StrictModel):
    """One input or output of a graph; a dimension is a number, or a name where it may vary."""

    name: str
    dtype: Literal["uint8", "int64", "float16", "float32"]
    shape: tuple[int | str, ...]


class GraphSpec(StrictModel):
    """One exported graph."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class ReferencesSpec(GraphSpec):
    """The graph that compares cells of an image with those of good images.

    Inputs: ``reference_image`` uint8 RGB [batch, height, width, 3] where it has an encoder of its own, else ``pixel_image`` and
    features of the vision graph, ``f_p`` or ``trunk_8`` and ``trunk_16``; ``bank`` float32 [rows, D], the embeddings of good cells;
    and ``colour_weight`` float32 [], the weight of the squared colour distance in ``joint``.
    Outputs, float32, [batch, h, w]: ``embedding`` [batch, h, w, D], whose last ``colour_channels`` are colour; ``deep``, the
    distance of the others to the nearest row; ``joint``, that of all D to the nearest.
    """

    view: ViewSpec | None = None
    """How a frame becomes ``reference_image``; None where the graph takes the pixel view."""
    stride: int = Field(default=8, ge=1)
    """Pixels of the image in a cell, each way."""
    colour_channels: int = Field(default=3, ge=0)
    max_rows: int = Field(default=4096, ge=1)
    """Rows of a bank that engines are built for; a product has the number of its own."""

    @property
    def features(self) -> tuple[str, ...]:
        """Outputs of the vision graph that it takes; none where it has an encoder of its own."""
        others = ("reference_image", "pixel_image", "bank", "colour_weight")
        return tuple(spec.name for spec in self.inputs if spec.name not in others)

    @property
    def channels(self) -> int:
        """D."""
        (width,) = (spec.shape[-1] for spec in self.inputs if spec.name == "bank")
        return int(width)


class PromptSpec(StrictModel):
    """What is said around the image in each mode, what the model answers, and the tokenizer that turns both into ids."""

    tokenizer: str = "tokenizer.json"
    chat: ChatFormat
    instructions: dict[Mode, str] = INSTRUCTIONS
    """What each mode says where the user says nothing."""
    answer: str = FIXED_ANSWER
    """Of direct mode."""
    refusal: str = NO_ANOMALY_ANSWER
    end_id: int
    """The token that ends an answer."""
    image_id: int
    """The token that stands for a piece of the image; it is never said."""
    max_tokens: int = Field(default=256, ge=16)
    """Text tokens of the prompt and the fixed answer at most."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Tokens of a generated answer at most."""
    follows_words: bool = True
    """Whether the words that it is asked with, and those that it answers with, were found to fit the picture."""

    @field_validator("instructions")
    @classmethod
    def _check_instructions(cls, instructions: dict[Mode, str]) -> dict[Mode, str]:
        if missing := [mode for mode in Mode if not instructions.get(mode, "").strip()]:
            raise ValueError(f"mode {missing[0]} has no instruction")
        return instructions


class TilingSpec(StrictModel):
    """When a frame is too large for one view."""

    max_downscale: float = Field(default=3.0, gt=1.0, allow_inf_nan=False)
    """A frame that would be shrunk by more than this (per side) is cut into tiles."""
    overlap: float = Field(default=0.25, gt=0.0, lt=0.5)
    """Share of a tile's side that it has in common with its neighbour."""

    def excess(self, view: ViewSpec, height: int, width: int) -> float:
        """How much more ``view`` shrinks a ``height`` x ``width`` px frame than is allowed; above 1 it is too large for one view."""
        shown = view_size(view, height, width)
        return max(height / shown[0], width / shown[1]) / self.max_downscale


class Manifest(StrictModel):
    """Contents of ``manifest.json``."""

    schema_version: int = SCHEMA_VERSION
    name: str
    created: str
    """UTC, ISO 8601."""
    anchor_tokens: tuple[str, str, str] = ANCHOR_TOKENS
    anchor_ids: tuple[int, int, int]
    semantic_view: ViewSpec
    pixel_view: ViewSpec
    scales: Scales = (1.0,)
    prompt: PromptSpec
    vision: GraphSpec
    """semantic_image, pixel_image -> f_s, f_align, and the decoder's features (f_p and what goes with it)."""
    lmm: GraphSpec | None = None
    """None where the bundle has the language model in other forms only.

    f_s, f_align, ids_before, ids_after, anchor_positions, logit_positions, past_key_values -> anchor_states,
    text_logits (of the next word), present_key_values. One graph for the prefill and for each step of decoding."""
    decoder: GraphSpec
    """anchor_states and the decoder's features -> logits in anchor order."""
    references: ReferencesSpec | None = None
    """Distances to good images; None where the bundle cannot be taught by them."""
    product: str | None = None
    """File with what ``agvas fit`` learned of a product (``contract.product``); None for a bundle that knows none."""
    decision: Decision = Decision()
    tiling: TilingSpec = TilingSpec()
    precision: Precision = "fp32"
    """In which most of the graphs computes; what they take and give is float32 in all of them."""
    max_batch: int | None = Field(default=None, ge=1)
    """Views that the graphs take together at most; None where any number may be."""
    provenance: dict[str, Any] = {}
    files: dict[str, str]
    """Path inside the bundle -> sha256, for every file but the manifest."""

    @property
    def graphs(self) -> dict[str, GraphSpec]:
        """By stage, in the order of the data path; without the language model's where there is none."""
        named = {"vision": self.vision, "lmm": self.lmm, "decoder": self.decoder}
        return {name: graph for name, graph in named.items() if graph is not None}

    @model_validator(mode="after")
    def _scales_suit_the_view(self) -> Self:
        check_scales(self.pixel_view, self.scales)
        return self


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``manifest.json``; the digest of these bytes is the bundle's identity."""
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")


def read_version(folder: Path) -> int:
    """The schema version of a bundle of any age.

    Raises:
        BundleError: no manifest, or one of another program.
    """
    raw = _read(folder)
    if not isinstance(raw.get("files"), dict) or raw.get("anchor_tokens") != list(ANCHOR_TOKENS):
        raise BundleError(f"{folder / MANIFEST_NAME} is not a bundle's: it has no files and anchor_tokens")
    return int(raw["schema_version"])


def read_manifest(folder: Path) -> Manifest:
    """Reads and validates the manifest of a bundle folder.

    Raises:
        BundleError: no manifest, not JSON, another schema, or fields that are wrong.
    """
    path, raw = folder / MANIFEST_NAME, _read(folder)
    version = raw["schema_version"]
    if version > SCHEMA_VERSION:
        raise BundleError(f"{path} has schema {version}; this agvas reads {SCHEMA_VERSION}: pip install --upgrade agvas")
    if version < OLDEST_VERSION:
        raise BundleError(
            f"{path} has schema {version}, from before the language model had a cache; this agvas reads {OLDEST_VERSION} to "
            f"{SCHEMA_VERSION}: export the bundle again with agvas-export bundle CHECKPOINT -o DIR"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where}: {first['msg']}: copy or export the bundle again") from error
    if manifest.anchor_tokens != ANCHOR_TOKENS:
        raise BundleError(
            f"{path} orders the anchors {manifest.anchor_tokens}; this agvas uses {ANCHOR_TOKENS}: export the bundle again"
        )
    return manifest


def _read(folder: Path) -> dict[str, Any]:
    """The manifest as it stands; it has a version, and may have anything else."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise BundleError(
            f"{folder} has no {MANIFEST_NAME}: it is not a bundle; make one with agvas-export bundle CHECKPOINT -o DIR"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON ({error}): copy or export the bundle again") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise BundleError(f"{path} has no schema_version: copy or export the bundle again")
    return dict(raw)


def check_file_name(folder: Path, name: str) -> None:
    """Raises BundleError where ``name``, of a manifest's files, lies outside the bundle."""
    # Read as Windows does, which knows \ and drives beside what a POSIX path can do.
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
        raise BundleError(f"{folder / MANIFEST_NAME} names {name}, which lies outside the bundle: do not use this bundle")


def verify_files(folder: Path, manifest: Manifest, *, beside: frozenset[str] = frozenset()) -> None:
    """Compares every file of the bundle with its hash.

    Args:
        beside: names that may be there without being listed, such as a repository's own.

    Raises:
        BundleError: a file is missing, lies outside the bundle, or differs; or there is one that the manifest does not list.
    """
    needed = {graph.file for graph in manifest.graphs.values()} | {manifest.prompt.tokenizer}
    if manifest.references is not None:
        needed.add(manifest.references.file)
    if manifest.product is not None:
        needed |= {manifest.product, BANK}
    if missing := sorted(needed - manifest.files.keys()):
        raise BundleError(f"{folder / MANIFEST_NAME} lists no hash for {missing[0]}: export the bundle again")
    for name, expected in manifest.files.items():
        check_file_name(folder, name)
        path = folder / name
        try:
            if not path.is_file():
                raise BundleError(f"{folder} lacks {name}: copy or export the bundle again")
            actual = sha256_of(path)
        except OSError as error:
            raise BundleError(f"{folder}: {name} cannot be read ({error.strerror}): check name and permissions") from error
        if actual != expected:
            raise BundleError(
                f"{path} has sha256 {actual[:12]}..., the manifest says {expected[:12]}...: the file was changed or cut off; "
                "copy or export the bundle again"
            )
    # A graph may refer to files beside it: any that were not compared could be swapped under the same identity.
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    # Adapters may be added to the form for vLLM, and have hashes of their own, which are compared when one is asked for.
    there = {name for name in there if not name.startswith(f"{IN_BUNDLE}/{ADAPTERS}/")}
    # The certificate is made afterwards, is no graph's, and is read as data with its own checks.
    if unknown := sorted(there - manifest.files.keys() - {MANIFEST_NAME, PARITY_NAME} - beside):
        raise BundleError(f"{folder} has {unknown[0]}, which its manifest does not list: remove it, or export the bundle again")
