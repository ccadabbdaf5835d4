"""Training objectives (paper 3.2, eq. 9-11): functions of tensors, independent of the model's size.

Everything is computed in float32 from logits, whatever dtype comes in: a saturated sigmoid in half precision has no
gradient, and the sum over a mask's pixels leaves float16's range at 256 x 256.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from agvas_core.contract.errors import UsageError
from agvas_core.contract.prompts import Anchor

__all__ = [
    "DICE_SMOOTHING",
    "IGNORED_TARGET",
    "SegmentationWeights",
    "segmentation_loss",
    "supervision_counts",
    "text_loss",
    "total_loss",
]

IGNORED_TARGET: Final = -100
"""Target id of a token that is not supervised: the prompt, the image, the padding (as in transformers)."""

DICE_SMOOTHING: Final = 1.0
"""Added to both halves of the Dice quotient, in pixels; the paper names none."""


@dataclass(frozen=True)
class SegmentationWeights:
    """Weights of eq. 10; the paper's unless given.

    From scratch the paper's own weights collapse to empty masks (``dice_on_empty`` rewards them). What learns there is
    ``SegmentationWeights(bce=2.0, dice=0.5, positive_weight=5.0, dice_on_empty=False)``.
    """

    bce: float = 0.5  # sec. 3.2
    dice: float = 2.0  # sec. 3.2
    positive_weight: float = 1.0
    """Weight of an anomalous pixel in BCE; a normal one weighs 1. The paper weighs all alike."""
    dice_on_empty: bool = True
    """Whether an image without an anomalous pixel takes part in Dice. The paper does not say; its eq. 10 makes no exception."""

    def __post_init__(self) -> None:
        for name in ("bce", "dice", "positive_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name}={value} is no weight: give a finite number of at least 0")


def text_loss(
    logits: Tensor, targets: Tensor, ignore_index: int = IGNORED_TARGET, count: Tensor | None = None, per_sequence: bool = False
) -> Tensor:
    """Autoregressive cross-entropy (eq. 9), the mean over all target tokens of the batch, or over its sequences.

    Eq. 9 is of one sequence, and does not say how those of a batch are put together. Over tokens, as transformers and LISA have it, a long
    conversation weighs as much as many short answers.

    Shifted as in transformers: ``targets`` stand where the input ids stand, and position t of ``logits`` is compared with
    position t + 1 of ``targets``. Anchor tokens are targets like any other.

    Args:
        logits: float [B, L, V], of any float dtype.
        targets: int64 [B, L], token ids, ``ignore_index`` where nothing is supervised.
        ignore_index: the id that marks such places.
        count: target tokens (``per_sequence``: rows with targets) to divide by, in place of the batch's own: those of a whole step, of
            which the batch is a part.
        per_sequence: the mean over rows of each row's mean, eq. 9 row by row.

    Returns:
        float32 scalar; exactly 0 with the gradient path intact where no token is a target.
    """
    if logits.shape[:2] != targets.shape:
        raise UsageError(
            f"targets are {list(targets.shape)}, logits {list(logits.shape)}: give one target per position, unshifted"
        )
    following = targets[:, 1:]  # [B, L - 1]
    supervised = following != ignore_index
    # Only what is supervised goes to float32: at 150,000 words the whole would be gigabytes.
    chosen = logits[:, :-1][supervised].float()  # [T, V]
    if per_sequence:
        lengths = supervised.sum(1)  # [B]
        each = F.cross_entropy(chosen, following[supervised], reduction="none")  # [T]
        means = each / lengths.repeat_interleave(lengths)
        return means.sum() / ((lengths > 0).sum() if count is None else count).clamp(min=1)
    summed = F.cross_entropy(chosen, following[supervised], reduction="sum")
    return summed / (supervised.sum() if count is None else count).clamp(min=1)


def supervision_counts(target: Tensor, supervise: Tensor, weights: SegmentationWeights) -> Tensor:
    """How many images take part in BCE (row 0) and Dice (row 1) of each anchor: float32 [2, 3]. Those of the parts of a step add up.

    Args:
        target: [B, H, W], supervise: [B, 3], as ``segmentation_loss`` takes them.
    """
    return torch.stack([supervise.sum(0), _in_dice(target, supervise, weights).sum(0)]).float()


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    weights: SegmentationWeights | None = None,
    supervise: Tensor | None = None,
    unasked: Tensor | None = None,
    valid: Tensor | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """BCE and Dice summed over the three anchors (eq. 10), with the probabilities of eq. 6 and 7.

    Per anchor both terms are means over the images that supervise it: one general-segmentation image among many does not
    thin out NOR and ANO. M_NOR is the complement of M.

    Args:
        logits: float [B, 3, H, W], in anchor order, of any float dtype.
        target: float [B, H, W], the anomaly mask M (eq. 10: M_SEG = M_ANO), 0..1; soft edges allowed.
        weights: of eq. 10; the paper's where None.
        supervise: bool [B, 3], which anchors each image supervises; all where None (B.1, B.2: general segmentation
            supervises SEG only; conversation has no mask).
        unasked: bool [B, H, W], anomalous pixels that the instruction does not mean. In BCE they weigh as much as those that it means:
            a model that marks every anomaly whatever is asked must not come out cheap. The paper has no such weight.
        valid: bool [B, H, W], pixels that show the image; the padding of a letterbox counts nowhere. All where None.
        counts: of ``supervision_counts`` over a whole step, of which the batch is a part; its own where None. With them the losses of the
            parts add up to that of the step in one batch.

    Returns:
        The weighted sum, float32 scalar, exactly 0 with the gradient path intact where nothing is supervised; and its
        unweighted, detached parts ``bce_nor``, ``dice_nor``, ``bce_ano``, ... for the log.
    """
    weights = weights or SegmentationWeights()
    batch = _checked_batch(logits, target)
    if supervise is None:
        supervise = torch.ones(batch, len(Anchor), dtype=torch.bool, device=logits.device)
    elif supervise.shape != (batch, len(Anchor)):
        raise UsageError(
            f"supervise is {list(supervise.shape)}, the batch needs {[batch, len(Anchor)]}: one flag per image and anchor"
        )

    mask = target.float()
    complement = 1 - mask
    negative_weight = 1.0 if unasked is None else 1 + (weights.positive_weight - 1) * unasked.float()  # [B, H, W]
    l_seg = logits[:, Anchor.SEG].float()  # [B, H, W]
    l_ano = logits[:, Anchor.ANO].float() - logits[:, Anchor.NOR].float()  # softmax over two = sigmoid of the difference
    p_seg, p_ano, p_nor = l_seg.sigmoid(), l_ano.sigmoid(), (-l_ano).sigmoid()

    bce_relative = _bce(
        l_ano, mask, weights.positive_weight, negative_weight, valid
    )  # [B]; of NOR and of ANO: only Dice tells them apart
    bce = {
        Anchor.NOR: bce_relative,
        Anchor.ANO: bce_relative,
        Anchor.SEG: _bce(l_seg, mask, weights.positive_weight, negative_weight, valid),
    }
    shown: Tensor | float = 1.0 if valid is None else valid.float()
    dice = {
        Anchor.NOR: _dice(p_nor * shown, complement * shown),
        Anchor.ANO: _dice(p_ano * shown, mask * shown),
        Anchor.SEG: _dice(p_seg * shown, mask * shown),
    }
    in_dice = _in_dice(mask, supervise, weights)  # [B, 3]

    total = logits.new_zeros((), dtype=torch.float32)
    parts: dict[str, Tensor] = {}
    for anchor in Anchor:
        of_step = (None, None) if counts is None else (counts[0, anchor], counts[1, anchor])
        bce_mean = _mean_where(bce[anchor], supervise[:, anchor], of_step[0])
        dice_mean = _mean_where(dice[anchor], in_dice[:, anchor], of_step[1])
        total = total + weights.bce * bce_mean + weights.dice * dice_mean
        parts[f"bce_{anchor.name.lower()}"] = bce_mean.detach()
        parts[f"dice_{anchor.name.lower()}"] = dice_mean.detach()
    return total, parts


def total_loss(text: Tensor, segmentation: Tensor) -> Tensor:
    """Eq. 11: the plain sum."""
    return text + segmentation


def _in_dice(mask: Tensor, supervise: Tensor, weights: SegmentationWeights) -> Tensor:
    """Which images take part in Dice, by anchor: bool [B, 3]."""
    return supervise if weights.dice_on_empty else supervise & (mask.amax(dim=(1, 2)) > 0)[:, None]


def _bce(
    logit: Tensor, mask: Tensor, positive_weight: float, negative_weight: Tensor | float, valid: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy from logits, the mean over (valid) pixels: [B, H, W] twice -> [B]."""
    # -log sigmoid(z) = softplus(-z), finite at any z.
    per_pixel = positive_weight * mask * F.softplus(-logit) + negative_weight * (1 - mask) * F.softplus(logit)
    if valid is None:
        return per_pixel.mean(dim=(1, 2))
    return (per_pixel * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp(min=1)


def _dice(probability: Tensor, mask: Tensor) -> Tensor:
    """Soft Dice loss per image, smoothed by :data:`DICE_SMOOTHING`: [B, H, W] twice -> [B], 0..1."""
    common = (probability * mask).sum(dim=(1, 2))
    sizes = probability.sum(dim=(1, 2)) + mask.sum(dim=(1, 2))
    return 1 - (2 * common + DICE_SMOOTHING) / (sizes + DICE_SMOOTHING)


def _mean_where(value: Tensor, chosen: Tensor, count: Tensor | None) -> Tensor:
    """Mean of ``value`` [B] over the images ``chosen``, 0 where there are none; the others get a gradient of exactly 0.
    ``count``: how many there are in the step, where that is more than the batch."""
    return torch.where(chosen, value, 0.0).sum() / (chosen.sum() if count is None else count).clamp(min=1)


def _checked_batch(logits: Tensor, target: Tensor) -> int:
    if logits.ndim != 4 or logits.shape[1] != len(Anchor):
        raise UsageError(f"logits are {list(logits.shape)}; the loss needs [B, 3, H, W] in the order {[a.name for a in Anchor]}")
    batch, _, height, width = logits.shape
    if target.shape != (batch, height, width):
        raise UsageError(
            f"the mask is {list(target.shape)}, the logits need {[batch, height, width]}: resize the mask to the logits, or the logits to the mask"
        )
    return batch
