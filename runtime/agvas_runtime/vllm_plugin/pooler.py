"""Which states leave vLLM in direct mode: those that were asked for, and no others."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.layers.pooler.common import PoolingParamsUpdate

__all__ = ["ROWS", "AnchorPooler"]

ROWS = "agvas_rows"
"""Key of ``PoolingParams.extra_kwargs``: positions within the prompt, ascending."""


class AnchorPooler(Pooler):
    """Rows of the post-norm states, float32, in the order of the prompt; safe where the prompt is prefilled in chunks.

    Rows are those that the request names; where it names none, those of the anchor tokens.
    """

    def __init__(self, anchor_ids: Sequence[int]) -> None:
        super().__init__()
        self.anchor_ids = torch.tensor(sorted(set(anchor_ids)))

    def get_supported_tasks(self) -> set[str]:
        return {"token_embed"}

    def get_pooling_updates(self, task: str) -> PoolingParamsUpdate:
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> list[Tensor | None]:
        """States [tokens, D] of the chunks of all requests -> rows of each request that is finished."""
        cursor = pooling_metadata.get_pooling_cursor()
        lengths: list[int] = cursor.num_scheduled_tokens_cpu.tolist()
        requests = zip(
            torch.split(hidden_states, lengths),
            lengths,
            cursor.seq_lens_cpu.tolist(),
            pooling_metadata.get_prompt_token_ids_cpu(),
            pooling_metadata.pooling_params,
            pooling_metadata.pooling_states,
            cursor.get_finished_mask(),
            strict=True,
        )
        pooled: list[Tensor | None] = []
        for chunk, length, end, ids, params, state, finished in requests:
            asked = (params.extra_kwargs or {}).get(ROWS)
            rows = torch.isin(ids, self.anchor_ids).nonzero()[:, 0] if asked is None else torch.tensor(asked)
            here = rows[(rows >= end - length) & (rows < end)] - (end - length)
            # An index copies, so what is kept does not hold the whole chunk.
            state.hidden_states_cache.append(chunk[here.to(chunk.device)].float())  # [rows here, D]
            pooled.append(torch.cat(state.hidden_states_cache) if finished else None)
            if finished:
                state.clean()
        return pooled
