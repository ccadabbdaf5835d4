"""A trained model as a folder: ``config.json``, ``model.safetensors``, ``tokenizer.json``, ``training.json``. No pickle.

With ``base.json`` the weights are a part: what was trained beside published weights, or beside another checkpoint. That file says
which, with their digest; they are read again from where ``config.json`` names them, and the two are merged.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.contract.manifest import sha256_of
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model
from agvas_core.model.config import ModelConfig, parse_config
from agvas_core.model.weights.pretrained import pretrained_model
from agvas_core.model.weights.published import digest_of
from agvas_core.model.weights.trained import kept_state, load_kept_state, make_trainable, merge, merge_tables
from agvas_core.model.weights.vocabulary import pretrained_tokenizer

__all__ = [
    "Checkpoint",
    "base_digests",
    "find_checkpoint",
    "load_checkpoint",
    "read_config",
    "save_checkpoint",
    "start_model",
    "start_tokenizer",
]

BUNDLED = Path(__file__).parents[2] / "checkpoints"

CONFIG, WEIGHTS, TOKENIZER, TRAINING, BASE = "config.json", "model.safetensors", "tokenizer.json", "training.json", "base.json"
_SAME_AS_BASE: Final = ("lmm", "pixel", "anchors", "spam", "agmd", "decoder")  # what decides which tensors there are

Digests = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Checkpoint:
    """A plain model in evaluation mode, and what belongs to it."""

    model: AgVas
    config: ModelConfig
    tokenizer: Tokenizer
    training: dict[str, Any]
    folder: Path


def start_model(config: ModelConfig, dtype: torch.dtype = torch.float32) -> AgVas:
    """The plain model that training starts from: ``config.base``, or published weights where ``config`` names some, or random ones.

    Args:
        dtype: of published weights.

    Raises:
        UsageError: a base of another make; and as ``load_checkpoint`` and ``pretrained_model``.
    """
    if config.base is not None:
        base = load_checkpoint(config.base, dtype=dtype)
        for key in _SAME_AS_BASE:
            if (own := getattr(config, key)) != (other := getattr(base.config, key)):
                raise UsageError(
                    f"model.{key} is not that of base = {config.base!r} ({_difference(other, own)}): what starts from a checkpoint has "
                    f"its parts; extend the preset {base.config.name} and leave [model.{key}] out"
                )
        return base.model
    if config.lmm.pretrained is None and config.pixel.pretrained is None:
        return build_model(config)
    return pretrained_model(config, dtype)


def start_tokenizer(config: ModelConfig) -> Tokenizer | None:
    """The tokenizer of what training starts from, with the anchors; None where there is none and one has to be made."""
    if config.base is not None:
        return read_tokenizer(find_checkpoint(config.base) / TOKENIZER)
    return None if config.lmm.pretrained is None else pretrained_tokenizer(config.lmm)[0]


def base_digests(config: ModelConfig) -> Digests:
    """What a checkpoint of this configuration leaves out, for its ``base.json``: names, and sha256 over the weights."""
    if config.base is not None:
        return {"checkpoint": {"name": config.base, "sha256": sha256_of(find_checkpoint(config.base) / WEIGHTS)}}
    named = {"lmm": config.lmm.pretrained, "pixel": config.pixel.pretrained}
    return {part: {"name": name, "sha256": digest_of(name)} for part, name in named.items() if name is not None}


def save_checkpoint(
    folder: Path,
    state: dict[str, torch.Tensor],
    config: ModelConfig,
    tokenizer: Tokenizer,
    training: dict[str, Any],
    base: Digests | None = None,
) -> None:
    """Writes the folder; every file is complete or absent (written aside, then renamed).

    Args:
        state: the plain model's, whole; or, with ``base``, that of ``trained.kept_state``.
        base: of ``base_digests``, for a model in training form.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / (WEIGHTS + ".part")
    try:
        save_file({name: tensor.contiguous() for name, tensor in unique(state).items()}, weights)
        weights.chmod(0o644)  # safetensors writes for the owner alone
        os.replace(weights, folder / WEIGHTS)
    finally:
        weights.unlink(missing_ok=True)  # of a disk that is full
    for name, text in (
        (CONFIG, json.dumps(config.model_dump(mode="json"), indent=2)),
        (TRAINING, json.dumps(training, indent=2)),
        (TOKENIZER, tokenizer.to_str(pretty=False)),
    ):
        write_whole(folder / name, text + "\n")
    if base is None:
        (folder / BASE).unlink(missing_ok=True)
    else:
        write_whole(folder / BASE, json.dumps(base, indent=2) + "\n")


def unique(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the second name of shared tensors (tied embeddings), which safetensors refuses to write."""
    seen: dict[int, str] = {}
    return {name: tensor for name, tensor in state.items() if seen.setdefault(tensor.data_ptr(), name) == name}


def find_checkpoint(folder: str | Path) -> Path:
    """The folder that is meant: a path, or a bundled checkpoint by its name (``nano``); a path that exists goes first."""
    bundled = BUNDLED / folder
    return bundled if bundled.is_dir() and not Path(folder).exists() else Path(folder)


def load_checkpoint(folder: str | Path, *, dtype: torch.dtype = torch.float32, merged: bool = True) -> Checkpoint:
    """Reads a checkpoint, by its folder or its name (``find_checkpoint``); adapters come merged.

    Args:
        dtype: of published weights that it refers to.
        merged: False leaves adapters beside their layers. Rows that were trained beside the tables are in them either way.

    Raises:
        UsageError: not a checkpoint, or it refers to a model that is not there.
        SetupError: files that are damaged, weights that do not fit the configuration, or a base that has changed.
    """
    folder = find_checkpoint(folder)
    config = read_config(folder)
    try:
        state = load_file(folder / WEIGHTS)
        tokenizer = read_tokenizer(folder / TOKENIZER)
        training = _read_json(folder / TRAINING) if (folder / TRAINING).is_file() else {}
        base = _read_json(folder / BASE) if (folder / BASE).is_file() else None
    except (ValueError, OSError, SafetensorError) as error:
        raise SetupError(f"{folder} is damaged ({error}): copy the checkpoint again") from error
    if base is None:
        model = build_model(config)
        refuse_misfit(model.state_dict(), state, folder)
        model.load_state_dict(state, strict=False)
    else:
        refuse_changed_base(base, config, folder)
        model = start_model(config, dtype)
        make_trainable(model, config)
        refuse_misfit(kept_state(model, config), state, folder)
        load_kept_state(model, state)
        merge_tables(model)
        if merged:
            merge(model)
    return Checkpoint(model.eval(), config, tokenizer, training, folder)


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a checkpoint, without its weights.

    Raises:
        UsageError: not a checkpoint.
        SetupError: it is damaged.
    """
    missing = [name for name in (CONFIG, WEIGHTS, TOKENIZER) if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{folder} lacks {', '.join(missing)}: it is not a checkpoint; agvas train --out DIR writes one")
    try:
        return parse_config(_read_json(folder / CONFIG))
    except (ValueError, OSError) as error:
        raise SetupError(f"{folder} is damaged ({error}): copy the checkpoint again") from error


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_tokenizer(path: Path) -> Tokenizer:
    """Reads ``tokenizer.json``; ValueError where it is none."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{path.name}: {error}") from error


def refuse_misfit(own: dict[str, torch.Tensor], state: dict[str, torch.Tensor], folder: Path) -> None:
    """Names what does not fit: ``own`` is wanted, ``state`` was found."""
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


def refuse_changed_base(base: Digests, config: ModelConfig, folder: Path) -> None:
    """Raises SetupError where what the checkpoint was trained beside is not what lies there now."""
    for part, now in base_digests(config).items():
        if (then := base.get(part, {})).get("sha256") != now["sha256"]:
            raise SetupError(
                f"{folder} was trained beside {then.get('name')} with sha256 {then.get('sha256', 'none')[:12]}..., {now['name']} has "
                f"{now['sha256'][:12]}...: put the same weights there, or correct the path in its {CONFIG}"
            )


def _difference(theirs: Any, ours: Any) -> str:
    """The first key that differs."""
    if not hasattr(theirs, "model_dump") or not hasattr(ours, "model_dump"):
        return f"{theirs} there, {ours} here"
    one, other = theirs.model_dump(), ours.model_dump()
    key = next(key for key in one if one[key] != other[key])
    return f"{key} is {one[key]} there, {other[key]} here"
