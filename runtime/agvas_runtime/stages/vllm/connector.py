"""Copies hidden states out of vLLM when words are generated: those that were asked for and those of generated anchors, through memory-backed files.

vLLM's ``extract_hidden_states`` keeps states in a cache beside keys and values, and its example connector writes all of them. This one
writes a handful of rows, and needs no CUDA stream to do so.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
    ExampleHiddenStatesConnector,
    PendingSave,
)

__all__ = ["ROWS", "AnchorStatesConnector"]

ROWS = "agvas_rows"
"""Key of ``kv_transfer_params``: positions within the prompt, ascending."""


@dataclass
class PendingRows(PendingSave):
    """A request that has finished, and which of its rows are written."""

    rows: list[int]


class _Done:
    """Stands for the CUDA event that vLLM asks whether the copy has ended: it has."""

    def query(self) -> bool:
        return True


class AnchorStatesConnector(ExampleHiddenStatesConnector):
    """Writes ``states`` [rows, D] float32 and ``positions`` [rows] for each request."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._anchor_ids = set(vllm_config.model_config.hf_config.anchor_token_ids)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """On the scheduler's side: which rows."""
        keep, told = super().request_finished(request, block_ids)
        pending = self._pending_saves.get(request.request_id)
        if pending is not None:
            prompt = request.num_prompt_tokens
            said = list(request.all_token_ids)[prompt:-1]  # the last was said and never read, so it has no state
            rows = [int(row) for row in (request.kv_transfer_params or {}).get(ROWS, ())]
            rows += [prompt + at for at, id in enumerate(said) if id in self._anchor_ids]
            self._pending_saves[request.request_id] = PendingRows(
                pending.req_id, pending.filename, torch.tensor([]), pending.block_ids, rows
            )
        return keep, told

    def _submit_async_write(self, pending: PendingSave) -> None:
        """On the worker's side: from the cache into the file."""
        if not self._is_tp_rank_zero:
            return
        assert isinstance(pending, PendingRows), "request_finished makes them"
        rows = torch.tensor(pending.rows, dtype=torch.long)
        blocks = torch.tensor(pending.block_ids, dtype=torch.long)
        cache = self._kv_cache
        assert cache is not None, "vLLM registers the cache before the first request"
        where = blocks[rows // self._block_size].to(cache.device), (rows % self._block_size).to(cache.device)
        states = cache[where[0], :, where[1]][:, 0].float().cpu()  # [rows, D]; one layer is kept, the last
        path = Path(pending.filename)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"states": states.contiguous(), "positions": rows}, path)
        # The reader waits for this lock, which was taken when the request was scheduled.
        lock = self._lock_fds.pop(pending.req_id, None)
        if lock is not None:
            os.close(lock)
        self._req_copy_events[pending.req_id] = _Done()
