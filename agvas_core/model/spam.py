"""Semantic-Pixel Alignment Module (paper 3.1, eq. 2): f_align = MHCA(Q=f_s, K=f_p, V=f_p)."""

from torch import Tensor, nn

__all__ = ["Spam"]


class Spam(nn.Module):
    """Multi-head cross attention from semantic tokens to pixel tokens.

    Args:
        dim: width D of both inputs.
        heads: must divide the inner width.
        bottleneck: inner width, ``dim`` if None. The paper leaves heads and inner width open; our 7B preset has 28 heads of 128.
        norm_out: a layer norm on f_align, for models trained from scratch (``SemanticEncoder`` says why).
    """

    def __init__(self, dim: int, heads: int, bottleneck: int | None = None, norm_out: bool = False) -> None:
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

    def forward(self, f_s: Tensor, f_p: Tensor) -> Tensor:
        """f_s [B, N, D], Linear_p(f_p) [B, hw, D] -> f_align [B, N, D]."""
        q = self._split(self.to_q(self.norm(f_s)))  # [B, heads, N, d]
        k = self._split(self.to_k(f_p))  # [B, heads, hw, d]
        v = self._split(self.to_v(f_p))  # [B, heads, hw, d]
        # Written out, not SDPA: the fp16 export of SDPA with these reshapes fails in TensorRT.
        attention = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(-1)  # [B, heads, N, hw]
        aligned: Tensor = self.norm_out(self.to_out((attention @ v).transpose(1, 2).flatten(2)))  # [B, N, D]
        return aligned

    def _split(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
