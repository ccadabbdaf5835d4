"""What a run needs to go on after a kill: weights, their average, AdamW's moments and the step, in one safetensors file."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from agvas_core.contract.errors import UsageError
from agvas_core.model.weights.checkpoint import unique

__all__ = ["load_state", "save_state"]


def save_state(
    path: Path, step: int, model: nn.Module, ema: dict[str, Tensor], optimizer: torch.optim.AdamW, run: dict[str, Any]
) -> None:
    """Written aside and renamed: a kill leaves the last complete state."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": tensor for name, tensor in unique(model.state_dict()).items()}
    tensors |= {f"ema.{name}": tensor for name, tensor in ema.items()}
    for parameter, moments in optimizer.state.items():
        for kind in ("exp_avg", "exp_avg_sq"):
            tensors[f"{kind}.{names[parameter]}"] = moments[kind]
    part = path.with_suffix(".part")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        part,
        {"step": str(step), "run": json.dumps(run, sort_keys=True)},
    )
    os.replace(part, path)


def load_state(path: Path, model: nn.Module, ema: dict[str, Tensor], optimizer: torch.optim.AdamW, run: dict[str, Any]) -> int:
    """Puts a saved state back; returns the step to go on with.

    Raises:
        UsageError: the state is of a run with another configuration; says what differs.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        saved, current = flat(json.loads(metadata["run"])), flat(json.loads(json.dumps(run)))
        if differing := sorted(key for key in saved.keys() | current.keys() if saved.get(key) != current.get(key)):
            key = differing[0]
            raise UsageError(
                f"{path} was trained with {key} = {saved.get(key)}, now it is {current.get(key)}: use the same configuration, or another --out"
            )
        step = int(metadata["step"])
        with torch.no_grad():
            for name, tensor in unique(model.state_dict()).items():
                tensor.copy_(file.get_tensor(f"model.{name}"))
            for name, tensor in ema.items():
                tensor.copy_(file.get_tensor(f"ema.{name}"))
            for name, parameter in model.named_parameters():
                if f"exp_avg.{name}" in file.keys():  # noqa: SIM118 - a safetensors file is no dict
                    optimizer.state[parameter] = {
                        "step": torch.tensor(float(step)),
                        "exp_avg": file.get_tensor(f"exp_avg.{name}").to(parameter.device),
                        "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{name}").to(parameter.device),
                    }
    return step


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    rows: dict[str, Any] = {}
    for key, value in table.items():
        rows |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return rows
