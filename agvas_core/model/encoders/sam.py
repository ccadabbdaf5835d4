"""SAM's image encoder, the default pixel encoder F_p (paper 3.1, eq. 1; B.4).

A plain ViT whose blocks attend inside windows, except four that see the whole grid, with decomposed relative positions.
Our own module, because ``segment_anything`` cannot be imported without torchvision; names of parameters are those of its
checkpoints; ``sam_checkpoint.py`` loads them, and those of transformers' ``SamModel`` as well.

Precision: in float16 SAM's layer norms and attention overflow and the masks are quietly wrong. Each norm is a module of its
own (``nn.LayerNorm`` or :class:`LayerNorm2d`), so that an export can keep exactly these in float32.
"""

from typing import Final, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agvas_core.contract.errors import UsageError

__all__ = ["SAM_SIZES", "LayerNorm2d", "SamImageEncoder", "SamSize", "by_offset", "from_windows", "to_windows"]

NORM_EPS: Final = 1e-6  # segment-anything, every norm of the encoder


class SamSize(TypedDict):
    """What differs between the published encoders, as arguments of :class:`SamImageEncoder`."""

    dim: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


SAM_SIZES: Final[dict[str, SamSize]] = {
    "vit_b": {"dim": 768, "depth": 12, "heads": 12, "global_blocks": (2, 5, 8, 11)},
    "vit_l": {"dim": 1024, "depth": 24, "heads": 16, "global_blocks": (5, 11, 17, 23)},
    "vit_h": {"dim": 1280, "depth": 32, "heads": 16, "global_blocks": (7, 15, 23, 31)},  # the paper's
}


class SamImageEncoder(nn.Module):
    """Normalised pixels to features at one ``patch_px``-th of their size."""

    def __init__(
        self,
        *,
        image_px: int = 1024,
        patch_px: int = 16,
        dim: int = 1280,
        depth: int = 32,
        heads: int = 16,
        window: int = 14,
        global_blocks: tuple[int, ...] = (7, 15, 23, 31),
        out_dim: int = 256,
        mlp_ratio: float = 4,
        qkv_bias: bool = True,
    ) -> None:
        """``window``: side of a window in patches. ``global_blocks``: which blocks see the whole grid instead."""
        super().__init__()
        if image_px % patch_px:
            raise UsageError(f"image_px={image_px} is no multiple of patch_px={patch_px}: try {image_px // patch_px * patch_px}")
        if dim % heads:
            raise UsageError(f"dim={dim} cannot be shared by {heads} heads: make it a multiple")
        if any(index not in range(depth) for index in global_blocks):
            raise UsageError(f"global_blocks={global_blocks} name blocks that do not exist: depth={depth} has 0..{depth - 1}")
        self.image_px = image_px
        self.out_dim = out_dim
        grid = image_px // patch_px
        self.patch_embed = _PatchEmbed(dim, patch_px)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, dim))
        self.blocks = nn.ModuleList(
            _Block(
                dim, heads, grid=grid, window=None if index in global_blocks else window, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias
            )
            for index in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(dim, out_dim, kernel_size=1, bias=False),
            LayerNorm2d(out_dim),
            nn.Conv2d(out_dim, out_dim, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_dim),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Encodes a batch.

        Args:
            image: float [B, 3, image_px, image_px], normalised with the mean and std of the checkpoint's view.

        Returns:
            Features, float [B, out_dim, image_px / patch_px, image_px / patch_px].
        """
        if image.shape[1:] != (3, self.image_px, self.image_px):
            raise UsageError(
                f"image is {list(image.shape)}; this encoder needs [B, 3, {self.image_px}, {self.image_px}]: "
                f"resize the view, or build it with image_px={image.shape[-1]} and load with resize=True"
            )
        x = self.patch_embed(image) + self.pos_embed  # [B, g, g, dim]
        for block in self.blocks:
            x = block(x)
        f_p: Tensor = self.neck(x.permute(0, 3, 1, 2))  # [B, out_dim, g, g]
        return f_p


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of [B, C, H, W]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype."""
        # Through channels-last, so that exporters see one LayerNormalization and not its nine pieces.
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, NORM_EPS)
        return x.permute(0, 3, 1, 2)


class _PatchEmbed(nn.Module):
    def __init__(self, dim: int, patch_px: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_px, stride=patch_px)

    def forward(self, image: Tensor) -> Tensor:
        patches: Tensor = self.proj(image)  # [B, dim, g, g]
        return patches.permute(0, 2, 3, 1)  # [B, g, g, dim]


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin2(F.gelu(self.lin1(x)))
        return out


class _Block(nn.Module):
    """Attention and MLP, each after its norm and beside its residual; attention inside windows unless ``window`` is None."""

    def __init__(self, dim: int, heads: int, *, grid: int, window: int | None, mlp_ratio: float, qkv_bias: bool) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = _Attention(dim, heads, side=window or grid, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = _Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        if self.window is None:
            x = x + self.attn(normed)
        else:
            side = x.shape[1]
            x = x + from_windows(self.attn(to_windows(normed, self.window)), self.window, side)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _Attention(nn.Module):
    """Multi-head self-attention on a square grid, with a learned bias per offset in height and per offset in width."""

    def __init__(self, dim: int, heads: int, *, side: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))

    def forward(self, x: Tensor) -> Tensor:
        batch, side, _, dim = x.shape
        qkv = self.qkv(x).reshape(batch, side * side, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, side^2, d]

        # Written out: as scaled_dot_product_attention the float16 export cannot be traced. The bias is added, which is the
        # fastest form on a CPU; it costs a side^2 x side^2 tensor.
        scores = (q * self.scale) @ k.transpose(-2, -1)  # [B, heads, side^2, side^2]
        q_grid = q.reshape(batch, self.heads, side, side, dim // self.heads)
        bias_h = q_grid @ by_offset(self.rel_pos_h, side).transpose(1, 2)  # [B, heads, h, w, key h]
        bias_w = (q_grid.transpose(2, 3) @ by_offset(self.rel_pos_w, side).transpose(1, 2)).transpose(2, 3)  # [..., key w]
        scores = scores.reshape(batch, self.heads, side, side, side, side) + bias_h[..., :, None] + bias_w[..., None, :]
        weights = scores.reshape(batch, self.heads, side * side, side * side).softmax(dim=-1)

        attended = (weights @ v).permute(0, 2, 1, 3)  # [B, side^2, heads, d]
        # The copy is made here by name: left to reshape(), the float16 export fails with "Cannot view a tensor".
        attended = attended.clone(memory_format=torch.contiguous_format).reshape(batch, side, side, dim)
        out: Tensor = self.proj(attended)
        return out


def by_offset(table: Tensor, side: int) -> Tensor:
    """[2 side - 1, d], one row per offset, to [side, side, d]: row i - j + side - 1 at query i and key j."""
    index = torch.arange(side, device=table.device)
    return table[index[:, None] - index[None, :] + side - 1]


def to_windows(x: Tensor, window: int) -> Tensor:
    """[B, g, g, C], padded with zeros at the right and the bottom, to [B * windows, window, window, C]."""
    batch, grid, _, dim = x.shape
    padding = -grid % window
    x = F.pad(x, (0, 0, 0, padding, 0, padding))  # the padding is attended to, as in SAM
    n = (grid + padding) // window
    x = x.reshape(batch, n, window, n, window, dim).permute(0, 1, 3, 2, 4, 5)
    return x.clone(memory_format=torch.contiguous_format).reshape(batch * n * n, window, window, dim)


def from_windows(x: Tensor, window: int, grid: int) -> Tensor:
    """The way back, [B * windows, window, window, C] to [B, g, g, C]."""
    n = -(-grid // window)
    dim = x.shape[-1]
    x = x.reshape(-1, n, n, window, window, dim).permute(0, 1, 3, 2, 4, 5)
    x = x.clone(memory_format=torch.contiguous_format).reshape(-1, n * window, n * window, dim)
    return x[:, :grid, :grid]
