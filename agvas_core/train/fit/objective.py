"""Eq. 11 for a part of a step, divided by what the whole step has: the parts add up to the step in one batch, whoever computes them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agvas_core.model.losses import IGNORED_TARGET, segmentation_loss, supervision_counts, text_loss, total_loss
from agvas_core.train.fit.batches import FitBatch
from agvas_core.train.fit.config import FitConfig

__all__ = ["Counts", "part_loss"]


@dataclass(frozen=True)
class Counts:
    """Of a step: target tokens, and the images that take part in BCE and Dice of each anchor. float32 [7] so that processes can add them."""

    values: Tensor

    @classmethod
    def of(cls, batch: FitBatch, fit: FitConfig) -> "Counts":
        """Of one part."""
        tokens = (batch.labels[:, 1:] != IGNORED_TARGET).sum().float()[None]
        images = supervision_counts(batch.mask.float(), batch.supervise, fit.loss.weights())
        return cls(torch.cat([tokens, images.flatten()]))

    @property
    def tokens(self) -> Tensor:
        """Scalar."""
        return self.values[0]

    @property
    def images(self) -> Tensor:
        """[2, 3]."""
        return self.values[1:].view(2, 3)


def part_loss(model: nn.Module, batch: FitBatch, counts: Counts, fit: FitConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The part's share of the step's loss, and detached shares of its pieces by name.

    Args:
        model: AgVas, or what accelerate made of it.
        counts: of the whole step.
    """
    output = model(batch.semantic, batch.pixel, batch.input_ids, batch.attention, batch.answer_start)
    text = text_loss(output.text_logits, batch.labels, count=counts.tokens)  # eq. 9
    logits = F.interpolate(output.mask_logits.float(), size=batch.mask.shape[-2:], mode="bilinear", align_corners=False)
    masks, pieces = segmentation_loss(
        logits, batch.mask.float(), fit.loss.weights(), batch.supervise, valid=batch.valid, counts=counts.images
    )  # eq. 10
    loss = total_loss(fit.text_weight * text, masks)  # eq. 11
    return loss, {"loss": loss.detach(), "text": text.detach(), "masks": masks.detach(), **pieces}
