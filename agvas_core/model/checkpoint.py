"""A trained model as a folder: ``config.json``, ``model.safetensors``, ``tokenizer.json``, ``training.json``. No pickle."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model
from agvas_core.model.config import ModelConfig, parse_config

__all__ = ["Checkpoint", "find_checkpoint", "load_checkpoint", "save_checkpoint"]

BUNDLED = Path(__file__).parent.parent / "checkpoints"

CONFIG, WEIGHTS, TOKENIZER, TRAINING = "config.json", "model.safetensors", "tokenizer.json", "training.json"


@dataclass(frozen=True)
class Checkpoint:
    """A model in evaluation mode, and what belongs to it."""

    model: AgVas
    config: ModelConfig
    tokenizer: Tokenizer
    training: dict[str, Any]
    folder: Path


def save_checkpoint(
    folder: Path, state: dict[str, torch.Tensor], config: ModelConfig, tokenizer: Tokenizer, training: dict[str, Any]
) -> None:
    """Writes the folder; every file is complete or absent (written aside, then renamed)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / (WEIGHTS + ".part")
    save_file({name: tensor.contiguous() for name, tensor in unique(state).items()}, weights)
    weights.chmod(0o644)  # safetensors writes for the owner alone
    os.replace(weights, folder / WEIGHTS)
    for name, text in (
        (CONFIG, json.dumps(config.model_dump(mode="json"), indent=2)),
        (TRAINING, json.dumps(training, indent=2)),
        (TOKENIZER, tokenizer.to_str(pretty=False)),
    ):
        write_whole(folder / name, text + "\n")


def unique(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the second name of shared tensors (tied embeddings), which safetensors refuses to write."""
    seen: dict[int, str] = {}
    return {name: tensor for name, tensor in state.items() if seen.setdefault(tensor.data_ptr(), name) == name}


def find_checkpoint(folder: str | Path) -> Path:
    """The folder that is meant: a path, or a bundled checkpoint by its name (``nano``); a path that exists goes first."""
    bundled = BUNDLED / folder
    return bundled if bundled.is_dir() and not Path(folder).exists() else Path(folder)


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Reads a checkpoint, by its folder or its name (``find_checkpoint``).

    Raises:
        UsageError: not a checkpoint.
        SetupError: files that are damaged, or weights that do not fit the configuration.
    """
    folder = find_checkpoint(folder)
    missing = [name for name in (CONFIG, WEIGHTS, TOKENIZER) if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{folder} lacks {', '.join(missing)}: it is not a checkpoint; agvas train --out DIR writes one")
    try:
        config = parse_config(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        state = load_file(folder / WEIGHTS)
        tokenizer = read_tokenizer(folder / TOKENIZER)
        training = json.loads((folder / TRAINING).read_text(encoding="utf-8")) if (folder / TRAINING).is_file() else {}
    except (ValueError, OSError, SafetensorError) as error:
        raise SetupError(f"{folder} is damaged ({error}): copy the checkpoint again") from error
    model = build_model(config)
    load_state(model, state, folder)
    return Checkpoint(model.eval(), config, tokenizer, training, folder)


def read_tokenizer(path: Path) -> Tokenizer:
    """Reads ``tokenizer.json``; ValueError where it is none."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{path.name}: {error}") from error


def load_state(model: AgVas, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Loads weights and names what does not fit."""
    own = model.state_dict()
    tied = own.keys() - unique(own).keys()
    missing = sorted(own.keys() - state.keys() - tied)
    unexpected = sorted(state.keys() - own.keys())
    shapes = sorted(name for name in state.keys() & own.keys() if state[name].shape != own[name].shape)
    if missing or unexpected or shapes:
        detail = "; ".join(
            f"{len(names)} {what} (first: {names[0]})"
            for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if names
        )
        raise SetupError(
            f"weights of {folder} do not fit its {CONFIG}: {detail}: use the configuration that they were trained with"
        )
    model.load_state_dict(state, strict=False)
