"""Direct mode's answer, read off one prefill."""

import numpy as np
from numpy.typing import NDArray

from agvas_runtime.stages.prompt_tokenizer import PromptTokenizer
from agvas_runtime.stages.protocol import Reply

__all__ = ["read_prefill"]

Float = NDArray[np.float32]


def read_prefill(tokenizer: PromptTokenizer, anchor_states: Float, text_logits: Float) -> Reply:
    """States [B, 3, D] and logits [B, 1, V] of the answer's first word to a reply.

    Its own refusal is read without decoding: how likely the first word of the answer is against that of the refusal.
    """
    logits = text_logits[:, 0].astype(np.float64)  # [B, V]
    refuses = logits[:, tokenizer.first_of_refusal] - logits[:, tokenizer.first_of_answer]
    accept = 1.0 / (1.0 + np.exp(np.clip(refuses, -80.0, 80.0)))
    return Reply(anchor_states, accept.astype(np.float32), np.ones(len(anchor_states), bool))
