"""The pixel encoder of the nano preset: a small convolutional U-Net that sees the image and its prior.

It takes the place that SAM has in the paper (eq. 1). Unlike SAM it is trained from scratch, on procedural images only, and
also gives finer features (stride 2) for the decoder: hairline cracks are lost at f_p's stride of 8.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agvas_core.model.encoders.prior import ImagePrior

__all__ = ["NanoEncoder"]


def conv(in_dim: int, out_dim: int, stride: int = 1, kernel: int = 3, dilation: int = 1) -> nn.Sequential:
    """Convolution, batch norm (folds away at export), ReLU."""
    pad = kernel // 2 * dilation
    return nn.Sequential(
        nn.Conv2d(in_dim, out_dim, kernel, stride, pad, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_dim),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    """ReLU(x + two convolutions)."""

    def __init__(self, dim: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = conv(dim, dim, dilation=dilation)
        self.second = nn.Sequential(nn.Conv2d(dim, dim, 3, padding=dilation, dilation=dilation, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def up(x: Tensor) -> Tensor:
    """Twice the size, bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class NanoEncoder(nn.Module):
    """Normalised pixels [B, 3, H, W] -> f_p [B, out_dim, H/8, W/8] and f_detail [B, detail_dim, H/2, W/2].

    Args:
        widths: channels at strides 2, 4, 8, 16; 32 has the width of 16.
        prior_dim: channels that the prior is reduced to, by a learned 1x1 convolution; 0 for none, to measure what it gives.
        out_dim: C of f_p.
        detail_dim: channels of f_detail; AGMD's ``mask_dim``.

    H and W are multiples of 32.
    """

    def __init__(
        self,
        *,
        widths: tuple[int, int, int, int] = (16, 32, 64, 96),
        prior_dim: int = 24,
        out_dim: int = 96,
        detail_dim: int = 24,
    ) -> None:
        super().__init__()
        w2, w4, w8, w16 = widths
        half = w2 + prior_dim
        self.prior = ImagePrior() if prior_dim else None
        self.read_prior = conv(self.prior.channels, prior_dim, kernel=1) if self.prior is not None else None
        self.stem = nn.Sequential(conv(3, w2, 2, 5), Residual(w2))
        self.down4 = nn.Sequential(conv(half, w4, 2), Residual(w4), Residual(w4))
        self.down8 = nn.Sequential(conv(w4, w8, 2), Residual(w8), Residual(w8))
        self.down16 = nn.Sequential(conv(w8 + 2, w16, 2), Residual(w16), Residual(w16, 2))
        self.down32 = nn.Sequential(conv(w16, w16, 2), Residual(w16))
        self.up16 = nn.Sequential(conv(2 * w16, w16), Residual(w16))
        self.up8 = nn.Sequential(conv(w16 + w8, w8), Residual(w8))
        self.up4 = nn.Sequential(conv(w8 + w4, 40), Residual(40))
        self.up2 = nn.Sequential(conv(40 + half, detail_dim), nn.Conv2d(detail_dim, detail_dim, 3, padding=1))
        self.to_f_p = nn.Conv2d(w8, out_dim, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x2 = self.stem(pixels)  # [B, ., H/2, W/2]
        if self.prior is not None and self.read_prior is not None:
            x2 = torch.cat([x2, self.read_prior(self.prior(pixels))], 1)
        x4 = self.down4(x2)  # [B, ., H/4, W/4]
        x8 = self.down8(x4)  # [B, ., H/8, W/8]
        x16 = self.down16(torch.cat([x8, self.coordinates(x8)], 1))  # [B, ., H/16, W/16]
        x32 = self.down32(x16)  # [B, ., H/32, W/32]
        y16 = self.up16(torch.cat([up(x32), x16], 1))
        y8 = self.up8(torch.cat([up(y16), x8], 1))
        y4 = self.up4(torch.cat([up(y8), x4], 1))
        f_detail = self.up2(torch.cat([up(y4), x2], 1))  # [B, detail_dim, H/2, W/2]
        return self.to_f_p(y8), f_detail

    @staticmethod
    def coordinates(x: Tensor) -> Tensor:
        """y and x in -1..1 on the grid of x: [B, C, h, w] -> [B, 2, h, w].

        f_p must know its place, as SAM's features do, for SPAM to align by place.
        """
        batch, _, height, width = x.shape
        y = torch.linspace(-1, 1, 2, device=x.device, dtype=x.dtype)  # corner values; interpolation follows any grid
        grid = torch.stack([y[:, None].expand(2, 2), y[None].expand(2, 2)])[None]
        return F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=True).expand(batch, -1, -1, -1)
