"""Training batches, one type for generated images and for data sets. Each is a function of the run's numbers alone: any process and any
worker makes the same one, and a resumed run sees the same data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from agvas_core.contract.preprocess import make_view, view_size
from agvas_core.contract.prompts import ANCHORS, Anchor
from agvas_core.data.datasets.record import Turn
from agvas_core.data.mixture.example import Example, Skip
from agvas_core.data.mixture.mixture import Mixture
from agvas_core.data.synthetic.captions import GROUPS, group_of
from agvas_core.data.synthetic.dialogue import Dialogue, make_dialogues
from agvas_core.data.synthetic.sample import PLACES, SIZES, TONES, Sample, cropped
from agvas_core.data.synthetic.synthesis import synthesize
from agvas_core.model.build import chat_format, named_anchors, visual_tokens
from agvas_core.model.config import ModelConfig
from agvas_core.model.losses import IGNORED_TARGET
from agvas_core.train.config import Cut, Phase, TrainConfig
from agvas_core.train.schedule import Plan

__all__ = [
    "NAMED",
    "Batch",
    "Encoded",
    "Examples",
    "GeneratedExamples",
    "MixtureExamples",
    "Parts",
    "collate",
    "encode",
    "encode_dialogues",
]

NAMED: Final[dict[str, tuple[str, ...]]] = {"kind": tuple(GROUPS), "place": PLACES, "size": SIZES, "tone": TONES}
"""What an instruction can name, by attribute."""
_CUT_STREAM, _MIRROR_STREAM, _IMAGE_STREAM = 1, 3, 4  # of the seed, beside those of the generator and of the mixture
_NO_LIMIT = 1 << 30
_LEAST_SHARE = 0.4  # a shrunk pixel belongs to the mask that covers more of it; at a half, thin lines would break


@dataclass
class Batch:
    """B images and R exchanges about them, at least one each.

    Images: ``semantic`` uint8 [B, Hs, Ws, 3], ``pixel`` uint8 [B, H, W, 3]; ``anomalous`` int8 [B], 1, 0, or -1 where unknown.
    Exchanges: ``image_of`` [R], which image it is about; ``mask`` bool [R, H, W], what is asked for; ``supervise`` bool [R, 3], the
    anchors whose masks are learned from; ids, attention and labels [R, L]; ``answer_start`` [R].
    ``valid`` bool [R, H, W]: where the view shows the image; None for everywhere.
    Of generated images, None elsewhere: ``kinds`` uint8 [B, H, W], 0 where normal, else 1 + the index of the defect's group in
    ``captions.GROUPS``; ``tones`` likewise over ``sample.TONES``; ``asked`` [R, 4], which of the ``NAMED`` kinds, places, sizes and tones
    the instruction names, ``IGNORED_TARGET`` where it names none.
    ``names``: of each image, for messages. ``skipped``: what could not be used on the way.
    """

    semantic: Tensor
    pixel: Tensor
    anomalous: Tensor
    image_of: Tensor
    mask: Tensor
    supervise: Tensor
    input_ids: Tensor
    attention: Tensor
    labels: Tensor
    answer_start: Tensor
    names: tuple[str, ...]
    valid: Tensor | None = None
    kinds: Tensor | None = None
    tones: Tensor | None = None
    asked: Tensor | None = None
    skipped: tuple[Skip, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        return {field.name: value for field in fields(self) if isinstance(value := getattr(self, field.name), Tensor)}

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    @property
    def unasked(self) -> Tensor | None:
        """Anomalous pixels that the instruction does not mean, bool [R, H, W]; None where they are unknown."""
        return None if self.kinds is None else (self.kinds[self.image_of] > 0) & ~self.mask

    def __len__(self) -> int:
        return len(self.names)


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


def encode(
    turns: Sequence[Turn], tokenizer: Tokenizer, config: ModelConfig, max_text_tokens: int, *, masked: bool = True
) -> Encoded:
    """The whole conversation; the image stands before its first instruction.

    Prompt and answer are tokenized apart, so that no token spans the start of an answer. What is longer than ``max_text_tokens`` loses
    turns from its end, though not the one that carries the anchors, and is then cut.

    Args:
        masked: whether there is a mask that the anchors stand for.
    """
    chat, named = chat_format(config.lmm), named_anchors(config)
    visual = [config.lmm.image_token_id] * visual_tokens(config)
    pieces: list[tuple[list[int], list[int], bool]] = []  # prompt, answer, anchors in it
    for number, turn in enumerate(turns):
        if number == 0:
            before, after = chat.prompt(turn.instruction)
            prompt = tokenizer.encode(before).ids + visual + tokenizer.encode(after).ids
        else:
            prompt = tokenizer.encode(chat.follow_up(turn.instruction)).ids
        answer = tokenizer.encode(turn.answer.replace(ANCHORS, named) + chat.after_answer).ids
        pieces.append((prompt, answer, masked and ANCHORS in turn.answer))
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


def encode_dialogues(
    dialogues: list[Dialogue], tokenizer: Tokenizer, config: ModelConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Right-padded ids, attention, labels [R, L] and the answers' starts [R]. Only the answer (and its end) has labels; where another one
    should have been given (``Dialogue.refusal``), only that one's first token has.

    The runtime tokenizes prompt and answer in one; export compares the two.
    """
    rows = []
    for dialogue in dialogues:
        turn = Turn(dialogue.instruction, dialogue.answer)
        row = encode([turn], tokenizer, config, _NO_LIMIT)
        start = next(at for at, label in enumerate(row.labels) if label != IGNORED_TARGET)
        labels = row.labels
        if dialogue.refusal is not None:
            labels = [IGNORED_TARGET] * len(row.ids)
            labels[start] = tokenizer.encode(dialogue.refusal).ids[0]
        rows.append(replace(row, labels=labels, answer_start=start))
    return padded(rows, config)


def padded(rows: Sequence[Encoded], config: ModelConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Right-padded ids, attention, labels [R, L] and the answers' starts [R]."""
    length = max(len(row.ids) for row in rows)
    input_ids = torch.full((len(rows), length), config.lmm.pad_token_id)
    attention = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED_TARGET)
    for number, row in enumerate(rows):
        input_ids[number, : len(row.ids)] = torch.tensor(row.ids)
        attention[number, : len(row.ids)] = 1
        labels[number, : len(row.labels)] = torch.tensor(row.labels)
    return input_ids, attention, labels, torch.tensor([row.answer_start for row in rows])


# The two datasets, and the parts of a run over either.


class Examples(Protocol):
    """What a run learns from."""

    def batch(self, phase: Phase, step: int, images: Sequence[int]) -> Batch:
        """The images of these numbers, as parts of this step; a function of its arguments."""
        ...


class Parts(Dataset[Batch]):
    """Item ``number`` is the part of that number of one process (``Plan.part``).

    Args:
        overfit: take the first so many images again and again; None for all.
    """

    def __init__(self, examples: Examples, plan: Plan, overfit: int | None = None) -> None:
        self.examples, self.plan, self.overfit = examples, plan, overfit

    def __len__(self) -> int:
        return self.plan.parts

    def __getitem__(self, number: int) -> Batch:
        cv2.setNumThreads(1)
        span, step, images = self.plan.part(number)
        if self.overfit is not None:
            return self.examples.batch(span.phase, 0, [image % self.overfit for image in images])
        return self.examples.batch(span.phase, step, images)


@dataclass(frozen=True)
class MixtureExamples:
    """The data sets of a mixture.

    ``mirrored``: half of the images are mirrored left to right.
    """

    mixture: Mixture
    train: TrainConfig
    model: ModelConfig
    tokenizer: Tokenizer
    mirrored: bool = False

    def batch(self, phase: Phase, step: int, images: Sequence[int]) -> Batch:
        """As ``Examples.batch``."""
        examples = [self._example(number) for number in images]
        return collate(examples, self.model, self.tokenizer, self.train.max_text_tokens)

    def _example(self, number: int) -> Example:
        example = self.mixture[number]
        if not self.mirrored or np.random.default_rng([self.train.seed, _MIRROR_STREAM, number]).random() < 0.5:
            return example
        mask = None if example.mask is None else np.ascontiguousarray(example.mask[:, ::-1])
        return replace(example, image=np.ascontiguousarray(example.image[:, ::-1]), mask=mask)


def collate(examples: Sequence[Example], model: ModelConfig, tokenizer: Tokenizer, max_text_tokens: int) -> Batch:
    """Examples of a mixture as one batch.

    A pixel view that keeps the aspect (``area``) has a size of its own for each image; in one batch all take that of the first. With
    ``micro_batch = 1`` nothing is squeezed.
    """
    shared = view_size(model.pixel_view, *examples[0].image.shape[:2]) if model.pixel_view.fit == "area" else None
    views = [make_view(model.pixel_view, example.image, shared) for example in examples]
    rows = [encode(example.turns, tokenizer, model, max_text_tokens, masked=example.mask is not None) for example in examples]
    masks, valids = [], []
    supervise = torch.zeros(len(rows), len(Anchor), dtype=torch.bool)
    for number, (example, view, row) in enumerate(zip(examples, views, rows, strict=True)):
        shape = view.pixels.shape[:2]
        mask, valid = np.zeros(shape, bool), np.zeros(shape, bool)
        valid[: view.content[0], : view.content[1]] = True
        if example.mask is not None:
            mask[: view.content[0], : view.content[1]] = _resized(example.mask, view.content)
        masks.append(mask)
        valids.append(valid)
        for anchor in example.supervised:
            supervise[number, anchor] = row.anchored and anchor.name in model.anchors
    input_ids, attention, labels, answer_start = padded(rows, model)
    return Batch(
        semantic=torch.from_numpy(np.stack([make_view(model.semantic_view, example.image).pixels for example in examples])),
        pixel=torch.from_numpy(np.stack([view.pixels for view in views])),
        anomalous=torch.tensor(
            [-1 if example.anomalous is None else int(example.anomalous) for example in examples], dtype=torch.int8
        ),
        image_of=torch.arange(len(examples)),
        mask=torch.from_numpy(np.stack(masks)),
        valid=torch.from_numpy(np.stack(valids)),
        supervise=supervise,
        input_ids=input_ids,
        attention=attention,
        labels=labels,
        answer_start=answer_start,
        names=tuple(f"{example.dataset}: {example.name} (example {example.index}, {example.task})" for example in examples),
        skipped=tuple(skip for example in examples for skip in example.skipped),
    )


def _resized(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """bool [H, W] at another size."""
    shrinks = size[0] * size[1] < mask.size
    share = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(share > _LEAST_SHARE)


@dataclass(frozen=True)
class GeneratedExamples:
    """Images of the generator with exchanges about them. All images of a step have the size of one cut of the phase."""

    train: TrainConfig
    model: ModelConfig
    tokenizer: Tokenizer

    def batch(self, phase: Phase, step: int, images: Sequence[int]) -> Batch:
        """As ``Examples.batch``."""
        weights = np.array([cut.weight for cut in phase.cuts])
        chosen = np.random.default_rng([self.train.seed, _CUT_STREAM, step]).choice(len(weights), p=weights / weights.sum())
        cut = phase.cuts[chosen]
        tasks = self.train.tasks if phase.tasks is None else phase.tasks
        samples, exchanges, pictures = [], [], []
        for number in images:
            rng = np.random.default_rng([self.train.seed, _IMAGE_STREAM, number])
            sample = cut_out(synthesize(self.train.seed, number, cut.canvas, self.train.synthesis), cut, rng)
            samples.append(sample)
            exchanges.append(make_dialogues(sample, tasks, rng))
            pictures.append(recoloured(sample.image, rng))
        dialogues = [dialogue for each in exchanges for dialogue in each]
        nothing = np.zeros(cut.size, np.bool_)
        input_ids, attention, labels, answer_start = encode_dialogues(dialogues, self.tokenizer, self.model)
        has_mask = torch.tensor([dialogue.mask is not None for dialogue in dialogues])
        return Batch(
            semantic=torch.from_numpy(np.stack([make_view(self.model.semantic_view, image).pixels for image in pictures])),
            pixel=torch.from_numpy(np.stack(pictures)),
            anomalous=torch.tensor([bool(sample.labels.any()) for sample in samples], dtype=torch.int8),
            image_of=torch.tensor([image for image, each in enumerate(exchanges) for _ in each]),
            mask=torch.from_numpy(np.stack([nothing if dialogue.mask is None else dialogue.mask for dialogue in dialogues])),
            supervise=has_mask[:, None].repeat(1, len(Anchor)),
            input_ids=input_ids,
            attention=attention,
            labels=labels,
            answer_start=answer_start,
            names=tuple(f"generated image {number} (seed {self.train.seed})" for number in images),
            kinds=torch.from_numpy(np.stack([painted(sample, kind_numbers(sample)) for sample in samples])),
            tones=torch.from_numpy(np.stack([painted(sample, tone_numbers(sample)) for sample in samples])),
            asked=torch.tensor([named_numbers(each) for each in dialogues]),
        )


def cut_out(sample: Sample, cut: Cut, rng: np.random.Generator) -> Sample:
    """The sample at the batch's size, with the words that are true of what is left."""
    height, width = cut.size
    if cut.how == "crop":
        top, left = (int(rng.integers(have - want + 1)) for have, want in zip(sample.labels.shape, cut.size, strict=True))
        return cropped(sample, slice(top, top + height), slice(left, left + width))
    image = np.asarray(cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    labels = np.zeros(cut.size, np.uint8)
    for label in range(1, int(sample.labels.max()) + 1):
        share = cv2.resize((sample.labels == label).astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        labels[share > _LEAST_SHARE] = label
    return cropped(Sample(image, labels, sample.defects, sample.scene, sample.family), slice(None), slice(None))


def named_numbers(dialogue: Dialogue) -> list[int]:
    """The number within ``NAMED`` of what the instruction names, for each attribute."""
    asked = dialogue.asked
    return [values.index(asked[name]) if name in asked else IGNORED_TARGET for name, values in NAMED.items()]


def kind_numbers(sample: Sample) -> dict[int, int]:
    """Label -> 1 + index of the defect's group."""
    return {defect.label: 1 + list(GROUPS).index(group_of(defect.kind)) for defect in sample.defects}


def tone_numbers(sample: Sample) -> dict[int, int]:
    """Label -> 1 + index of the defect's tone."""
    return {defect.label: 1 + TONES.index(defect.tone) for defect in sample.defects}


def painted(sample: Sample, numbers: dict[int, int]) -> NDArray[np.uint8]:
    """The label map with each label replaced by its number; 0 where it has none. [H, W]."""
    table = np.zeros(256, np.uint8)
    for label, number in numbers.items():
        table[label] = number
    return table[sample.labels]


def recoloured(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Contrast and brightness; no change that would make the words of a dialogue wrong (no inversion, no mirroring)."""
    gain, shift = rng.uniform(0.7, 1.3), rng.uniform(-20, 20)
    changed = (image.astype(np.float32) - 127.5) * gain + 127.5 + shift
    return np.asarray(changed.clip(0, 255), np.uint8)
