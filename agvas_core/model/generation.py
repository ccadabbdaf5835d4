"""Greedy text (paper 3.1, B.2).

Direct mode does not come here: its answer is known, so one prefill over prompt and answer gives the anchors' states.
"""

import torch
from torch import Tensor
from transformers import DynamicCache

from agvas_core.contract.errors import UsageError
from agvas_core.model.agvas import AgVas, Vision

__all__ = ["greedy_generate"]


@torch.no_grad()
def greedy_generate(model: AgVas, vision: Vision, input_ids: Tensor, end_token_id: int, max_new_tokens: int) -> list[int]:
    """The most likely token again and again, until the end token (which is returned too) or ``max_new_tokens``.

    Args:
        vision: of one image.
        input_ids: int64 [1, L], the prompt up to where the answer starts, without padding.

    Raises:
        UsageError: more than one row.
    """
    if len(input_ids) != 1:
        raise UsageError(f"input_ids has {len(input_ids)} rows; generation takes 1: call it once for each image")
    cache, answer = DynamicCache(), list[int]()
    embeddings = model.lmm.embed(input_ids, vision.f_s, vision.f_align)  # [1, L, D]
    while len(answer) < max_new_tokens:
        hidden, _ = model.lmm(embeddings, cache=cache, with_logits=False)
        scores = model.lmm.head(hidden[0, -1])  # [V]
        scores[model.lmm.image_token_id] = -torch.inf  # stands for an image; it is never said
        answer.append(int(scores.argmax()))
        if answer[-1] == end_token_id:
            break
        embeddings = model.lmm.embed_text(input_ids.new_tensor([answer[-1:]]))  # [1, 1, D]
    return answer
