"""An exchange as tokens: what the language model reads, what it learns to say, and from where on its anchors count."""

from dataclasses import dataclass

from tokenizers import Tokenizer

from agvas_core.contract.prompts import ANCHORS
from agvas_core.data.mixture.example import Example
from agvas_core.model.build import chat_format, named_anchors, visual_tokens
from agvas_core.model.config import ModelConfig
from agvas_core.model.losses import IGNORED_TARGET

__all__ = ["Encoded", "encode"]


@dataclass(frozen=True)
class Encoded:
    """One row of a batch.

    ``labels``: as long as ``ids``; answers and their ends, ``IGNORED_TARGET`` elsewhere. ``answer_start``: where the answer with the
    anchors begins, the end of the row where there is none. ``anchored``: whether the anchors are in the row.
    """

    ids: list[int]
    labels: list[int]
    answer_start: int
    anchored: bool


def encode(example: Example, tokenizer: Tokenizer, config: ModelConfig, max_text_tokens: int) -> Encoded:
    """The whole conversation of ``example``; the image stands before its first instruction.

    Prompt and answer are tokenized apart, so that no token spans the start of an answer. What is longer than ``max_text_tokens`` loses
    turns from its end, though not the one that carries the anchors, and is then cut.
    """
    chat, named = chat_format(config.lmm), named_anchors(config)
    visual = [config.lmm.image_token_id] * visual_tokens(config)
    pieces: list[tuple[list[int], list[int], bool]] = []  # prompt, answer, anchors in it
    for number, turn in enumerate(example.turns):
        if number == 0:
            before, after = chat.prompt(turn.instruction)
            prompt = tokenizer.encode(before).ids + visual + tokenizer.encode(after).ids
        else:
            prompt = tokenizer.encode(chat.follow_up(turn.instruction)).ids
        answer = tokenizer.encode(turn.answer.replace(ANCHORS, named) + chat.after_answer).ids
        pieces.append((prompt, answer, example.mask is not None and ANCHORS in turn.answer))
    limit = max_text_tokens + len(visual)
    while len(pieces) > 1 and not pieces[-1][2] and sum(len(prompt) + len(answer) for prompt, answer, _ in pieces) > limit:
        pieces.pop()
    ids: list[int] = []
    labels: list[int] = []
    start: int | None = None
    end = 0
    for prompt, answer, anchored in pieces:
        ids += prompt
        labels += [IGNORED_TARGET] * len(prompt)
        if anchored:
            start, end = len(ids), len(ids) + len(answer)
        ids += answer
        labels += answer
    whole = start is not None and end <= limit
    return Encoded(ids[:limit], labels[:limit], start if whole and start is not None else min(len(ids), limit), whole)
