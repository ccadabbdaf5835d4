"""The three semantic anchors and their order (paper 3.1).

The order NOR, ANO, SEG is written here and nowhere else: token ids, anchor states, learnable queries and mask logits all
follow it along their axis of size 3.
"""

from enum import IntEnum
from typing import Final

__all__ = ["ANCHOR_TOKENS", "EMPTY_LOGITS", "Anchor"]


class Anchor(IntEnum):
    """Index of each anchor along every axis of size 3."""

    NOR = 0  # relative: what is normal here
    ANO = 1  # relative: what is anomalous here
    SEG = 2  # absolute: what an anomaly is and where


ANCHOR_TOKENS: Final[tuple[str, str, str]] = ("[NOR]", "[ANO]", "[SEG]")
EMPTY_LOGITS: Final[tuple[float, float, float]] = (200.0, -200.0, -200.0)
"""Mask logits of an answer without anchors: sigmoid(-200) is 0 in float32, so the mask is empty at any threshold."""
