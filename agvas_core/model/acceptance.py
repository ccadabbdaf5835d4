"""Does the language model answer or refuse (paper 3.1, rejection)? Read from one prefill, without decoding.

Direct mode appends the fixed answer, so a model that would rather refuse is not heard. Its opinion stands at the position that predicts
the answer's first token: the probability of that token against the refusal's.
"""

import torch
from torch import Tensor

__all__ = ["acceptance"]


def acceptance(text_logits: Tensor, answer_start: Tensor, accept_id: int, refuse_id: int) -> Tensor:
    """P(answers) of the two openings, float [B] in 0..1.

    Args:
        text_logits: [B, L, V].
        answer_start: int64 [B], the position of the answer's first token, 1 at least.
        accept_id: the first token of the fixed answer.
        refuse_id: the first token of the refusal.
    """
    rows = torch.arange(len(text_logits), device=text_logits.device)
    said = text_logits[rows, answer_start - 1].float()  # [B, V]
    return (said[:, accept_id] - said[:, refuse_id]).sigmoid()
