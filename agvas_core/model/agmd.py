"""Anchor-Guided Mask Decoder (paper 3.1, B.4, eq. 4-7): anchors and pixel features to the logits of three masks.

Sigmoid and softmax of eq. 6 and 7 are taken in ``fusion``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agvas_core.contract.prompts import Anchor
from agvas_core.model.encoders.positions import DensePosition

__all__ = ["Agmd", "TokenRefiner", "TwoWayTransformer", "in_anchor_order"]


# Bidirectional cross-attention blocks (paper 3.1, B.4, eq. 5): Z_L, f'_p = BiAttn^L(Z_0, f_p).
#
# The blocks of SAM's mask decoder, and its names of parameters.


class Attention(nn.Module):
    """Multi-head attention whose inner width is ``dim // downsample``, as in SAM."""

    def __init__(self, dim: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        if inner % heads:
            raise ValueError(f"attention has inner width {inner}, not a multiple of its {heads} heads: change heads or dim")
        self.heads = heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, n, C], k and v [B, m, C] -> [B, n, C]."""
        q, k, v = self._split(self.q_proj(q)), self._split(self.k_proj(k)), self._split(self.v_proj(v))
        attention = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(-1)  # [B, heads, n, m]
        out: Tensor = self.out_proj((attention @ v).transpose(1, 2).flatten(2))  # [B, n, C]
        return out

    def _split(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


class Mlp(nn.Module):
    """lin1, ReLU, lin2."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin2(self.lin1(x).relu())
        return out


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, then to the pixels; an MLP; then the pixels attend to the tokens."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, downsample: int, skip_first_pe: bool) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, heads, downsample)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, heads, downsample)
        self.norm4 = nn.LayerNorm(dim)
        self.skip_first_pe = skip_first_pe

    def forward(self, z: Tensor, f_p: Tensor, z_pe: Tensor, f_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens z and their positions z_pe [B, n, C], pixels f_p [B, hw, C] and theirs f_pe [1, hw, C] -> both, updated."""
        if self.skip_first_pe:  # the tokens' positions are Z_0 itself: in the first block they would be added to themselves
            z = self.norm1(self.self_attn(z, z, z))
        else:
            q = z + z_pe
            z = self.norm1(z + self.self_attn(q, q, z))
        z = self.norm2(z + self.cross_attn_token_to_image(z + z_pe, f_p + f_pe, f_p))
        z = self.norm3(z + self.mlp(z))
        f_p = self.norm4(f_p + self.cross_attn_image_to_token(f_p + f_pe, z + z_pe, z))
        return z, f_p


class TwoWayTransformer(nn.Module):
    """``depth`` two-way blocks and SAM's last attention from tokens to pixels."""

    def __init__(self, dim: int, depth: int, heads: int, mlp_dim: int, downsample: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, heads, mlp_dim, downsample, skip_first_pe=i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(dim, heads, downsample)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, z0: Tensor, f_p: Tensor, f_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Z_0 [B, n, C], f_p [B, hw, C] and its positions [1, hw, C] -> Z_L [B, n, C], f'_p [B, hw, C]."""
        z = z0
        for layer in self.layers:
            z, f_p = layer(z, f_p, z0, f_pe)
        z = self.norm_final_attn(z + self.final_attn_token_to_image(z + z0, f_p + f_pe, f_p))
        return z, f_p


def in_anchor_order(logits: Tensor, anchors: Sequence[Anchor]) -> Tensor:
    """Logits [B, K, H, W] of the K ``anchors`` -> [B, 3, H, W]; anchors that the model lacks get zeros, a probability of a half."""
    if len(anchors) == len(Anchor):
        return logits
    nothing = torch.zeros_like(logits[:, 0])
    return torch.stack([logits[:, anchors.index(anchor)] if anchor in anchors else nothing for anchor in Anchor], 1)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of [B, C, H, W]: that of ``sam_encoder`` except the names of its parameters."""

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
        upscale: 4 as in SAM, or 1 for the product at the resolution of f_p (the paper leaves it open: B.4 multiplies with "the refined
            pixel features").
        mask_dim: channels of the product in eq. 6; SAM's dim / 8 when upscaling, dim otherwise.
        literal: eq. 6 and 7 as they are written: the product of t' and f'_p itself, without SAM's MLP for each token and without a bias.
            It needs ``upscale=1`` and no ``mask_dim``.
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
        literal: bool = False,
        anchors: Sequence[Anchor] = tuple(Anchor),
    ) -> None:
        super().__init__()
        if upscale not in (1, 4):
            raise ValueError(f"upscale is {upscale}; AGMD knows 4 (as SAM) and 1 (eq. 6 as written)")
        if detail and upscale == 1:
            raise ValueError("detail needs upscale=4: finer features have no place in a mask at the resolution of f_p")
        if literal and (upscale != 1 or mask_dim not in (None, dim)):
            raise ValueError("literal multiplies t' with f'_p as it is: set upscale = 1 and leave mask_dim out")
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
            nn.Identity()
            if literal
            else nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out_dim))
            for _ in anchors
        )
        # Not in the paper: lets a mask be empty without a feature that says so.
        self.bias = None if literal else nn.Parameter(torch.zeros(len(anchors)))

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
        if self.bias is not None:
            logits = logits + self.bias.view(1, len(self.anchors), 1, 1)
        return in_anchor_order(logits, self.anchors)


# Token Refiner (paper 3.1, B.4): two linear layers, shared by the three anchors.


class TokenRefiner(nn.Module):
    """[B, 3, D] -> [B, 3, C]: anchor states into the decoder's space.

    The paper names two linear layers of 3584 -> 3584 -> 256; we put a ReLU between them (as LISA does), since two linear maps
    in a row are one.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out_dim))

    def forward(self, anchor_states: Tensor) -> Tensor:
        h: Tensor = self.layers(anchor_states)  # [B, 3, C]
        return h
