"""Greedy text, and the mask that the generated anchors stand for (paper 3.1, B.2).

Direct mode does not come here: its answer is known, so one prefill over prompt and answer gives the anchors' states. The
masks are the same wherever greedy generation says that sentence.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from agvas_core.contract.errors import UsageError
from agvas_core.model.agvas import AgVas, Vision
from agvas_core.model.lmm import find_anchors

__all__ = ["GeneratedMask", "greedy_generate", "segment_by_generation"]


class GeneratedMask(NamedTuple):
    """``answer``: the generated ids, the end token included. ``mask_logits`` [1, 3, H', W']. ``found``: the answer has anchors."""

    answer: list[int]
    mask_logits: Tensor
    found: bool


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


@torch.no_grad()
def segment_by_generation(
    model: AgVas, vision: Vision, input_ids: Tensor, end_token_id: int, max_new_tokens: int = 256
) -> GeneratedMask:
    """Explicit mode: generates an answer, then decodes the mask of its anchors.

    The anchors' states come from one pass over prompt and answer, as in training and direct mode. An answer without anchors
    has an empty mask (``lmm.find_anchors`` has the rule). Arguments as in :func:`greedy_generate`.
    """
    answer = greedy_generate(model, vision, input_ids, end_token_id, max_new_tokens)
    ids = torch.cat([input_ids, input_ids.new_tensor([answer])], 1)  # [1, L + answer]
    hidden, _ = model.lmm(model.lmm.embed(ids, vision.f_s, vision.f_align), with_logits=False)
    positions, found = find_anchors(ids, model.lmm.anchor_ids, input_ids.new_tensor([input_ids.shape[1]]))
    mask_logits = model.decode(model.lmm.anchor_states(hidden, positions), vision.pixel, found)
    return GeneratedMask(answer, mask_logits, bool(found))
