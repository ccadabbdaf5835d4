"""SAM's image encoder (eq. 1) without a bias of L x L numbers.

The learned bias of query (y, x) and key (y', x') is ``q . rel_h[y - y'] + q . rel_w[x - x']``. Both terms are products of the query's with the
key's place, so they belong inside the dot product: q' = [q, q . rel_h / s, q . rel_w / s] and k' = [k, one-hot(y'), one-hot(x')] with s the
scale, and V padded with zeros to the same width. Exact, and a fused attention kernel takes it; 64 x 64 cells would need 2 x 16 heads x
16.8 M numbers otherwise.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from agvas_core.model.sam_encoder import SamImageEncoder, by_offset, from_windows, to_windows

__all__ = ["FusedSam"]

_ALIGN = 8  # widths of heads that fused kernels take are multiples of it


class _Places(NamedTuple):
    """What one attention layer knows beforehand of a grid's places; d is the width of a head, s the side."""

    of_rows: Tensor
    """[s, d, s]: rel_h over the scale, by the query's row and the key's."""
    of_columns: Tensor
    """[s, d, s]."""
    keys: Tensor
    """[s^2, 2 s + padding]: one-hot row, one-hot column, zeros."""


class FusedSam:
    """The encoder's own weights, another order of computing.

    Args:
        encoder: on the device and in the dtype that it computes in; must not change afterwards.
    """

    def __init__(self, encoder: SamImageEncoder) -> None:
        self._encoder = encoder
        self._blocks: list[Any] = list(encoder.blocks)
        self._places = [_places_of(block.attn) for block in self._blocks]

    def __call__(self, image: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, H] -> f_p [B, C, H / patch_px, H / patch_px]."""
        encoder = self._encoder
        x = encoder.patch_embed(image) + encoder.pos_embed  # [B, g, g, dim]
        for block, places in zip(self._blocks, self._places, strict=True):
            normed, window = block.norm1(x), block.window
            if window is None:
                x = x + _attend(block.attn, places, normed)
            else:
                x = x + from_windows(_attend(block.attn, places, to_windows(normed, window)), window, x.shape[1])
            x = x + block.mlp(block.norm2(x))
        f_p: Tensor = encoder.neck(x.permute(0, 3, 1, 2))  # [B, C, g, g]
        return f_p


def _places_of(attention: Any) -> _Places:
    rel_h, rel_w, weight = attention.rel_pos_h, attention.rel_pos_w, attention.qkv.weight
    side, width = (len(rel_h) + 1) // 2, rel_h.shape[1]
    rows, columns = (
        (by_offset(table.detach().float(), side) / width**-0.5).transpose(1, 2).to(weight.dtype) for table in (rel_h, rel_w)
    )
    cells = torch.arange(side * side, device=weight.device)
    one_hot = [F.one_hot(place, side) for place in (cells // side, cells % side)]
    keys = F.pad(torch.cat(one_hot, 1), (0, -(width + 2 * side) % _ALIGN)).to(weight.dtype)
    return _Places(rows.contiguous(), columns.contiguous(), keys)


def _attend(attention: Any, places: _Places, x: Tensor) -> Tensor:
    """[B, s, s, dim] -> the same shape."""
    batch, side, _, dim = x.shape
    heads = attention.heads
    width = dim // heads
    qkv = attention.qkv(x).view(batch, side * side, 3, heads, width)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, s^2, d]
    grid = q.reshape(batch, heads, side, side, width)
    bias_h = grid @ places.of_rows  # [B, heads, y, x, y']
    bias_w = (grid.transpose(2, 3) @ places.of_columns).transpose(2, 3)  # [B, heads, y, x, x']
    padding = places.keys.shape[1] - 2 * side
    asking = torch.cat([q, bias_h.flatten(2, 3), bias_w.flatten(2, 3), q.new_zeros(*q.shape[:3], padding)], 3)
    asked = torch.cat([k, places.keys.expand(batch, heads, -1, -1)], 3)
    given = F.pad(v, (0, places.keys.shape[1]))
    attended = F.scaled_dot_product_attention(asking, asked, given, scale=width**-0.5)[..., :width]
    out: Tensor = attention.proj(attended.transpose(1, 2).reshape(batch, side, side, dim))
    return out
