"""What a run needs to go on after a kill: what was trained, AdamW's moments and the step, in one safetensors file.

No pickle, and the same file with and without DeepSpeed, for any number of processes. Frozen weights are had again from where they came.
"""

import json
import os
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agvas_core.contract.errors import OutputError, SetupError, UsageError
from agvas_core.model.agvas import AgVas
from agvas_core.model.config import ModelConfig
from agvas_core.model.weights.trained import kept_state
from agvas_core.train.fit.engine import Engine

__all__ = ["STATE", "Resumed", "kept_tensors", "put_moments", "read_state", "save_state", "write_tensors"]

STATE: Final = "state.safetensors"
_SHOWN = 8
Resumed = tuple[int, dict[str, Tensor], list[dict[str, float]]]
"""Step to go on with, tensors by name, rows of the log that were not written yet."""


def kept_tensors(engine: Engine, config: ModelConfig) -> dict[str, Tensor]:
    """What a checkpoint must hold, whole, by its names in the model. All processes call it together."""
    model = engine.plain
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    found: dict[str, Tensor] = {}
    for name in kept_state(model, config):
        if name in parameters:
            found[name] = engine.whole(parameters[name])
        elif name in buffers:
            found[name] = buffers[name].detach()
    return found


def save_state(
    path: Path, engine: Engine, kept: dict[str, Tensor], step: int, run: dict[str, Any], recent: list[dict[str, float]]
) -> None:
    """Written aside and renamed: a kill, or a disk that fills, leaves the last complete state. All processes call it together.

    Raises:
        OutputError: it cannot be written.
    """
    tensors = {f"model.{name}": tensor for name, tensor in kept.items()}
    for name, parameter in engine.plain.named_parameters():
        if parameter.requires_grad:
            tensors |= {f"{key}.{name}": moment for key, moment in engine.moments(parameter).items()}
    if engine.main:
        write_tensors(path, tensors, {"step": str(step), "run": json.dumps(run, sort_keys=True), "recent": json.dumps(recent)})
    engine.wait()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """One safetensors file, whole or not there; raises OutputError where it cannot be written."""
    part = path.with_name(path.name + ".part")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part, metadata)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write {path} ({error}); what was saved before is whole: make space, then go on with --resume"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def read_state(path: Path, run: dict[str, Any]) -> Resumed:
    """A saved state.

    Raises:
        UsageError: it is of a run with another configuration; shows what differs.
        SetupError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            _refuse_change(path, json.loads(metadata["run"]), json.loads(json.dumps(run)))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a safetensors file is no dict
            return int(metadata["step"]), tensors, json.loads(metadata["recent"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SetupError(f"{path} is damaged ({error}): remove it and train again from the start") from error


def put_moments(engine: Engine, step: int, tensors: dict[str, Tensor]) -> None:
    """Trained parameters and their moments from a state, after ``engine.prepare``."""
    for name, parameter in engine.plain.named_parameters():
        if parameter.requires_grad:
            found = {key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors}
            engine.put_back(step, parameter, tensors[f"model.{name}"], found)


def put_model(model: AgVas, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """Everything of a state into the model, before ``engine.prepare``."""
    own = model.state_dict()
    with torch.no_grad():
        for name in kept_state(model, config):
            if f"model.{name}" in tensors:
                own[name].copy_(tensors[f"model.{name}"])


def _refuse_change(path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    saved, current = _flat(then), _flat(now)
    keys = sorted(key for key in saved.keys() | current.keys() if saved.get(key) != current.get(key))
    if not keys:
        return
    lines = "; ".join(f"{key} was {saved.get(key)}, is {current.get(key)}" for key in keys[:_SHOWN])
    more = f"; and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    raise UsageError(f"{path} is of a run with another configuration: {lines}{more}: use the same, or another --out")


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, value in table.items():
        rows |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return rows
