"""From a sample to exchanges about it: instruction, answer, and the mask that the answer's anchors stand for (paper 3.1, B.1)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from agvas_core.contract.prompts import (
    ANCHOR_TOKENS,
    ANCHORS,
    DEFAULT_INSTRUCTION,
    FIXED_ANSWER,
    IMAGE_TOKEN,
    INSTRUCTIONS,
    NO_ANOMALY_ANSWER,
    Mode,
    with_normal_look,
)
from agvas_core.data.synthetic.captions import (
    absent_kind,
    describe,
    instruction_for,
    named_in,
    normal_look,
    referring,
    referring_pair,
)
from agvas_core.data.synthetic.raster import Mask, chance
from agvas_core.data.synthetic.synthesis import Sample, synthesize

__all__ = ["SPECIAL_TOKENS", "TASKS", "Dialogue", "Task", "make_dialogues", "train_tokenizer"]


Task = Literal["describe", "describe-plus", "explain", "referring", "absent", "refuse"]
TASKS: tuple[Task, ...] = ("describe", "describe-plus", "explain", "referring", "absent", "refuse")


@dataclass(frozen=True)
class Dialogue:
    """One exchange. ``mask`` is bool [H, W]; None where the answer has no anchors, and so no mask to learn from.

    ``refusal``: what should have been answered instead of ``answer``. Direct mode reads the mask behind the fixed answer even
    where the model would refuse: such a dialogue teaches the empty mask, and the refusal by its first word.
    ``asked``: what the instruction names, there or not, by attribute (``captions.named_in``).
    """

    instruction: str
    answer: str
    mask: Mask | None
    refusal: str | None = None
    asked: Mapping[str, str] = field(default_factory=dict)


def make_dialogues(sample: Sample, shares: Mapping[Task, float], rng: np.random.Generator) -> list[Dialogue]:
    """Exchanges about one image: always the direct one, and each task of ``shares`` with that chance.

    describe: words first, then the mask (3.1, explicit mode). describe-plus: after a sentence on the normal look (4.3). explain: the mask
    first, then why. referring: only the defects of a kind, place, size or tone, and where two can be told apart both of them. absent: a kind
    that is not there. refuse: the whole sentence for a good part.
    """
    good = not sample.defects
    asked = [task for task in TASKS if chance(rng, shares.get(task, 0.0))]
    found = [Dialogue(DEFAULT_INSTRUCTION, FIXED_ANSWER, sample.mask, NO_ANOMALY_ANSWER if good else None)]
    for task in asked:
        if task == "describe":
            found.append(_described(sample, INSTRUCTIONS[Mode.DESCRIBE]))
        elif task == "describe-plus":
            found.append(_described(sample, with_normal_look(normal_look(sample), INSTRUCTIONS[Mode.DESCRIBE_PLUS])))
        elif task == "explain":
            found.append(_explained(sample))
        elif task == "refuse" and good:
            found.append(Dialogue(DEFAULT_INSTRUCTION, NO_ANOMALY_ANSWER, None))
        elif task == "absent" and (kind := absent_kind(sample, rng)) is not None:
            instruction, refusal = instruction_for(rng, kind), f"There is no {kind} in this image."
            named = named_in(instruction)
            if chance(rng, 0.5):
                found.append(Dialogue(instruction, refusal, None, asked=named))
            else:
                found.append(Dialogue(instruction, FIXED_ANSWER, np.zeros_like(sample.mask), refusal, named))
        elif task == "referring" and not good:
            pair = referring_pair(sample, rng)
            references = pair if pair is not None else (referring(sample, rng),)
            found += [Dialogue(one[0], FIXED_ANSWER, one[1], asked=named_in(one[0])) for one in references if one is not None]
    return found


def _described(sample: Sample, instruction: str) -> Dialogue:
    if not sample.defects:
        return Dialogue(instruction, NO_ANOMALY_ANSWER, None)
    return Dialogue(instruction, f"There is {describe(sample.defects)}, as indicated by {ANCHORS}.", sample.mask)


def _explained(sample: Sample) -> Dialogue:
    if not sample.defects:
        return Dialogue(INSTRUCTIONS[Mode.EXPLAIN], NO_ANOMALY_ANSWER, None)
    reason = f"It shows {describe(sample.defects)}, unlike the rest of the surface."
    return Dialogue(INSTRUCTIONS[Mode.EXPLAIN], f"{FIXED_ANSWER} {reason}", sample.mask)


# A tiny byte-level BPE tokenizer for models that are trained from scratch.
#
# Learned from the words the dialogues use; any other text falls back to bytes. Models that start from a published LMM use that
# model's own tokenizer instead.


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
