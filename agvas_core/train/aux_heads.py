"""Auxiliary heads, in training only: defect kinds in the features, and what instructions ask for.

With masks and text alone the features hold no kind, the semantic tokens become one constant, and no instruction can choose between two defects
(docs/experiments.md). The paper needs nothing of the sort: SAM's features and the language model know kinds already.
"""

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agvas_core.contract.prompts import Anchor
from agvas_core.data.synthetic.captions import GROUPS
from agvas_core.data.synthetic.sample import PLACES, SIZES, TONES
from agvas_core.model.agvas import AgVas, AgVasOutput
from agvas_core.model.config import ModelConfig
from agvas_core.model.losses import IGNORED_TARGET
from agvas_core.train.batches import NAMED, Batch

__all__ = ["AuxHeads"]

_PROBE_PX: Final = 128


class AuxHeads(nn.Module):
    """Four questions. Kind and tone of every anomalous pixel, from f_p and f_detail. Kinds and tones within each patch, from f_s and from
    f_align. Kind, place, size and tone that an instruction names, from its refined [SEG] anchor: kind and tone by the same weights that
    name them in f_p, so that anchor and pixels point the same way. And which of an image's regions is meant: the anchor must be nearer to
    f_p of what is asked for than to f_p of the other anomalies.

    Args:
        channels: C of f_p; detail_channels: of f_detail, None where there is none; width: D.
        strides: px of a cell of f_p, and of f_detail.
    """

    def __init__(self, channels: int, detail_channels: int | None, width: int, strides: tuple[int, int]) -> None:
        super().__init__()
        self.of_pixels, self.tone_of_pixels = nn.Conv2d(channels, len(GROUPS), 1), nn.Conv2d(channels, len(TONES), 1)
        self.place, self.size = nn.Linear(channels, len(PLACES)), nn.Linear(channels, len(SIZES))
        self.match = nn.Linear(channels, channels)
        self.of_detail = None if detail_channels is None else nn.Conv2d(detail_channels, len(GROUPS) + len(TONES), 1)
        self.of_semantic, self.of_aligned = (nn.Linear(width, len(GROUPS) + len(TONES)) for _ in range(2))
        self.strides = strides

    @classmethod
    def of(cls, model: AgVas, config: ModelConfig) -> "AuxHeads":
        """For a model that is not on its device yet."""
        detail_channels = config.agmd.mask_dim if config.agmd.detail else None
        before = model.pixel_encoder.training
        with torch.no_grad():
            seen = model.pixel_encoder.eval()(torch.zeros(1, _PROBE_PX, _PROBE_PX, 3, dtype=torch.uint8))
        model.pixel_encoder.train(before)
        strides = (_PROBE_PX // seen.f_p.shape[-1], _PROBE_PX // (seen.f_p if seen.f_detail is None else seen.f_detail).shape[-1])
        return cls(config.pixel.channels, detail_channels, int(config.lmm.text["hidden_size"]), strides)

    def counts(self, batch: Batch) -> Tensor:
        """What the losses of a batch are divided by; those of the parts of a step add up. float32 [10]: weights of cells by kind and by
        tone, of f_p and of f_detail; images; exchanges that name a kind, place, size, tone; exchanges with other anomalies beside."""
        assert batch.kinds is not None and batch.tones is not None and batch.asked is not None
        cells = [
            cell_weights(cells_of(truth, _grid(truth, stride)), classes).sum()
            for stride in self.strides
            for truth, classes in ((batch.kinds, len(GROUPS)), (batch.tones, len(TONES)))
        ]
        images = torch.tensor(float(len(batch.kinds)), device=batch.kinds.device)
        named = (batch.asked != IGNORED_TARGET).sum(0).float()
        return torch.stack([*cells, images, *named, both_there(batch)[1].sum().float()])

    def forward(self, output: AgVasOutput, batch: Batch, counts: Tensor) -> dict[str, Tensor]:
        """Float32 scalars by name: ``kinds``, ``patches``, ``asked``, ``chosen``.

        Args:
            counts: of the whole step, as :meth:`counts` gives them for a batch.
        """
        assert batch.kinds is not None and batch.tones is not None
        counts = counts.clamp(min=1)
        f_p, f_detail = output.vision.pixel.f_p, output.vision.pixel.f_detail
        kinds = cell_loss(self.of_pixels(f_p), batch.kinds, counts[0])
        kinds = kinds + cell_loss(self.tone_of_pixels(f_p), batch.tones, counts[1])
        if self.of_detail is not None and f_detail is not None:
            kind, tone = self.of_detail(f_detail).split([len(GROUPS), len(TONES)], 1)
            kinds = kinds + cell_loss(kind, batch.kinds, counts[2]) + cell_loss(tone, batch.tones, counts[3])
        there = patches(batch.kinds, batch.tones, math.isqrt(output.vision.f_s.shape[1]))  # [B, N, classes]
        scores = (self.of_semantic(output.vision.f_s), self.of_aligned(output.vision.f_align))
        weight = 1 + 4 * there  # most patches show nothing
        entropy = [
            F.binary_cross_entropy_with_logits(score.float(), there, weight, reduction="none").mean((1, 2)) for score in scores
        ]
        found = torch.stack(entropy).sum() / counts[4]
        h_seg = output.h_anchor[:, Anchor.SEG]  # [R, C]
        return {
            "kinds": kinds,
            "patches": found,
            "asked": self.asked(h_seg, batch, counts[5:9]),
            "chosen": self.chosen(h_seg, f_p, batch, counts[9]),
        }

    def asked(self, h_seg: Tensor, batch: Batch, counts: Tensor) -> Tensor:
        """Cross-entropy of what the instructions name, the sum over attributes of means over those that name it."""
        assert batch.asked is not None
        point = h_seg[:, :, None, None]  # [R, C, 1, 1]
        kind, tone = self.of_pixels(point)[:, :, 0, 0], self.tone_of_pixels(point)[:, :, 0, 0]
        scores = dict(zip(NAMED, (kind, self.place(h_seg), self.size(h_seg), tone), strict=True))
        summed = [
            F.cross_entropy(scores[name].float(), batch.asked[:, at], ignore_index=IGNORED_TARGET, reduction="sum")
            for at, name in enumerate(NAMED)
        ]
        return (torch.stack(summed) / counts).sum()

    def chosen(self, h_seg: Tensor, f_p: Tensor, batch: Batch, count: Tensor) -> Tensor:
        """Over exchanges whose image has anomalies beside the asked ones: softplus(other - asked), of products with the anchor."""
        both, there = both_there(batch)
        share = F.adaptive_avg_pool2d(both * there[:, None, None, None], (f_p.shape[2], f_p.shape[3])).flatten(2)  # [R, 2, hw]
        share = share / share.sum(2, keepdim=True).clamp(min=1e-6)
        pooled = share @ f_p.float().flatten(2).transpose(1, 2)[batch.image_of]  # [R, 2, C]
        near = (pooled @ self.match(h_seg).float()[:, :, None])[:, :, 0] / math.sqrt(f_p.shape[1])  # [R, 2]
        return (F.softplus(near[:, 1] - near[:, 0]) * there).sum() / count


def both_there(batch: Batch) -> tuple[Tensor, Tensor]:
    """What is asked for and the other anomalies, float [R, 2, H, W]; and bool [R], whether the image has both."""
    unasked = batch.unasked
    assert unasked is not None
    other = unasked & batch.supervise.any(1)[:, None, None]
    both = torch.stack([batch.mask, other], 1)  # [R, 2, H, W]
    return both.float(), both.flatten(2).any(2).all(1)


def cells_of(truth: Tensor, grid: tuple[int, int]) -> Tensor:
    """uint8 [B, H, W] -> int64 [B, h, w]: the highest number within a cell, so that any defect wins over the background."""
    return F.adaptive_max_pool2d(truth.float()[:, None], grid)[:, 0].long()


def cell_weights(cells: Tensor, classes: int) -> Tensor:
    """[B, h, w]: cells that one number has in one image weigh together as the root of how many they are; else a few large regions, whose
    inside tells little, are all that counts. 0 where normal."""
    counts = F.one_hot(cells, classes + 1).sum((1, 2)).float()  # [B, 1 + K]
    return counts.clamp(min=1).rsqrt().gather(1, cells.flatten(1)).view(cells.shape) * (cells > 0)


def cell_loss(scores: Tensor, truth: Tensor, count: Tensor) -> Tensor:
    """Cross-entropy over anomalous cells: scores [B, K, h, w], truth uint8 [B, H, W] with 0 for normal; ``count``: weights of the step."""
    cells = cells_of(truth, (scores.shape[2], scores.shape[3]))
    entropy = F.cross_entropy(scores.float(), cells.sub(1).masked_fill(cells == 0, IGNORED_TARGET), reduction="none")
    return (cell_weights(cells, scores.shape[1]) * entropy).sum() / count


def patches(kinds: Tensor, tones: Tensor, side: int) -> Tensor:
    """Which kinds and tones each of side x side patches shows: float [B, side^2, groups + tones]."""
    there = [kinds == number + 1 for number in range(len(GROUPS))] + [tones == number + 1 for number in range(len(TONES))]
    maps = F.adaptive_max_pool2d(torch.stack(there, 1).float(), side)  # [B, classes, side, side]
    return maps.flatten(2).transpose(1, 2)


def _grid(truth: Tensor, stride: int) -> tuple[int, int]:
    return math.ceil(truth.shape[1] / stride), math.ceil(truth.shape[2] / stride)
