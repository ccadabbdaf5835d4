"""Training batches: examples of the mixture as the model takes them. Each is a function of its number alone."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from agvas_core.contract.preprocess import make_view, view_size
from agvas_core.contract.prompts import ANCHORS, Anchor
from agvas_core.data.mixture.example import Example, Skip
from agvas_core.data.mixture.mixture import Mixture
from agvas_core.model.build import chat_format, named_anchors, visual_tokens
from agvas_core.model.config import ModelConfig
from agvas_core.model.losses import IGNORED_TARGET
from agvas_core.train.fit.config import FitConfig
from agvas_core.train.fit.schedule import Shares

__all__ = ["Encoded", "FitBatch", "Parts", "collate", "encode"]


# Encoding: an exchange as tokens: what the language model reads, what it learns to say, and from where on its anchors count.


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


_MIRROR_STREAM = 3  # of the seed, beside those of the mixture and of the synthetic images


@dataclass
class FitBatch:
    """B examples.

    ``semantic`` uint8 [B, Hs, Ws, 3], ``pixel`` uint8 [B, H, W, 3]; ``mask`` bool [B, H, W], what is asked for; ``valid`` bool [B, H, W], where
    the view shows the image; ``supervise`` bool [B, 3], the anchors whose masks are learned from; ids, attention, labels [B, L];
    ``answer_start`` [B]. ``names``: set and name of each, for messages. ``skipped``: what could not be used on the way.
    """

    semantic: Tensor
    pixel: Tensor
    mask: Tensor
    valid: Tensor
    supervise: Tensor
    input_ids: Tensor
    attention: Tensor
    labels: Tensor
    answer_start: Tensor
    names: tuple[str, ...]
    skipped: tuple[Skip, ...]

    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        return {field.name: value for field in fields(self) if isinstance(value := getattr(self, field.name), Tensor)}

    def to(self, device: torch.device) -> "FitBatch":
        """The same on another device."""
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    def __len__(self) -> int:
        return len(self.names)


class Parts(Dataset[FitBatch]):
    """Item ``number`` is the part of that number of one process (``Shares.part``).

    Args:
        overfit: take the first so many examples again and again; None for the whole mixture.
    """

    def __init__(
        self,
        mixture: Mixture,
        shares: Shares,
        fit: FitConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        overfit: int | None = None,
    ) -> None:
        self.mixture, self.shares, self.fit, self.model, self.tokenizer = mixture, shares, fit, model, tokenizer
        self.overfit = overfit

    def __len__(self) -> int:
        return self.fit.steps * self.shares.accumulation

    def __getitem__(self, number: int) -> FitBatch:
        cv2.setNumThreads(1)
        examples = []
        for index in self.shares.part(number):
            example = self.mixture[index if self.overfit is None else index % self.overfit]
            examples.append(self._mirrored(example, index) if self.fit.flip and self.overfit is None else example)
        return collate(examples, self.model, self.tokenizer, self.fit.max_text_tokens)

    def _mirrored(self, example: Example, index: int) -> Example:
        if np.random.default_rng([self.fit.seed, _MIRROR_STREAM, index]).random() < 0.5:
            return example
        mask = None if example.mask is None else np.ascontiguousarray(example.mask[:, ::-1])
        return replace(example, image=np.ascontiguousarray(example.image[:, ::-1]), mask=mask)


def collate(examples: Sequence[Example], model: ModelConfig, tokenizer: Tokenizer, max_text_tokens: int) -> FitBatch:
    """Examples as one batch, right-padded.

    A pixel view that keeps the aspect (``area``) has a size of its own for each image; in one batch all take that of the first. With
    ``micro_batch = 1`` nothing is squeezed.
    """
    shared = view_size(model.pixel_view, *examples[0].image.shape[:2]) if model.pixel_view.fit == "area" else None
    views = [make_view(model.pixel_view, example.image, shared) for example in examples]
    rows = [encode(example, tokenizer, model, max_text_tokens) for example in examples]
    length = max(len(row.ids) for row in rows)
    input_ids = torch.full((len(rows), length), model.lmm.pad_token_id)
    attention = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED_TARGET)
    masks, valids = [], []
    supervise = torch.zeros(len(rows), len(Anchor), dtype=torch.bool)
    for number, (example, view, row) in enumerate(zip(examples, views, rows, strict=True)):
        input_ids[number, : len(row.ids)] = torch.tensor(row.ids)
        attention[number, : len(row.ids)] = 1
        labels[number, : len(row.labels)] = torch.tensor(row.labels)
        shape = view.pixels.shape[:2]
        mask, valid = np.zeros(shape, bool), np.zeros(shape, bool)
        valid[: view.content[0], : view.content[1]] = True
        if example.mask is not None:
            mask[: view.content[0], : view.content[1]] = _resized(example.mask, view.content)
        masks.append(mask)
        valids.append(valid)
        for anchor in example.supervised:
            supervise[number, anchor] = row.anchored and anchor.name in model.anchors
    return FitBatch(
        semantic=torch.from_numpy(np.stack([make_view(model.semantic_view, example.image).pixels for example in examples])),
        pixel=torch.from_numpy(np.stack([view.pixels for view in views])),
        mask=torch.from_numpy(np.stack(masks)),
        valid=torch.from_numpy(np.stack(valids)),
        supervise=supervise,
        input_ids=input_ids,
        attention=attention,
        labels=labels,
        answer_start=torch.tensor([row.answer_start for row in rows]),
        names=tuple(f"{example.dataset}: {example.name} (example {example.index}, {example.task})" for example in examples),
        skipped=tuple(skip for example in examples for skip in example.skipped),
    )


def _resized(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """bool [H, W] at another size. A shrunk pixel belongs to the mask that covers more than 40 % of it; at a half, thin lines would break."""
    shrinks = size[0] * size[1] < mask.size
    share = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(share > 0.4)
