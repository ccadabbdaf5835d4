"""Eq. 11 for a part of a step, divided by what the whole step has: the parts add up to the step in one batch, on whichever process they are computed."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agvas_core.contract.errors import SetupError
from agvas_core.model.agvas import AgVas
from agvas_core.model.losses import IGNORED_TARGET, segmentation_loss, supervision_counts, text_loss, total_loss
from agvas_core.train.aux_heads import AuxHeads
from agvas_core.train.batches import Batch
from agvas_core.train.config import TrainConfig

__all__ = ["Counts", "Objective", "prepare_language_model"]

_ATTENTION = {"sdpa": "sdpa", "flash": "flash_attention_2", "eager": "eager"}


@dataclass(frozen=True)
class Counts:
    """Of a step. float32, so that processes can add them: target tokens, or the rows that have some where text is averaged over answers; images that take part in BCE and Dice of each anchor; images
    known to be good or anomalous; then those of the auxiliary heads."""

    values: Tensor

    @property
    def tokens(self) -> Tensor:
        """Scalar."""
        return self.values[0]

    @property
    def masks(self) -> Tensor:
        """[2, 3], as ``losses.segmentation_loss`` takes them."""
        return self.values[1:7].view(2, 3)

    @property
    def images(self) -> Tensor:
        """Scalar."""
        return self.values[7]

    @property
    def aux_heads(self) -> Tensor:
        """As ``AuxHeads.counts``."""
        return self.values[8:]


class Objective(nn.Module):
    """The model with its losses, in one module: what processes share out, and what goes through autocast together.

    Args:
        aux_heads: None where they have no weight.
    """

    def __init__(self, model: AgVas, train: TrainConfig, aux_heads: AuxHeads | None = None) -> None:
        super().__init__()
        self.model, self.aux_heads = model, aux_heads
        self.train_config = train

    @property
    def by_answer(self) -> bool:
        """Whether eq. 9 is averaged over answers, not over tokens."""
        return self.train_config.loss.text == "sequences"

    def counts(self, batch: Batch) -> Counts:
        """Of one part."""
        targets = batch.labels[:, 1:] != IGNORED_TARGET
        tokens = (targets.any(1) if self.by_answer else targets).sum().float()[None]
        masks = supervision_counts(batch.mask.float(), batch.supervise, self.train_config.loss.weights()).flatten()
        known = (batch.anomalous >= 0).sum().float()[None]
        heads = [] if self.aux_heads is None else [self.aux_heads.counts(batch)]
        return Counts(torch.cat([tokens, masks, known, *heads]))

    def forward(self, batch: Batch, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        """The part's share of the step's loss, and detached shares of its pieces by name.

        Args:
            counts: of the whole step.
        """
        train, weights = self.train_config, self.train_config.loss
        output = self.model(
            batch.semantic,
            batch.pixel,
            batch.input_ids,
            batch.attention,
            batch.answer_start,
            image_of=batch.image_of,
        )
        text = text_loss(output.text_logits, batch.labels, count=counts.tokens, per_sequence=self.by_answer)  # eq. 9
        logits = F.interpolate(output.mask_logits.float(), size=batch.mask.shape[-2:], mode="bilinear", align_corners=False)
        masks, pieces = segmentation_loss(
            logits,
            batch.mask.float(),
            weights.weights(),
            batch.supervise,
            unasked=batch.unasked,
            valid=batch.valid,
            counts=counts.masks,
        )  # eq. 10
        loss = total_loss(train.text_weight * text, masks)  # eq. 11
        if self.aux_heads is not None:
            named = self.aux_heads(output, batch, counts.aux_heads)
            loss = loss + weights.aux_heads * torch.stack(list(named.values())).sum()
            pieces |= {name: piece.detach() for name, piece in named.items()}
        image_logit: Tensor | None = getattr(output, "image_logit", None)  # [B], of models that score images themselves
        if image_logit is not None and weights.image:
            image = image_loss(image_logit, batch.anomalous, counts.images)
            loss = loss + weights.image * image
            pieces["image"] = image.detach()
        return loss, {"loss": loss.detach(), "text": text.detach(), "masks": masks.detach(), **pieces}


def image_loss(logit: Tensor, anomalous: Tensor, count: Tensor) -> Tensor:
    """Binary cross-entropy over images that are known to be good (0) or anomalous (1), of ``count`` in the step."""
    known = anomalous >= 0
    entropy = F.binary_cross_entropy_with_logits(logit.float(), anomalous.clamp(min=0).float(), reduction="none")
    return (entropy * known).sum() / count.clamp(min=1)


def prepare_language_model(model: AgVas, train: TrainConfig) -> None:
    """How it computes in training: its attention, and whether it keeps or recomputes what lies between its layers. In place.

    Raises:
        SetupError: flash-attn is asked for and not installed.
    """
    if train.attention == "flash" and find_spec("flash_attn") is None:
        raise SetupError(
            "train.attention is 'flash' and flash-attn is not installed: pip install flash-attn, or set attention = \"sdpa\""
        )
    language_model: Any = model.lmm.language_model
    language_model.set_attn_implementation(_ATTENTION[train.attention])
    if train.gradient_checkpointing:
        # transformers 5.24 gave it another name, and warns of the old one.
        enable = getattr(language_model, "activation_checkpointing_enable", language_model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
