"""From mask logits to the score map P (paper eq. 7 and 8)."""

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["ano_probability", "anomaly_probability", "seg_probability"]

Float = NDArray[np.float32]

BLOCK_PX = 1 << 16  # computed block by block, each small enough for a core's cache


def seg_probability(l_seg: Float) -> Float:
    """P_seg = sigmoid(l_seg), eq. 7; logits [H, W] to 0..1."""
    return _sigmoid(l_seg)


def ano_probability(l_ano_nor: Float) -> Float:
    """P_ano of [P_nor, P_ano] = softmax([l_nor, l_ano]), eq. 7, from the difference ``l_ano - l_nor`` [H, W].

    A softmax over two logits is the sigmoid of their difference, and P_nor = 1 - P_ano.
    """
    return _sigmoid(l_ano_nor)


def anomaly_probability(l_seg: Float, l_ano_nor: Float, alpha: float, *, out: Float | None = None) -> Float:
    """P = alpha P_seg + (1 - alpha) P_ano, eq. 8; float32 [H, W] in 0..1.

    ``out`` may be ``l_seg`` itself: a frame of 400 megapixels then needs no third map.
    """
    score_map = np.empty_like(l_seg) if out is None else out
    block = max(1, BLOCK_PX // max(1, l_seg.shape[1]))
    for top in range(0, l_seg.shape[0], block):
        rows = np.s_[top : top + block]
        fused = seg_probability(l_seg[rows]) * np.float32(alpha)
        fused += ano_probability(l_ano_nor[rows]) * np.float32(1.0 - alpha)
        np.minimum(fused, np.float32(1.0), out=score_map[rows])  # the two rounded weights may sum to a hair above one
    return score_map


def _sigmoid(x: Float) -> Float:
    # 1 / (1 + exp(-x)) keeps small probabilities apart, where tanh would round them all to zero; exp(80) still fits float32.
    out = np.clip(x, -80.0, 80.0)
    np.negative(out, out=out)
    cv2.exp(out, out)  # several times faster than NumPy's
    out += np.float32(1.0)
    return np.reciprocal(out, out=out)
