"""The checkpoint behind a bundle."""

from functools import lru_cache
from pathlib import Path

from agvas_core.contract.errors import BundleError, SetupError
from agvas_core.contract.manifest import sha256_of
from agvas_core.model.checkpoint import BUNDLED, WEIGHTS, Checkpoint, load_checkpoint
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.settings import StageSettings

__all__ = ["checkpoint_of"]

TORCH_FOLDER = "torch"
"""Where a bundle that has a torch form keeps it: a checkpoint folder."""


def checkpoint_of(bundle: Bundle, settings: StageSettings) -> Checkpoint:
    """The checkpoint that ``bundle`` was exported from; the three stages share one.

    ``settings.checkpoint`` where given, else the bundle's own torch form, else the bundled one with the digest of its provenance.

    Raises:
        SetupError: it is not here, or damaged.
        BundleError: the one given is another.
    """
    made_from = bundle.manifest.provenance.get("checkpoint", {})
    digest = made_from.get("sha256")
    own = bundle.folder / TORCH_FOLDER
    place = settings.checkpoint or (own if own.is_dir() else None)
    if place is not None:
        found = sha256_of(place / WEIGHTS) if (place / WEIGHTS).is_file() else None
        if found is not None and found != digest:  # what is missing is said by load_checkpoint
            raise BundleError(
                f"{place} has weights with sha256 {found[:12]}..., {bundle.identity} was exported from "
                f"{str(digest)[:12]}...: give the checkpoint that it was exported from, or export the bundle again"
            )
        return _read(place.resolve(), found)
    for weights in sorted(BUNDLED.glob(f"*/{WEIGHTS}")):
        if sha256_of(weights) == digest:
            return _read(weights.parent, digest)
    raise SetupError(
        f"the backend torch needs the checkpoint that {bundle.identity} was exported from ({made_from.get('name', 'not named')}, sha256 "
        f"{str(digest)[:12]}...), and it is none of the bundled ones: name its folder with checkpoint (--checkpoint)"
    )


@lru_cache(maxsize=2)
def _read(folder: Path, digest: str | None) -> Checkpoint:
    """``digest`` is part of the key, so that other weights in the same folder are read anew."""
    return load_checkpoint(folder)
