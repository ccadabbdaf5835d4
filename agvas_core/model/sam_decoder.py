"""SAM's mask decoder, whose prompt is the state of [SEG]: the decoder of LISA, the paper's baseline (tables 1 and 2).

Our own module for the same reason as ``sam_encoder``, with the names of segment-anything's checkpoints. What a single mask does not
need (the three other masks, the predicted quality, the encoder of points and boxes) is left out.
"""

import torch
from torch import Tensor, nn

from agvas_core.contract.prompts import Anchor
from agvas_core.model.agmd import TwoWayTransformer, in_anchor_order
from agvas_core.model.encoders.positions import DensePosition
from agvas_core.model.encoders.sam import LayerNorm2d

__all__ = ["SamMaskDecoder"]

MASK_TOKENS = 4  # all four stand in the sequence; the first gives the single mask


class SamMaskDecoder(nn.Module):
    """Takes the place of AGMD, with its inputs and outputs.

    Args:
        dim: channels C of f_p and width of the tokens; SAM's 256.
    """

    def __init__(self, dim: int = 256, depth: int = 2, heads: int = 8, mlp_dim: int = 2048) -> None:
        super().__init__()
        self.position = DensePosition(dim)
        self.no_mask_embed = nn.Embedding(1, dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, dim)
        self.transformer = TwoWayTransformer(dim, depth, heads, mlp_dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, 2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, 2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList([_Mlp(dim, dim // 8)])

    def forward(self, h_anchor: Tensor, f_p: Tensor, f_detail: Tensor | None = None) -> Tensor:
        """h [B, 3, C], of which h_seg is read, and f_p [B, C, h, w] -> logits [B, 3, 4h, 4w], NOR and ANO zero."""
        batch, channels, height, width = f_p.shape
        prompt = h_anchor[:, Anchor.SEG, None]  # [B, 1, C]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(batch, -1, -1)
        image = f_p + self.no_mask_embed.weight.view(1, channels, 1, 1)
        z, pixels = self.transformer(
            torch.cat([own, prompt], 1), image.flatten(2).transpose(1, 2), self.position(*f_p.shape[-2:])
        )
        upscaled = self.output_upscaling(pixels.transpose(1, 2).reshape(batch, channels, height, width))  # [B, C/8, 4h, 4w]
        mask_token = self.output_hypernetworks_mlps[0](z[:, 1])[:, None]  # [B, 1, C/8]
        logits = (mask_token @ upscaled.flatten(2)).view(batch, 1, *upscaled.shape[-2:])
        return in_anchor_order(logits, (Anchor.SEG,))


class _Mlp(nn.Module):
    """Three layers with ReLU between."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, out_dim)])

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        out: Tensor = last(second(first(x).relu()).relu())
        return out
