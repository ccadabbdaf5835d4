"""The checkpoint that a bundle is made from, or was: read once, with the digest of the very weights that were read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.contract.manifest import Manifest, sha256_of
from agvas_core.model.weights.checkpoint import (
    BASE,
    CONFIG,
    TOKENIZER,
    TRAINING,
    WEIGHTS,
    Checkpoint,
    find_checkpoint,
    load_checkpoint,
)

__all__ = ["TORCH_FOLDER", "checkpoint_files", "read_checkpoint", "read_reference", "read_training"]

TORCH_FOLDER = "torch"
"""Where a bundle that has a torch form keeps it: a checkpoint folder."""


def read_checkpoint(checkpoint: str | Path, *, merged: bool = True) -> tuple[Checkpoint, str]:
    """The checkpoint (``merged`` as in ``load_checkpoint``) and the digest of its weights: a training may be writing into the same folder."""
    weights = find_checkpoint(checkpoint) / WEIGHTS
    sha256 = sha256_of(weights) if weights.is_file() else ""
    source = load_checkpoint(weights.parent, merged=merged)
    if sha256_of(weights) != sha256:
        raise SetupError(f"{weights} changed while it was read: let the training end, or copy its folder and export the copy")
    return source, sha256


def read_training(folder: Path) -> dict[str, Any]:
    """A training's own record; nothing where there is none.

    Raises:
        SetupError: it cannot be read.
    """
    path = folder / TRAINING
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except ValueError as error:
        raise SetupError(f"{path} is damaged ({error}): copy the checkpoint again") from error


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a checkpoint, without what a training keeps beside them."""
    return [path for name in (CONFIG, WEIGHTS, TOKENIZER, TRAINING, BASE) if (path := folder / name).is_file()]


def read_reference(folder: Path, manifest: Manifest, checkpoint: str | Path | None = None) -> tuple[Checkpoint, str]:
    """The model that a bundle came from: ``checkpoint``, else the bundle's own torch form, else the checkpoint that ships under its name.

    Raises:
        UsageError: there is none, or ``checkpoint`` is not the one that the bundle came from.
        SetupError: it is damaged.
    """
    said: Mapping[str, Any] = manifest.provenance.get("checkpoint", {})
    own = folder / TORCH_FOLDER
    place = checkpoint or (own if own.is_dir() else said.get("name", ""))
    found = find_checkpoint(place) / WEIGHTS
    if not place or (checkpoint is None and not found.is_file()):
        raise UsageError(
            f"{folder} has no torch form, and the checkpoint that it came from ({said.get('name', 'not named')}) does not ship with "
            "agvas: give its folder with --checkpoint DIR"
        )
    if (digest := sha256_of(found) if found.is_file() else "") != said.get("sha256") and digest:
        raise UsageError(
            f"{found} has sha256 {digest[:12]}..., {folder} came from weights with {str(said.get('sha256'))[:12]}...: give the checkpoint "
            "that it was exported from with --checkpoint DIR"
        )
    return read_checkpoint(place)
