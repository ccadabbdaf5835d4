"""From mask logits to maps and the mask (paper 3.1, eq. 6-8).

Softmax over two logits is a sigmoid of their difference, so the relative maps are computed from l_ano - l_nor.
"""

from torch import Tensor

from agvas_core.contract.prompts import Anchor

__all__ = ["anomaly_probability", "binary_mask", "relative_probability", "seg_probability"]


def seg_probability(logits: Tensor) -> Tensor:
    """eq. 6: logits [B, 3, H, W] -> P_seg [B, H, W]."""
    return logits[:, Anchor.SEG].sigmoid()


def relative_probability(logits: Tensor) -> tuple[Tensor, Tensor]:
    """eq. 7: logits [B, 3, H, W] -> P_nor, P_ano, each [B, H, W]."""
    difference = logits[:, Anchor.ANO] - logits[:, Anchor.NOR]
    return (-difference).sigmoid(), difference.sigmoid()


def anomaly_probability(logits: Tensor, alpha: float = 0.5) -> Tensor:
    """eq. 8: P = alpha P_seg + (1 - alpha) P_ano, [B, H, W]."""
    return alpha * seg_probability(logits) + (1 - alpha) * relative_probability(logits)[1]


def binary_mask(probability: Tensor, threshold: float = 0.5) -> Tensor:
    """sec. 3.1: M = P > 0.5, bool [B, H, W]; a pixel at the threshold itself is normal."""
    return probability > threshold
