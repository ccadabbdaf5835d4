"""Bidirectional cross-attention blocks (paper 3.1, B.4, eq. 5): Z_L, f'_p = BiAttn^L(Z_0, f_p).

The blocks of SAM's mask decoder, and its names of parameters.
"""

from torch import Tensor, nn

__all__ = ["TwoWayTransformer"]


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
