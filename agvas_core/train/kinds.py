"""A head that exists in training only: pixel features must tell what kind of defect they show, and in which tone.

With the binary masks alone the features hold no kind, and then no instruction can choose between two defects (docs/experiments.md). The paper
needs nothing of the sort: SAM's features and the language model know kinds already.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from agvas_core.data.captions import GROUPS
from agvas_core.data.sample import TONES
from agvas_core.model.encoders import PixelFeatures
from agvas_core.model.losses import IGNORED_TARGET

__all__ = ["KindHead"]


class KindHead(nn.Module):
    """Kind and tone of every anomalous pixel, from f_p [B, C, h, w] and, if any, from f_detail [B, C', h', w']."""

    def __init__(self, channels: int, detail_channels: int | None) -> None:
        super().__init__()
        classes = len(GROUPS) + len(TONES)
        self.of_pixels = nn.Conv2d(channels, classes, 1)
        self.of_detail = None if detail_channels is None else nn.Conv2d(detail_channels, classes, 1)

    def forward(self, features: PixelFeatures, kinds: Tensor, tones: Tensor) -> Tensor:
        """Mean cross-entropy over anomalous cells; ``kinds`` and ``tones`` uint8 [B, H, W] as in ``Batch``. Float32 scalar."""
        loss = self._loss(self.of_pixels(features.f_p), kinds, tones)
        if self.of_detail is not None and features.f_detail is not None:
            loss = loss + self._loss(self.of_detail(features.f_detail), kinds, tones)
        return loss

    @staticmethod
    def _loss(scores: Tensor, kinds: Tensor, tones: Tensor) -> Tensor:
        size = scores.shape[-2:]
        loss = scores.new_zeros(())
        for part, truth in zip(scores.float().split([len(GROUPS), len(TONES)], 1), (kinds, tones), strict=True):
            # The highest number within a cell: any defect wins over the background, however thin.
            cells = F.adaptive_max_pool2d(truth.float()[:, None], size)[:, 0].long()  # [B, h, w]
            target = cells.sub(1).masked_fill(cells == 0, IGNORED_TARGET)
            summed = F.cross_entropy(part, target, ignore_index=IGNORED_TARGET, reduction="sum")
            loss = loss + summed / (cells > 0).sum().clamp(min=1)
        return loss
