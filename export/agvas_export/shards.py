"""Weights in one file, or in several of bounded size with the index that transformers and vLLM read; each tensor is read when it is written."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["MAX_SHARD_BYTES", "Stored", "write_shards"]

MAX_SHARD_BYTES: Final = 2_000_000_000
"""Of one file, but for a tensor that is larger by itself; and so of what is held while it is written."""


@dataclass(frozen=True)
class Stored:
    """A tensor that lies somewhere, in memory or in a file."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @classmethod
    def held(cls, tensor: Tensor) -> "Stored":
        """One that is in memory."""
        return cls(tuple(tensor.shape), lambda: tensor)


def write_shards(tensors: Mapping[str, Stored], dtype: torch.dtype, folder: Path) -> None:
    """Writes them as ``dtype`` in their order: ``model.safetensors``, or ``model-00001-of-00002.safetensors`` and so on."""
    sizes = {name: prod(tensor.shape) * dtype.itemsize for name, tensor in tensors.items()}
    shards: list[list[str]] = [[]]
    room = MAX_SHARD_BYTES
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = MAX_SHARD_BYTES
        shards[-1].append(name)
        room -= size
    several = len(shards) > 1
    files = {
        f"model-{index:05}-of-{len(shards):05}.safetensors" if several else "model.safetensors": names
        for index, names in enumerate(shards, 1)
    }
    for file, names in files.items():
        save_file({name: tensors[name].read().to(dtype).contiguous() for name in names}, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors writes for the owner alone
    if several:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file for file, names in files.items() for name in names},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
