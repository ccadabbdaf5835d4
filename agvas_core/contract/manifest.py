"""The bundle's manifest: everything the runtime must know, and the hashes that protect it.

A bundle is a folder with ``manifest.json`` and the files it lists. Nothing in it is opened before its sha256 was compared.
"""

import hashlib
import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agvas_core.contract.anchors import ANCHOR_TOKENS
from agvas_core.contract.errors import BundleError
from agvas_core.contract.preprocess import ViewSpec
from agvas_core.contract.prompts import DEFAULT_INSTRUCTION, FIXED_ANSWER, ChatFormat

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "Decision",
    "GraphSpec",
    "Manifest",
    "PromptSpec",
    "TensorSpec",
    "TilingSpec",
    "read_manifest",
    "sha256_of",
    "verify_files",
    "write_manifest",
]

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Part):
    """One input or output of a graph; a dimension is a number, or a name where it may vary."""

    name: str
    dtype: Literal["uint8", "int64", "float16", "float32"]
    shape: tuple[int | str, ...]


class GraphSpec(_Part):
    """One exported graph."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class PromptSpec(_Part):
    """What is said around the image in direct mode, and the tokenizer that turns it into ids."""

    tokenizer: str = "tokenizer.json"
    chat: ChatFormat
    instruction: str = DEFAULT_INSTRUCTION
    answer: str = FIXED_ANSWER
    max_tokens: int = Field(default=256, ge=16)
    """Text tokens at most, the answer included."""


class Decision(_Part):
    """From logits to a verdict (paper eq. 8), the same for every user of the bundle."""

    alpha: float = Field(default=0.5, ge=0.0, le=1.0)  # eq. 8
    threshold: float = Field(default=0.5, gt=0.0, lt=1.0)  # sec. 3.1
    min_area_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Regions smaller than this share of the frame are no regions."""


class TilingSpec(_Part):
    """When a frame is too large for one view."""

    max_downscale: float = Field(default=3.0, gt=1.0, allow_inf_nan=False)
    """A frame that would be shrunk by more than this (per side) is cut into tiles."""
    overlap: float = Field(default=0.25, gt=0.0, lt=0.5)
    """Share of a tile's side that it has in common with its neighbour."""


class Manifest(_Part):
    """Contents of ``manifest.json``."""

    schema_version: int = SCHEMA_VERSION
    name: str
    created: str
    """UTC, ISO 8601."""
    anchor_tokens: tuple[str, str, str] = ANCHOR_TOKENS
    anchor_ids: tuple[int, int, int]
    semantic_view: ViewSpec
    pixel_view: ViewSpec
    prompt: PromptSpec
    vision: GraphSpec
    """semantic_image, pixel_image -> f_s, f_align, and the decoder's features (f_p and what goes with it)."""
    lmm: GraphSpec
    """f_s, f_align, ids_before, ids_after, anchor_positions -> anchor_states."""
    decoder: GraphSpec
    """anchor_states and the decoder's features -> logits in anchor order."""
    decision: Decision = Decision()
    tiling: TilingSpec = TilingSpec()
    provenance: dict[str, Any] = {}
    files: dict[str, str]
    """Path inside the bundle -> sha256, for every file but the manifest."""


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


def read_manifest(folder: Path) -> Manifest:
    """Reads and validates the manifest of a bundle folder.

    Raises:
        BundleError: no manifest, not JSON, a newer schema, or fields that are wrong.
    """
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
    if version > SCHEMA_VERSION:
        raise BundleError(f"{path} has schema {version}; this agvas reads up to {SCHEMA_VERSION}: pip install --upgrade agvas")
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


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compares every file of the bundle with its hash.

    Raises:
        BundleError: a file is missing, lies outside the bundle, or differs; or there is one that the manifest does not list.
    """
    needed = {manifest.vision.file, manifest.lmm.file, manifest.decoder.file, manifest.prompt.tokenizer}
    if missing := sorted(needed - manifest.files.keys()):
        raise BundleError(f"{folder / MANIFEST_NAME} lists no hash for {missing[0]}: export the bundle again")
    for name, expected in manifest.files.items():
        # Read as Windows does, which knows \ and drives beside what a POSIX path can do.
        if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
            raise BundleError(f"{folder / MANIFEST_NAME} names {name}, which lies outside the bundle: do not use this bundle")
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
    if unknown := sorted(there - manifest.files.keys() - {MANIFEST_NAME}):
        raise BundleError(f"{folder} has {unknown[0]}, which its manifest does not list: remove it, or export the bundle again")
