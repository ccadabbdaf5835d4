"""Where 0.5 lies: after training, the mask logits' bias is moved on fresh synthetic images.

A positive weight w in BCE makes a pixel anomalous at odds of 1 to w, so that a threshold of 0.5 flags too much (log w in
logits; Dice moves it again). One number mends it: how far both maps' logits are lowered. It is chosen where IoU_ano times
IoU_nor (eq. 12, 13) is highest, since neither should be bought with all of the other, on images of the generator that
training did not draw; and it becomes part of AGMD's bias, so that every engine and every user of the weights gets it. The
ranking of pixels (AP) hardly changes.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from tokenizers import Tokenizer

from agvas_core.contract.anchors import Anchor
from agvas_core.contract.preprocess import make_view
from agvas_core.contract.prompts import DEFAULT_INSTRUCTION, FIXED_ANSWER
from agvas_core.data.dialogue import Dialogue
from agvas_core.data.spec import SynthesisSpec
from agvas_core.data.synthesis import synthesize
from agvas_core.model.agvas import AgVas
from agvas_core.model.config import ModelConfig
from agvas_core.model.fusion import anomaly_probability
from agvas_core.train.batches import encode_dialogues
from agvas_core.train.config import CalibrationConfig, TrainConfig

__all__ = ["Calibration", "calibrate", "lowered"]

SHIFTS = np.arange(-1.0, 4.01, 0.25)


@dataclass(frozen=True)
class Calibration:
    """``shift``: what both maps' logits were lowered by; the curves are over ``shifts``."""

    shift: float
    shifts: list[float]
    iou_ano: list[float]
    iou_nor: list[float]


@torch.no_grad()
def calibrate(model: AgVas, config: ModelConfig, train: TrainConfig, tokenizer: Tokenizer, on: CalibrationConfig) -> Calibration:
    """Measures IoU_ano and IoU_nor at each shift; ``model`` is in evaluation mode and is not changed."""
    cv2.setNumThreads(1)
    spec = SynthesisSpec(held_out_families=train.held_out_families)
    input_ids, attention, _, start = encode_dialogues([Dialogue(DEFAULT_INSTRUCTION, FIXED_ANSWER, None)], tokenizer, config)
    overlap: list[list[float]] = [[] for _ in SHIFTS]
    empty: list[list[float]] = [[] for _ in SHIFTS]
    for index in range(on.images):
        sample = synthesize(train.seed + 1, index, on.size, spec)  # another seed: another set
        semantic, pixel = (
            torch.from_numpy(make_view(view, sample.image).pixels)[None] for view in (config.semantic_view, config.pixel_view)
        )
        logits = model(semantic, pixel, input_ids, attention, start, with_text=False).mask_logits
        logits = torch.nn.functional.interpolate(logits, size=on.size, mode="bilinear", align_corners=False)
        truth = sample.mask
        for row, shift in enumerate(SHIFTS):
            mask = (
                anomaly_probability(lowered(logits, float(shift)), config.decision.alpha)[0] > config.decision.threshold
            ).numpy()
            if truth.any():
                overlap[row].append(float((mask & truth).sum() / (mask | truth).sum()))
            else:
                empty[row].append(float(mask.mean() <= config.decision.min_area_fraction))
    iou_ano, iou_nor = ([float(np.mean(values)) if values else 0.0 for values in rows] for rows in (overlap, empty))
    best = int(np.argmax(np.multiply(iou_ano, iou_nor)))
    return Calibration(float(SHIFTS[best]), [float(shift) for shift in SHIFTS], iou_ano, iou_nor)


def lowered(logits: torch.Tensor, shift: float) -> torch.Tensor:
    """Mask logits [..., 3, H, W] with l_seg and l_ano - l_nor lowered by ``shift``."""
    moved = logits.clone()
    moved[..., Anchor.SEG, :, :] -= shift
    moved[..., Anchor.ANO, :, :] -= shift / 2
    moved[..., Anchor.NOR, :, :] += shift / 2
    return moved
