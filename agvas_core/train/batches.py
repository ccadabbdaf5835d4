"""Training batches, each a function of (seed, step) alone: any worker makes the same batch, and a resumed run sees the same data."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from agvas_core.contract.preprocess import make_view
from agvas_core.contract.prompts import ANCHORS
from agvas_core.data.synthetic.captions import GROUPS, group_of
from agvas_core.data.synthetic.dialogue import Dialogue, make_dialogues
from agvas_core.data.synthetic.sample import PLACES, SIZES, TONES, Sample, cropped
from agvas_core.data.synthetic.synthesis import synthesize
from agvas_core.model.build import chat_format, named_anchors, visual_tokens
from agvas_core.model.config import ModelConfig
from agvas_core.model.losses import IGNORED_TARGET
from agvas_core.train.config import Cut, TrainConfig

__all__ = ["NAMED", "Batch", "SyntheticBatches", "encode_dialogues"]

NAMED: dict[str, tuple[str, ...]] = {"kind": tuple(GROUPS), "place": PLACES, "size": SIZES, "tone": TONES}
"""What an instruction can name, by attribute."""


@dataclass
class Batch:
    """B images and R exchanges about them, at least one each.

    Images: ``semantic`` uint8 [B, Hs, Ws, 3], ``pixel`` uint8 [B, H, W, 3]; ``kinds`` uint8 [B, H, W], 0 where normal, else 1 + the index of
    the defect's group in ``captions.GROUPS``; ``tones`` likewise over ``sample.TONES``.
    Exchanges: ``image_of`` [R], which image it is about; ``mask`` bool [R, H, W], what is asked for; ``has_mask`` [R]: the answer has anchors;
    ``asked`` [R, 4], which of the ``NAMED`` kinds, places, sizes and tones the instruction names, ``IGNORED_TARGET`` where it names none;
    ids, attention and labels [R, L]; ``answer_start`` [R].
    """

    semantic: Tensor
    pixel: Tensor
    kinds: Tensor
    tones: Tensor
    image_of: Tensor
    mask: Tensor
    has_mask: Tensor
    asked: Tensor
    input_ids: Tensor
    attention: Tensor
    labels: Tensor
    answer_start: Tensor


def encode_dialogues(
    dialogues: list[Dialogue], tokenizer: Tokenizer, config: ModelConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Right-padded ids, attention, labels [R, L] and the answers' starts [R]. Only the answer (and its end) has labels; where another one
    should have been given (``Dialogue.refusal``), only that one's first token has.

    Prompt and answer are tokenized apart, so no token spans the start of the answer. The runtime tokenizes them in one;
    export compares the two.
    """
    chat, visual = chat_format(config.lmm), [config.lmm.image_token_id] * visual_tokens(config)
    rows: list[tuple[list[int], int, list[int]]] = []
    for dialogue in dialogues:
        before, after = chat.prompt(dialogue.instruction)
        prompt = tokenizer.encode(before).ids + visual + tokenizer.encode(after).ids
        said = dialogue.answer.replace(ANCHORS, named_anchors(config))
        answer = tokenizer.encode(said + chat.after_answer).ids
        taught = answer if dialogue.refusal is None else tokenizer.encode(dialogue.refusal).ids[:1]
        rows.append((prompt + answer, len(prompt), taught))
    length = max(len(ids) for ids, _, _ in rows)
    input_ids = torch.full((len(rows), length), config.lmm.pad_token_id)
    attention = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED_TARGET)
    for row, (ids, start, taught) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention[row, : len(ids)] = 1
        labels[row, start : start + len(taught)] = torch.tensor(taught)
    return input_ids, attention, labels, torch.tensor([start for _, start, _ in rows])


class SyntheticBatches(Dataset[Batch]):
    """Item ``step`` is the batch of that optimizer step."""

    def __init__(self, train: TrainConfig, model: ModelConfig, tokenizer: Tokenizer) -> None:
        self.train, self.model, self.tokenizer = train, model, tokenizer
        self.schedule = train.schedule()

    def __len__(self) -> int:
        return self.train.steps()

    def __getitem__(self, step: int) -> Batch:
        cv2.setNumThreads(1)
        phase = [phase for first, phase in self.schedule if first <= step][-1]
        rng = np.random.default_rng([self.train.seed, 1, step])
        weights = np.array([cut.weight for cut in phase.cuts])
        cut = phase.cuts[rng.choice(len(weights), p=weights / weights.sum())]
        # A batch has at most 1024 images (config.py), so no image comes twice.
        samples = [
            cut_out(synthesize(self.train.seed, step * 1024 + row, cut.canvas, self.train.synthesis), cut, rng)
            for row in range(phase.batch)
        ]
        tasks = self.train.tasks if phase.tasks is None else phase.tasks
        exchanges = [make_dialogues(sample, tasks, rng) for sample in samples]
        images = [recolour(sample.image, rng) for sample in samples]
        dialogues = [dialogue for each in exchanges for dialogue in each]
        nothing = np.zeros(cut.size, np.bool_)
        input_ids, attention, labels, answer_start = encode_dialogues(dialogues, self.tokenizer, self.model)
        return Batch(
            semantic=torch.from_numpy(np.stack([make_view(self.model.semantic_view, image).pixels for image in images])),
            pixel=torch.from_numpy(np.stack(images)),
            kinds=torch.from_numpy(np.stack([painted(sample, kind_numbers(sample)) for sample in samples])),
            tones=torch.from_numpy(np.stack([painted(sample, tone_numbers(sample)) for sample in samples])),
            image_of=torch.tensor([image for image, each in enumerate(exchanges) for _ in each]),
            mask=torch.from_numpy(np.stack([nothing if dialogue.mask is None else dialogue.mask for dialogue in dialogues])),
            has_mask=torch.tensor([dialogue.mask is not None for dialogue in dialogues]),
            asked=torch.tensor([named_numbers(each) for each in dialogues]),
            input_ids=input_ids,
            attention=attention,
            labels=labels,
            answer_start=answer_start,
        )


def cut_out(sample: Sample, cut: Cut, rng: np.random.Generator) -> Sample:
    """The sample at the batch's size, with the words that are true of what is left.

    A shrunk pixel belongs to the defect that covers more than 40 % of it; at a half, thin lines would break.
    """
    height, width = cut.size
    if cut.how == "crop":
        top, left = (int(rng.integers(have - want + 1)) for have, want in zip(sample.labels.shape, cut.size, strict=True))
        return cropped(sample, slice(top, top + height), slice(left, left + width))
    image = np.asarray(cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    labels = np.zeros(cut.size, np.uint8)
    for label in range(1, int(sample.labels.max()) + 1):
        share = cv2.resize((sample.labels == label).astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        labels[share > 0.4] = label
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


def recolour(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Contrast and brightness; no change that would make the words of a dialogue wrong (no inversion, no mirroring)."""
    gain, shift = rng.uniform(0.7, 1.3), rng.uniform(-20, 20)
    changed = (image.astype(np.float32) - 127.5) * gain + 127.5 + shift
    return np.asarray(changed.clip(0, 255), np.uint8)
