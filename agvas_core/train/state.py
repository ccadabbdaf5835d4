"""The state to resume a run from: what was trained, its average, AdamW's moments and the step, in one safetensors file.

No pickle, and the same file with and without DeepSpeed, for any number of processes. Frozen weights are had again from where they came.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from agvas_core.contract.errors import OutputError, SetupError, UsageError
from agvas_core.model.weights.checkpoint import unique
from agvas_core.train.engine import Engine
from agvas_core.train.objective import Objective

__all__ = ["STATE", "Resumed", "flat", "kept_tensors", "put_moments", "put_weights", "read_state", "save_state", "write_tensors"]

STATE: Final = "state.safetensors"
_SHOWN = 8
_MODEL, _HEADS = "model.", "aux_heads."


@dataclass(frozen=True)
class Resumed:
    """A saved state.

    ``step``: to go on with; ``tensors``: by name; ``recent``: rows of the log that were not written yet; ``moved``: how often AdamW has
    moved a parameter, of those that a phase froze.
    """

    step: int
    tensors: dict[str, Tensor]
    recent: list[dict[str, float]]
    moved: dict[str, int]


def kept_tensors(engine: Engine, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of the model, whole, by their names in it. All processes call it together."""
    model = engine.plain
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    found: dict[str, Tensor] = {}
    for name in names:
        if name in parameters:
            found[name] = engine.whole(parameters[name])
        elif name in buffers:
            found[name] = buffers[name].detach()
    return found


def save_state(
    path: Path,
    engine: Engine,
    kept: dict[str, Tensor],
    average: dict[str, Tensor],
    step: int,
    run: dict[str, Any],
    recent: list[dict[str, float]],
) -> None:
    """Written aside and renamed: a kill, or a disk that fills, leaves the last complete state. All processes call it together.

    Args:
        kept: of :func:`kept_tensors`.
        average: the moving average of the same; empty where there is none.

    Raises:
        OutputError: it cannot be written.
    """
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in kept.items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in average.items()}
    moved: dict[str, int] = {}
    for name, parameter in engine.objective.named_parameters():
        if name.startswith(_HEADS):
            tensors[name] = engine.whole(parameter)
        if name in engine.learning:
            tensors |= {f"{key}.{name}": moment for key, moment in engine.moments(parameter).items()}
            if (times := engine.steps_of(parameter, step)) != step:
                moved[name] = times
    if engine.main:
        metadata = {"step": step, "run": run, "recent": recent, "moved": moved}
        write_tensors(path, tensors, {key: json.dumps(value, sort_keys=True) for key, value in metadata.items()})
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
            metadata = {key: json.loads(value) for key, value in file.metadata().items()}
            _refuse_change(path, metadata["run"], json.loads(json.dumps(run)))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a safetensors file is no dict
            return Resumed(int(metadata["step"]), tensors, metadata["recent"], metadata["moved"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SetupError(f"{path} is damaged ({error}): remove it and train again from the start") from error


def put_weights(objective: Objective, names: Iterable[str], state: Resumed) -> None:
    """Everything of a state into model and heads, before ``engine.prepare``."""
    own = objective.state_dict()
    with torch.no_grad():
        for name in (*(f"{_MODEL}{name}" for name in names), *(name for name in own if name.startswith(_HEADS))):
            if name in state.tensors:
                own[name].copy_(state.tensors[name])


def put_moments(engine: Engine, state: Resumed) -> None:
    """Trained parameters and their moments from a state, after ``engine.prepare``."""
    for name, parameter in engine.objective.named_parameters():
        if name in engine.learning:
            found = {key: state.tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq") if f"{key}.{name}" in state.tensors}
            engine.put_back(state.moved.get(name, state.step), parameter, state.tensors[name], found)


def average_of(state: Resumed | None, kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """The moving average that a state holds, or the first one: the weights themselves."""
    if state is None:
        return {name: tensor.detach().clone() for name, tensor in unique(kept).items()}
    return {name: state.tensors[f"ema.{name}"].to(tensor.device) for name, tensor in unique(kept).items()}


def _refuse_change(path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    saved, current = flat(then), flat(now)
    keys = sorted(key for key in saved.keys() | current.keys() if saved.get(key) != current.get(key))
    if not keys:
        return
    lines = "; ".join(f"{key} was {saved.get(key)}, is {current.get(key)}" for key in keys[:_SHOWN])
    more = f"; and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    raise UsageError(f"{path} is of a run with another configuration: {lines}{more}: use the same, or another --out")


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    rows: dict[str, Any] = {}
    for key, value in table.items():
        rows |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return rows
