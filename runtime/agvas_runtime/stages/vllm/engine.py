"""Requests and responses that both ways to vLLM share."""

import fcntl
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vllm
from numpy.typing import NDArray
from safetensors.numpy import load_file
from vllm import PoolingParams, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind

from agvas_core.contract.errors import StageError, UsageError
from agvas_core.contract.lmm_folder import (
    ACCEPT_NAME,
    ADAPTER_NAME,
    ADAPTERS,
    LMM_FOLDER_NAME,
    read_adapter,
    read_lmm_folder,
)
from agvas_core.contract.manifest import sha256_of
from agvas_runtime.stages.vllm.connector import ROWS
from agvas_runtime.stages.vllm.protocol import Identity, LmmRequest, LmmResponse

__all__ = ["Answering", "is_written", "states_of"]

Float = NDArray[np.float32]


class Answering:
    """Questions to vLLM's requests, and its outputs to answers; knows the folder and its adapters.

    Raises:
        BundleError: the folder is broken, changed or foreign.
    """

    def __init__(self, folder: Path, *, all_modes: bool) -> None:
        self.folder, self.spec, self.all_modes = folder, read_lmm_folder(folder), all_modes
        self._direction: Float = load_file(folder / ACCEPT_NAME)["direction"]
        self._adapters: dict[tuple[str, str], LoRARequest] = {}
        self.identity = Identity(
            name=self.spec.name,
            checkpoint_sha256=self.spec.checkpoint_sha256,
            tables_sha256=self.spec.tables_sha256,
            vllm=vllm.__version__,
            all_modes=all_modes,
            adapter=self.spec.adapter,
        )

    def adapters(self) -> list[str]:
        """Those that lie in the folder now."""
        return sorted(file.parent.name for file in (self.folder / ADAPTERS).glob(f"*/{LMM_FOLDER_NAME}"))

    def adapter(self, name: str | None) -> LoRARequest | None:
        """What vLLM answers with; an adapter is checked when it is asked for first, and when it was replaced.

        Raises:
            UsageError: there is none of that name.
            BundleError: it is broken, or was trained with other tables.
        """
        name = name or self.spec.adapter
        if name is None:
            return None
        folder = self.folder / ADAPTERS / name
        if not ADAPTER_NAME.fullmatch(name) or not (folder / LMM_FOLDER_NAME).is_file():
            there = ", ".join(self.adapters()) or "none"
            raise UsageError(
                f"there is no adapter {name!r}; there are {there}: add it with agvas-export adapter CHECKPOINT --into DIR"
            )
        key = (name, sha256_of(folder / LMM_FOLDER_NAME))
        if key not in self._adapters:
            read_adapter(folder, self.spec)
            # A number that was used stays with its weights: vLLM knows adapters by it.
            self._adapters[key] = LoRARequest(f"{name}@{key[1][:12]}", len(self._adapters) + 1, str(folder))
        return self._adapters[key]

    def prompts(self, asked: LmmRequest) -> list[dict[str, Any]]:
        """One for each image.

        Raises:
            UsageError: what vLLM would refuse, or worse, cut off.
        """
        _, tokens, dim = asked.visual.shape
        if (tokens, dim) != (self.spec.visual_tokens, self.spec.dim):
            raise UsageError(
                f"an image has {tokens} embeddings of {dim}; {self.spec.name} takes {self.spec.visual_tokens} of {self.spec.dim}: use the "
                "bundle that it was exported with"
            )
        if asked.new_tokens and not self.all_modes:
            raise UsageError("this engine answers in direct mode alone: start it without --direct-only (backend vllm)")
        length = len(asked.before) + tokens + len(asked.after) + max(asked.new_tokens, 1)
        if length > self.spec.max_length:
            raise UsageError(
                f"image, prompt and answer take {length} tokens; {self.spec.name} takes {self.spec.max_length}: shorten the prompt"
            )
        if self.spec.image_id in (*asked.before, *asked.after):
            raise UsageError("the prompt holds the token that stands for an image: leave it out")
        ids = [*asked.before, self.spec.image_id, *asked.after]
        return [
            {"prompt_token_ids": ids, "multi_modal_data": {"image": torch.from_numpy(visual)[None]}}
            for visual in asked.visual.copy()
        ]

    def parameters(self, asked: LmmRequest) -> PoolingParams | SamplingParams:
        """What is to come back."""
        skipped = len(asked.before) + self.spec.visual_tokens
        rows = [skipped + row for row in asked.rows]
        if not self.all_modes:
            return PoolingParams(task="token_embed", use_activation=False, extra_kwargs={ROWS: rows})
        return SamplingParams(
            temperature=0.0,
            max_tokens=max(asked.new_tokens, 1),
            stop_token_ids=[self.spec.end_id],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={"kv_transfer_params": {"include_output_tokens": True, ROWS: rows}},
        )

    def said(self, asked: LmmRequest, output: Any) -> LmmResponse:
        """One output of vLLM, finished.

        Raises:
            StageError: it came without states.
        """
        if not self.all_modes:
            states = output.outputs.data.float().numpy()
            return self._checked(asked, (), asked.rows, states)
        states, positions = _collect(states_of(output))
        skipped = len(asked.before) + self.spec.visual_tokens
        ids = tuple(output.outputs[0].token_ids) if asked.new_tokens else ()
        return self._checked(asked, ids, tuple(position - skipped for position in positions), states)

    def _checked(self, asked: LmmRequest, ids: tuple[int, ...], positions: tuple[int, ...], states: Float) -> LmmResponse:
        if positions[: len(asked.rows)] != asked.rows or states.shape != (len(positions), self.spec.dim):
            raise StageError(
                f"vLLM gave states of shape {list(states.shape)} at {list(positions)}; {list(asked.rows)} were asked for: report this"
            )
        lean = float(states[0].astype(np.float64) @ self._direction.astype(np.float64)) if asked.rows else 0.0
        return LmmResponse(ids, positions, lean, np.ascontiguousarray(states, np.float32))


def states_of(output: Any) -> Path:
    """Where the connector writes."""
    return Path((output.kv_transfer_params or {}).get("hidden_states_path", ""))


def is_written(path: Path) -> bool:
    """Has the connector let go of the lock?"""
    try:
        with _lock_of(path).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StageError(f"vLLM's states at {path} cannot be read ({error}): is there room in /dev/shm?") from error
    return True


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _collect(path: Path) -> tuple[Float, list[int]]:
    """What the connector wrote; both files go away.

    vLLM says the path before the file is there, and holds the lock beside it meanwhile.
    """
    lock = _lock_of(path)
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
        tensors = load_file(path)
    except OSError as error:
        raise StageError(f"vLLM's states at {path} cannot be read ({error}): is there room in /dev/shm?") from error
    finally:
        for each in (path, lock):
            each.unlink(missing_ok=True)
    return tensors["states"], [int(position) for position in tensors["positions"]]
