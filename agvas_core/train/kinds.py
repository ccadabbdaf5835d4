"""Heads that exist in training only: what features show, and what instructions ask for.

With masks and text alone the features hold no kind, the semantic tokens become one constant, and no instruction can choose between two defects
(docs/experiments.md). The paper needs nothing of the sort: SAM's features and the language model know kinds already.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agvas_core.contract.prompts import Anchor
from agvas_core.data.synthetic.captions import GROUPS
from agvas_core.data.synthetic.sample import PLACES, SIZES, TONES
from agvas_core.model.agvas import AgVasOutput
from agvas_core.model.losses import IGNORED_TARGET
from agvas_core.train.batches import Batch

__all__ = ["KindHead"]


class KindHead(nn.Module):
    """Four questions. Kind and tone of every anomalous pixel, from f_p and f_detail. Kinds and tones within each patch, from f_s and from
    f_align. Kind, place, size and tone that an instruction names, from its refined [SEG] anchor: kind and tone by the same weights that
    name them in f_p, so that anchor and pixels point the same way. And which of an image's regions is meant: the anchor must be nearer to
    f_p of what is asked for than to f_p of the other anomalies.
    """

    def __init__(self, channels: int, detail_channels: int | None, width: int) -> None:
        super().__init__()
        self.of_pixels, self.tone_of_pixels = nn.Conv2d(channels, len(GROUPS), 1), nn.Conv2d(channels, len(TONES), 1)
        self.place, self.size = nn.Linear(channels, len(PLACES)), nn.Linear(channels, len(SIZES))
        self.match = nn.Linear(channels, channels)
        self.of_detail = None if detail_channels is None else nn.Conv2d(detail_channels, len(GROUPS) + len(TONES), 1)
        self.of_semantic, self.of_aligned = (nn.Linear(width, len(GROUPS) + len(TONES)) for _ in range(2))

    def forward(self, output: AgVasOutput, batch: Batch) -> dict[str, Tensor]:
        """Float32 scalars by name: ``kinds``, ``patches``, ``asked``, ``chosen``."""
        f_p, f_detail = output.vision.pixel
        kinds = cell_loss(self.of_pixels(f_p), batch.kinds) + cell_loss(self.tone_of_pixels(f_p), batch.tones)
        if self.of_detail is not None and f_detail is not None:
            kind, tone = self.of_detail(f_detail).split([len(GROUPS), len(TONES)], 1)
            kinds = kinds + cell_loss(kind, batch.kinds) + cell_loss(tone, batch.tones)
        there = patches(batch, math.isqrt(output.vision.f_s.shape[1]))  # [B, N, classes]
        scores = (self.of_semantic(output.vision.f_s), self.of_aligned(output.vision.f_align))
        weight = 1 + 4 * there  # most patches show nothing
        found = torch.stack([F.binary_cross_entropy_with_logits(score.float(), there, weight) for score in scores]).sum()
        h_seg = output.h_anchor[:, Anchor.SEG]  # [R, C]
        return {"kinds": kinds, "patches": found, "asked": self.asked(h_seg, batch), "chosen": self.chosen(h_seg, f_p, batch)}

    def asked(self, h_seg: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of what the instructions name, the sum over attributes of means over those that name it."""
        point = h_seg[:, :, None, None]  # [R, C, 1, 1]
        kind, tone = self.of_pixels(point)[:, :, 0, 0], self.tone_of_pixels(point)[:, :, 0, 0]
        named = (kind, self.place(h_seg), self.size(h_seg), tone)  # in the order of batches.NAMED
        return torch.stack([mean_entropy(scores, batch.asked[:, at]) for at, scores in enumerate(named)]).sum()

    def chosen(self, h_seg: Tensor, f_p: Tensor, batch: Batch) -> Tensor:
        """Over exchanges whose image has anomalies beside the asked ones: softplus(other - asked), of products with the anchor."""
        grid = (f_p.shape[2], f_p.shape[3])
        other = (batch.kinds[batch.image_of] > 0) & ~batch.mask & batch.has_mask[:, None, None]  # [R, H, W]
        both = torch.stack([batch.mask, other], 1).float()  # [R, 2, H, W]
        both = both * both.amax((2, 3)).amin(1)[:, None, None, None]  # only where there are both
        share = F.adaptive_avg_pool2d(both, grid).flatten(2)  # [R, 2, hw]
        share = share / share.sum(2, keepdim=True).clamp(min=1e-6)
        pooled = share @ f_p.float().flatten(2).transpose(1, 2)[batch.image_of]  # [R, 2, C]
        near = (pooled @ self.match(h_seg).float()[:, :, None])[:, :, 0] / math.sqrt(f_p.shape[1])  # [R, 2]
        there = share.sum((1, 2)) > 1.5
        return (F.softplus(near[:, 1] - near[:, 0]) * there).sum() / there.sum().clamp(min=1)


def mean_entropy(scores: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, the mean over rows that have a target; 0 where none has. Scores [R, K], target [R]."""
    summed = F.cross_entropy(scores.float(), target, ignore_index=IGNORED_TARGET, reduction="sum")
    return summed / (target != IGNORED_TARGET).sum().clamp(min=1)


def cell_loss(scores: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy over anomalous cells: scores [B, K, h, w], truth uint8 [B, H, W] with 0 for normal.

    The cells that one number has in one image weigh together as the root of how many they are: else a few large regions, whose inside
    tells little, are all that counts.
    """
    # The highest number within a cell: any defect wins over the background, however thin.
    cells = F.adaptive_max_pool2d(truth.float()[:, None], scores.shape[-2:])[:, 0].long()  # [B, h, w]
    counts = F.one_hot(cells, scores.shape[1] + 1).sum((1, 2)).float()  # [B, 1 + K]
    weight = counts.clamp(min=1).rsqrt().gather(1, cells.flatten(1)).view(cells.shape) * (cells > 0)  # [B, h, w]
    entropy = F.cross_entropy(scores.float(), cells.sub(1).masked_fill(cells == 0, IGNORED_TARGET), reduction="none")
    return (weight * entropy).sum() / weight.sum().clamp(min=1)


def patches(batch: Batch, side: int) -> Tensor:
    """Which kinds and tones each of side x side patches shows: float [B, side^2, groups + tones]."""
    there = [batch.kinds == number + 1 for number in range(len(GROUPS))] + [
        batch.tones == number + 1 for number in range(len(TONES))
    ]
    maps = F.adaptive_max_pool2d(torch.stack(there, 1).float(), side)  # [B, classes, side, side]
    return maps.flatten(2).transpose(1, 2)
