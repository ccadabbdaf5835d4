"""A tiny byte-level BPE tokenizer for models that are trained from scratch.

Learned from the words the dialogues use; any other text falls back to bytes. Models that start from a published LMM use that
model's own tokenizer instead.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from agvas_core.contract.prompts import ANCHOR_TOKENS, ANCHORS, IMAGE_TOKEN, INSTRUCTIONS, Mode
from agvas_core.data.synthetic.dialogue import TASKS, make_dialogues
from agvas_core.data.synthetic.synthesis import synthesize

__all__ = ["SPECIAL_TOKENS", "train_tokenizer"]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN, *ANCHOR_TOKENS)  # ids 0, 1, 2, ...


def corpus(samples: int) -> Iterator[str]:
    """Dialogues about small synthetic images, and the fixed sentences."""
    rng = np.random.default_rng(0)
    yield from ("user\nassistant\n", INSTRUCTIONS[Mode.DESCRIBE])
    for index in range(samples):
        sample = synthesize(0, index, (96, 96))
        for dialogue in make_dialogues(sample, dict.fromkeys(TASKS, 1.0), rng):
            yield dialogue.instruction
            yield dialogue.answer.replace(ANCHORS, "")  # tokens of their own; no word must be learned from their letters


@cache
def train_tokenizer(vocab_size: int, samples: int = 600) -> Tokenizer:
    """A tokenizer of at most ``vocab_size`` entries, always the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(samples), trainer)
    return tokenizer
