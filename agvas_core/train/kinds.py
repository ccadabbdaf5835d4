"""Heads that exist in training only: what kind of defect features show and instructions name.

With masks and text alone the features hold no kind, the semantic tokens become one constant, and no instruction can choose between two defects
(docs/experiments.md). The paper needs nothing of the sort: SAM's features and the language model know kinds already.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agvas_core.contract.anchors import Anchor
from agvas_core.data.captions import GROUPS
from agvas_core.data.sample import TONES
from agvas_core.model.agvas import AgVasOutput
from agvas_core.model.losses import IGNORED_TARGET
from agvas_core.train.batches import Batch

__all__ = ["KindHead"]


class KindHead(nn.Module):
    """Three questions. Kind and tone of every anomalous pixel, from f_p and f_detail. Kinds and tones within each patch, from f_s and from
    f_align. And the kind that an instruction names, from its refined [SEG] anchor: by the same weights that name the kinds of f_p, so that
    anchor and pixels of a kind point the same way.
    """

    def __init__(self, channels: int, detail_channels: int | None, width: int) -> None:
        super().__init__()
        self.of_pixels, self.tone_of_pixels = nn.Conv2d(channels, len(GROUPS), 1), nn.Conv2d(channels, len(TONES), 1)
        self.of_detail = None if detail_channels is None else nn.Conv2d(detail_channels, len(GROUPS) + len(TONES), 1)
        self.of_semantic, self.of_aligned = (nn.Linear(width, len(GROUPS) + len(TONES)) for _ in range(2))

    def forward(self, output: AgVasOutput, batch: Batch) -> dict[str, Tensor]:
        """Float32 scalars by name: ``kinds``, ``patches``, ``asked``."""
        f_p, f_detail = output.vision.pixel
        kinds = cell_loss(self.of_pixels(f_p), batch.kinds) + cell_loss(self.tone_of_pixels(f_p), batch.tones)
        if self.of_detail is not None and f_detail is not None:
            kind, tone = self.of_detail(f_detail).split([len(GROUPS), len(TONES)], 1)
            kinds = kinds + cell_loss(kind, batch.kinds) + cell_loss(tone, batch.tones)
        there = patches(batch, math.isqrt(output.vision.f_s.shape[1]))  # [B, N, classes]
        scores = (self.of_semantic(output.vision.f_s), self.of_aligned(output.vision.f_align))
        weight = 1 + 4 * there  # most patches show nothing
        found = torch.stack([F.binary_cross_entropy_with_logits(score.float(), there, weight) for score in scores]).sum()
        h_seg = output.h_anchor[:, Anchor.SEG, :, None, None]  # [R, C, 1, 1]
        named = self.of_pixels(h_seg)[:, :, 0, 0].float()  # [R, groups]
        summed = F.cross_entropy(named, batch.asked, ignore_index=IGNORED_TARGET, reduction="sum")
        return {"kinds": kinds, "patches": found, "asked": summed / (batch.asked != IGNORED_TARGET).sum().clamp(min=1)}


def cell_loss(scores: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy, the mean over anomalous cells: scores [B, K, h, w], truth uint8 [B, H, W] with 0 for normal."""
    # The highest number within a cell: any defect wins over the background, however thin.
    cells = F.adaptive_max_pool2d(truth.float()[:, None], scores.shape[-2:])[:, 0].long()  # [B, h, w]
    target = cells.sub(1).masked_fill(cells == 0, IGNORED_TARGET)
    summed = F.cross_entropy(scores.float(), target, ignore_index=IGNORED_TARGET, reduction="sum")
    return summed / (cells > 0).sum().clamp(min=1)


def patches(batch: Batch, side: int) -> Tensor:
    """Which kinds and tones each of side x side patches shows: float [B, side^2, groups + tones]."""
    there = [batch.kinds == number + 1 for number in range(len(GROUPS))] + [
        batch.tones == number + 1 for number in range(len(TONES))
    ]
    maps = F.adaptive_max_pool2d(torch.stack(there, 1).float(), side)  # [B, classes, side, side]
    return maps.flatten(2).transpose(1, 2)
