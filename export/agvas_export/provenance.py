"""Where a bundle's weights come from, what made its graphs, and under which licences they stand."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agvas_core import __version__
from agvas_core.model.checkpoint import BASE, Checkpoint

__all__ = ["provenance_of"]

VERSIONED = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy")


def provenance_of(source: Checkpoint, sha256: str) -> dict[str, Any]:
    """Where the weights come from and what made the graphs: base models, digest, training, versions, licences."""
    training = source.training
    recipe = training.get("train", {})
    from_scratch = "all" in source.config.trained
    return {
        "checkpoint": {"name": source.folder.resolve().name, "sha256": sha256},
        "base": base_of(source),
        "model": source.config.model_dump(mode="json"),
        "training": {key: training[key] for key in ("agvas", "torch", "step", "steps", "images") if key in training}
        | {"seed": recipe.get("seed"), "config": recipe},
        "versions": {"agvas": __version__, "python": platform.python_version()} | {name: version(name) for name in VERSIONED},
        "licence": {
            "software": "Apache-2.0",
            # Procedural images only: no one else's rights are in the weights.
            "weights": training.get("licence")
            or ("Apache-2.0" if from_scratch else "those of the base model and of the training data; see training"),
        },
    }


def base_of(source: Checkpoint) -> dict[str, dict[str, str]]:
    """What training started from, by part: its name (of a folder only the last part: paths are nobody's business) and its digest."""
    path = source.folder / BASE
    told: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not told:
        parts = {"lmm": source.config.lmm.pretrained, "pixel": source.config.pixel.pretrained, "checkpoint": source.config.base}
        told = {part: {"name": name} for part, name in parts.items() if name is not None}
    return {part: facts | {"name": public_name(facts["name"])} for part, facts in told.items()}


def public_name(name: str) -> str:
    """A hub id as it is; of a path its last part."""
    return Path(name).name if Path(name).exists() or Path(name).is_absolute() else name
