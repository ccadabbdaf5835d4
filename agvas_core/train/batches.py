"""Training batches, each a function of (seed, step) alone: any worker makes the same batch, and a resumed run sees the same data."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from agvas_core.contract.preprocess import make_view
from agvas_core.contract.prompts import DEFAULT_INSTRUCTION
from agvas_core.data.dialogue import Dialogue, make_dialogue
from agvas_core.data.synthesis import Sample, SynthesisSpec, synthesize
from agvas_core.model.build import chat_format, semantic_tokens
from agvas_core.model.config import ModelConfig
from agvas_core.model.losses import IGNORED_TARGET
from agvas_core.train.config import TrainConfig

__all__ = ["Batch", "SyntheticBatches", "encode_dialogues"]


@dataclass
class Batch:
    """``semantic`` uint8 [B, Hs, Ws, 3], ``pixel`` uint8 [B, H, W, 3], ``mask`` float [B, H, W]; ids, attention and labels [B, L];
    ``answer_start`` [B]; ``has_mask`` [B]: the answer has anchors."""

    semantic: Tensor
    pixel: Tensor
    mask: Tensor
    has_mask: Tensor
    input_ids: Tensor
    attention: Tensor
    labels: Tensor
    answer_start: Tensor


def encode_dialogues(
    dialogues: list[Dialogue], tokenizer: Tokenizer, config: ModelConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Right-padded ids, attention, labels [B, L] and the answers' starts [B]. Only the answer (and its end) has labels.

    Prompt and answer are tokenized apart, so no token spans the start of the answer. The runtime tokenizes them in one;
    export compares the two.
    """
    chat, visual = chat_format(config.lmm), [config.lmm.image_token_id] * (2 * semantic_tokens(config))
    rows: list[tuple[list[int], int]] = []
    for dialogue in dialogues:
        before, after = chat.prompt(dialogue.instruction)
        prompt = tokenizer.encode(before).ids + visual + tokenizer.encode(after).ids
        answer = tokenizer.encode(dialogue.answer + chat.after_answer).ids
        rows.append((prompt + answer, len(prompt)))
    length = max(len(ids) for ids, _ in rows)
    input_ids = torch.full((len(rows), length), config.lmm.pad_token_id)
    attention = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED_TARGET)
    for row, (ids, start) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention[row, : len(ids)] = 1
        labels[row, start : len(ids)] = torch.tensor(ids[start:])
    return input_ids, attention, labels, torch.tensor([start for _, start in rows])


class SyntheticBatches(Dataset[Batch]):
    """Item ``step`` is the batch of that optimizer step."""

    def __init__(self, train: TrainConfig, model: ModelConfig, tokenizer: Tokenizer) -> None:
        self.train, self.model, self.tokenizer = train, model, tokenizer
        self.schedule = train.schedule()
        self.spec = SynthesisSpec(held_out_families=train.held_out_families)

    def __len__(self) -> int:
        return self.train.steps()

    def __getitem__(self, step: int) -> Batch:
        cv2.setNumThreads(1)
        phase = [phase for first, phase in self.schedule if first <= step][-1]
        rng = np.random.default_rng([self.train.seed, 1, step])
        weights = np.array([cut.weight for cut in phase.cuts])
        cut = phase.cuts[rng.choice(len(weights), p=weights / weights.sum())]
        tasks, shares = list(self.train.tasks), np.array(list(self.train.tasks.values()))
        images, masks, dialogues, views = [], [], [], []
        for row in range(phase.batch):
            # A batch has at most 1024 images (config.py), so no image comes twice.
            sample = synthesize(self.train.seed, step * 1024 + row, cut.canvas, self.spec)
            dialogue = make_dialogue(sample, tasks[rng.choice(len(tasks), p=shares / shares.sum())], rng)
            # Words about place and number are true of the whole image only: no cropping.
            whole = dialogue.instruction != DEFAULT_INSTRUCTION
            image, mask = cut_out(sample, dialogue.mask, cut.size, "resize" if whole else cut.how, rng)
            image = recolour(image, rng)
            images.append(image)
            masks.append(mask)
            dialogues.append(dialogue)
            views.append(make_view(self.model.semantic_view, image).pixels)
        input_ids, attention, labels, answer_start = encode_dialogues(dialogues, self.tokenizer, self.model)
        return Batch(
            semantic=torch.from_numpy(np.stack(views)),
            pixel=torch.from_numpy(np.stack(images)),
            mask=torch.from_numpy(np.stack(masks)),
            has_mask=torch.tensor([dialogue.mask is not None for dialogue in dialogues]),
            input_ids=input_ids,
            attention=attention,
            labels=labels,
            answer_start=answer_start,
        )


def cut_out(
    sample: Sample,
    mask: NDArray[np.bool_] | None,
    size: tuple[int, int],
    how: Literal["crop", "resize"],
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Image and mask at the batch's size.

    A shrunk mask is 1 where more than 40 % of a pixel is anomalous; at a half, thin lines would break.
    """
    image, target = sample.image, (np.zeros(sample.image.shape[:2]) if mask is None else mask).astype(np.float32)
    height, width = size
    if how == "resize":
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        target = (cv2.resize(target, (width, height), interpolation=cv2.INTER_AREA) > 0.4).astype(np.float32)
    else:
        top, left = (int(rng.integers(have - want + 1)) for have, want in zip(image.shape[:2], size, strict=True))
        image, target = image[top : top + height, left : left + width], target[top : top + height, left : left + width]
    return np.ascontiguousarray(image), np.ascontiguousarray(target)


def recolour(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Contrast and brightness; no change that would make the words of a dialogue wrong (no inversion, no mirroring)."""
    gain, shift = rng.uniform(0.7, 1.3), rng.uniform(-20, 20)
    changed = (image.astype(np.float32) - 127.5) * gain + 127.5 + shift
    return np.asarray(changed.clip(0, 255), np.uint8)
