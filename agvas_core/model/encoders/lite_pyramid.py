"""A small pretrained pixel encoder: EfficientNet-Lite with a feature pyramid (Lin et al. 2017).

It takes the place that SAM has in the paper (eq. 1). The trunk starts from ImageNet features (the weights that ship, see
``efficientnet_lite``); the pyramid brings them to f_p and, unlike SAM, also to finer features (stride 2) for the decoder:
hairline cracks are lost at f_p's stride of 8.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agvas_core.contract.errors import UsageError
from agvas_core.model.encoders.efficientnet_lite import EfficientNetLite
from agvas_core.model.encoders.prior import ImagePrior

__all__ = ["BLOCKS", "LitePyramid"]

BLOCKS = (0, 2, 4, 10)
"""Blocks of the trunk that are read, at strides 2, 4, 8 and 16."""


def depthwise(channels: int) -> nn.Sequential:
    """Depthwise 3x3 and 1x1 convolution, batch norm (folds away at export), ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def enlarged(x: Tensor) -> Tensor:
    """Twice the size, bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class LitePyramid(nn.Module):
    """Normalised pixels [B, 3, H, W] -> f_p [B, out_dim, H/8, W/8], f_detail [B, detail_dim, H/2, W/2], and the trunk's features
    that the references compare: [B, 40, H/8, W/8] and [B, 112, H/16, W/16].

    Args:
        trunk: its block 10 at least. Where nothing in it needs gradients, none are kept.
        widths: channels of the pyramid at strides 2, 4, 8, 16.
        attention: transformer layers over the cells at stride 16: cells of one image are compared with each other.
        pad_px: the image is padded by reflection for the trunk, and the padding is cut off its features; zero padding makes borders look
            unusual. A multiple of 16, or 0.
        prior: channels of ``ImagePrior`` join at stride 4, of the image at half its size.
        out_dim: C of f_p.
        detail_dim: channels of f_detail; AGMD's ``mask_dim``.

    H and W are multiples of 32.
    """

    def __init__(
        self,
        trunk: EfficientNetLite,
        *,
        widths: tuple[int, int, int, int] = (24, 32, 64, 96),
        attention: int = 0,
        pad_px: int = 16,
        prior: bool = False,
        out_dim: int = 96,
        detail_dim: int = 24,
    ) -> None:
        super().__init__()
        if pad_px % 16:
            raise UsageError(
                f"pad_px is {pad_px}; it must be a multiple of 16, the coarsest stride: choose {-(-pad_px // 16) * 16}"
            )
        self.trunk, self.pad_px = trunk, pad_px
        self.lateral = nn.ModuleList(nn.Conv2d(trunk.channels[b], w, 1) for b, w in zip(BLOCKS, widths, strict=True))
        self.down = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in pairwise(widths))
        # One at stride 2, where a layer costs as much as four at stride 4.
        self.mix = nn.ModuleList(
            nn.Sequential(*(depthwise(width) for _ in range(min(level, 1) + 1))) for level, width in enumerate(widths)
        )
        self.compare = nn.ModuleList(
            nn.TransformerEncoderLayer(widths[3], 4, 2 * widths[3], 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(attention)
        )
        self.prior = ImagePrior() if prior else None
        self.read_prior = nn.Conv2d(self.prior.channels, widths[1], 1) if self.prior is not None else None
        self.to_f_p = nn.Conv2d(widths[2], out_dim, 1)
        self.to_detail = nn.Conv2d(widths[0], detail_dim, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.trunk.parameters())
        with torch.set_grad_enabled(learns):
            features = [
                self.cut(feature, self.pad_px // self.trunk.strides[block])
                for block, feature in zip(BLOCKS, self.trunk.features(self.padded(pixels), BLOCKS), strict=True)
            ]
        joined = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        if self.prior is not None and self.read_prior is not None:
            prior = self.prior(F.avg_pool2d(pixels, 2)).to(pixels.dtype)
            joined[1] = joined[1] + self.read_prior(prior)
        y = joined[3]  # [B, ., H/16, W/16]
        batch, channels, height, width = y.shape
        for layer in self.compare:
            y = layer(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(batch, channels, height, width)
        y = self.mix[3](y)
        pyramid = [y]
        for level in (2, 1, 0):
            y = self.mix[level](joined[level] + enlarged(self.down[level](y)))
            pyramid.append(y)
        return self.to_f_p(pyramid[1]), self.to_detail(pyramid[3]), features[2], features[3]

    def padded(self, pixels: Tensor) -> Tensor:
        """With ``pad_px`` more on each side."""
        return F.pad(pixels, (self.pad_px,) * 4, mode="reflect") if self.pad_px else pixels

    @staticmethod
    def cut(feature: Tensor, edge: int) -> Tensor:
        """Without ``edge`` cells on each side."""
        return feature[..., edge:-edge, edge:-edge] if edge else feature
