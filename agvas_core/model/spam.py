"""Semantic-Pixel Alignment Module (paper 3.1, eq. 2): f_align = MHCA(Q=f_s, K=f_p, V=f_p)."""

import copy
import math

import torch
from torch import Tensor, nn

from agvas_core.model.encoders.encoders import LinearP
from agvas_core.model.encoders.positions import DensePosition

__all__ = ["Spam", "fold_linear_p"]


_POSITION_GAIN = 2.25  # at first: a query then sees mostly the cells under its patch


class Spam(nn.Module):
    """Multi-head cross attention from semantic tokens to pixel tokens.

    Args:
        dim: width D of both inputs.
        heads: must divide the inner width.
        bottleneck: inner width, ``dim`` if None. The paper leaves heads and inner width open; our 7B preset has 28 heads of 128.
        norm_out: a layer norm on f_align, for models trained from scratch (``SemanticEncoder`` says why).
        positions: queries and keys know their places in the image from the first step, and so do the aligned tokens. The paper has none:
            SigLIP's and SAM's features carry theirs. In a model trained from scratch they do not, and the attention stays uniform.
        interleaved: of the positions, as ``DensePosition`` says: every head sees sine and cosine.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        bottleneck: int | None = None,
        norm_out: bool = False,
        positions: bool = False,
        interleaved: bool = False,
    ) -> None:
        super().__init__()
        inner = bottleneck or dim
        if inner % heads:
            raise ValueError(f"SPAM's inner width is {inner}, not a multiple of its {heads} heads: change heads or bottleneck")
        self.heads = heads
        self.norm = nn.LayerNorm(dim)  # the pixel side is normalised before Linear_p
        self.to_q = nn.Linear(dim, inner)
        self.to_k = nn.Linear(dim, inner)
        self.to_v = nn.Linear(dim, inner)
        self.to_out = nn.Linear(inner, dim)
        self.norm_out = nn.LayerNorm(dim) if norm_out else nn.Identity()
        self.position = DensePosition(inner, interleaved) if positions else None
        self.position_gain = nn.Parameter(torch.full((heads, 1, 1), _POSITION_GAIN)) if positions else None
        self.place = nn.Linear(inner, dim) if positions else None

    def forward(self, f_s: Tensor, f_p: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """f_s [B, N, D], Linear_p(f_p) [B, hw, D] -> f_align [B, N, D]; ``grid`` is (h, w), needed for positions, and N is then a square."""
        q = self._split(self.to_q(self.norm(f_s)))  # [B, heads, N, d]
        k = self._split(self.to_k(f_p))  # [B, heads, hw, d]
        v = self._split(self.to_v(f_p))  # [B, heads, hw, d]
        place: Tensor | float = 0.0
        if self.position is not None and self.position_gain is not None and self.place is not None:
            assert grid is not None, "this SPAM was built with positions=True"
            side = math.isqrt(f_s.shape[1])
            of_patches = self.position(side, side)  # [1, N, inner]
            q = q + self.position_gain * self._split(of_patches)
            k = k + self._split(self.position(*grid))
            place = self.place(of_patches)  # [1, N, D]
        # Written out, not SDPA: the fp16 export of SDPA with these reshapes fails in TensorRT.
        attention = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(-1)  # [B, heads, N, hw]
        aligned: Tensor = self.norm_out(self.to_out((attention @ v).transpose(1, 2).flatten(2)) + place)  # [B, N, D]
        return aligned

    def _split(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


# Linear_p into SPAM (eq. 1, 2): two linear maps in a row are one. For export and fast inference.


def fold_linear_p(linear_p: LinearP, spam: Spam) -> Spam:
    """SPAM that takes C channels: Linear_p folded into its keys and values. Exact, and a third of the work at width 3584."""
    folded = copy.copy(spam)
    folded._modules = dict(spam._modules)  # the model's own SPAM stays as it is
    first = linear_p.linear
    for name in ("to_k", "to_v"):
        second = getattr(spam, name)
        both = nn.Linear(first.in_features, second.out_features).to(first.weight)
        with torch.no_grad():
            both.weight.copy_(second.weight.double() @ first.weight.double())
            both.bias.copy_(second.weight.double() @ first.bias.double() + second.bias)
        folded._modules[name] = both
    return folded
