"""Anchor-Guided Mask Decoder (paper 3.1, B.4, eq. 4-7): anchors and pixel features to the logits of three masks.

Sigmoid and softmax of eq. 6 and 7 are taken in ``fusion``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agvas_core.contract.anchors import Anchor
from agvas_core.model.positions import DensePosition
from agvas_core.model.two_way import TwoWayTransformer

__all__ = ["Agmd", "in_anchor_order"]


def in_anchor_order(logits: Tensor, anchors: Sequence[Anchor]) -> Tensor:
    """Logits [B, K, H, W] of the K ``anchors`` -> [B, 3, H, W]; anchors that the model lacks get zeros, a probability of a half."""
    if len(anchors) == len(Anchor):
        return logits
    nothing = torch.zeros_like(logits[:, 0])
    return torch.stack([logits[:, anchors.index(anchor)] if anchor in anchors else nothing for anchor in Anchor], 1)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of [B, C, H, W]: that of ``sam_encoder`` but for the names of its parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Agmd(nn.Module):
    """Two-way decoder with three learnable queries.

    Args:
        dim: channels C of f_p and width of the tokens.
        depth: L of eq. 5.
        upscale: 4 as in SAM, or 1 for the product at the resolution of f_p, as eq. 6 is written (the paper leaves it open: B.4
            multiplies with "the refined pixel features").
        mask_dim: channels of the product in eq. 6; SAM's dim / 8 when upscaling, dim otherwise.
        detail: add the pixel encoder's finer features ``f_detail`` [B, mask_dim, 4h, 4w] before the product.
        anchors: those that take part, in order; fewer than three for the ablations of table 3.
    """

    def __init__(
        self,
        dim: int = 256,
        depth: int = 2,
        heads: int = 8,
        mlp_dim: int = 2048,
        upscale: int = 4,
        mask_dim: int | None = None,
        detail: bool = False,
        anchors: Sequence[Anchor] = tuple(Anchor),
    ) -> None:
        super().__init__()
        if upscale not in (1, 4):
            raise ValueError(f"upscale is {upscale}; AGMD knows 4 (as SAM) and 1 (eq. 6 as written)")
        if detail and upscale == 1:
            raise ValueError("detail needs upscale=4: finer features have no place in a mask at the resolution of f_p")
        out_dim = mask_dim or (dim // 8 if upscale == 4 else dim)
        self.anchors = tuple(anchors)
        self.t_learn = nn.Parameter(torch.randn(len(anchors), dim) * 0.02)  # t_nor, t_ano, t_seg: T_learn of eq. 4
        self.position = DensePosition(dim)
        self.bi_attn = TwoWayTransformer(dim, depth, heads, mlp_dim)
        self.upscale = (
            nn.Sequential(
                nn.ConvTranspose2d(dim, dim // 4, 2, 2),
                LayerNorm2d(dim // 4),
                nn.GELU(),
                nn.ConvTranspose2d(dim // 4, out_dim, 2, 2),
            )
            if upscale == 4
            else nn.Identity()
            if out_dim == dim
            else nn.Conv2d(dim, out_dim, 1)
        )
        self.merge = nn.Conv2d(out_dim, out_dim, 3, padding=1) if detail else None
        self.to_mask = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out_dim))
            for _ in anchors
        )
        self.bias = nn.Parameter(
            torch.zeros(len(anchors))
        )  # not in the paper: lets a mask be empty without a feature that says so

    def forward(self, h_anchor: Tensor, f_p: Tensor, f_detail: Tensor | None = None) -> Tensor:
        """h [B, 3, C], f_p [B, C, h, w], f_detail [B, C', 4h, 4w] -> mask logits [B, 3, 4h, 4w] in anchor order.

        With ``upscale=1`` the logits are [B, 3, h, w].
        """
        batch, channels, height, width = f_p.shape
        if len(self.anchors) < len(Anchor):
            h_anchor = h_anchor[:, list(self.anchors)]  # [B, K, C]
        z0 = torch.cat([self.t_learn.expand(batch, -1, -1), h_anchor], 1)  # eq. 4: [B, 6, C]
        z, pixels = self.bi_attn(z0, f_p.flatten(2).transpose(1, 2), self.position(height, width))  # eq. 5: [B, 6, C], [B, hw, C]
        f_out = self.upscale(pixels.transpose(1, 2).reshape(batch, channels, height, width))  # [B, C', 4h, 4w]
        if self.merge is not None:
            assert f_detail is not None, "this AGMD was built with detail=True"
            f_out = self.merge(nn.functional.gelu(f_out + f_detail))
        elif f_out.shape[-1] != width:  # SAM's last step of upscaling, so only where there was one
            f_out = nn.functional.gelu(f_out)
        t_out = torch.stack([mlp(z[:, i]) for i, mlp in enumerate(self.to_mask)], 1)  # [B, 3, C']
        logits: Tensor = (t_out @ f_out.flatten(2)).view(
            batch, len(self.anchors), *f_out.shape[-2:]
        )  # eq. 6, 7 before sigmoid and softmax
        return in_anchor_order(logits + self.bias.view(1, len(self.anchors), 1, 1), self.anchors)
