"""Explicit mode in torch, the reference of the tests: an answer by greedy decoding, then the mask of its anchors."""

from typing import NamedTuple

import torch
from torch import Tensor

from agvas_core.model.agvas import AgVas, Vision
from agvas_core.model.generation import greedy_generate
from agvas_core.model.lmm import find_anchors


class GeneratedMask(NamedTuple):
    """``answer``: the generated ids, the end token included. ``mask_logits`` [1, 3, H', W']. ``found``: the answer has anchors."""

    answer: list[int]
    mask_logits: Tensor
    found: bool


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
