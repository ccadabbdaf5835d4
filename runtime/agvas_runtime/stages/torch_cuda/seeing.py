"""Stages 1 and 3 as they are computed here: eq. 1 and 2 in the engine's dtype, eq. 4-7 in float32."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agvas_core.model.agvas import AgVas
from agvas_core.model.encoders.encoders import PixelFeatures
from agvas_core.model.encoders.lite_pyramid import LitePyramid
from agvas_core.model.encoders.sam import SamImageEncoder, by_offset, from_windows, to_windows
from agvas_core.model.spam import Spam, fold_linear_p

__all__ = ["Eyes", "FusedSam", "placed"]


# SAM's image encoder (eq. 1) without a bias of L x L numbers.
#
# The learned bias of query (y, x) and key (y', x') is ``q . rel_h[y - y'] + q . rel_w[x - x']``. Both terms are products of the query's with the
# key's place, so they belong inside the dot product: q' = [q, q . rel_h / s, q . rel_w / s] and k' = [k, one-hot(y'), one-hot(x')] with s the
# scale, and V padded with zeros to the same width. Exact, and a fused attention kernel takes it; 64 x 64 cells would need 2 x 16 heads x
# 16.8 M numbers otherwise.


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


def placed(model: AgVas, device: torch.device, dtype: torch.dtype) -> AgVas:
    """A copy of ``model`` on ``device``, whose parameters share memory with the model's own where they are there already in that form.

    Parameters get ``dtype`` except those of the decoder and of the small pixel encoders, which take differences of small numbers. Buffers
    stay as they are: normalisation, and positions whose angles would lose their period.
    """
    exact: list[nn.Module] = [model.refiner, model.agmd]
    if isinstance(model.pixel_encoder.backbone, LitePyramid):
        exact.append(model.pixel_encoder)
    kept = {id(parameter) for part in exact for parameter in part.parameters()}
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        there = parameter.detach().to(device, torch.float32 if id(parameter) in kept else dtype)
        memo[id(parameter)] = nn.Parameter(there, requires_grad=False)
    return copy.deepcopy(model, memo).to(device)


class Eyes:
    """f_s, f_p, f_align and the masks of a model that is on its device; it must not change afterwards."""

    def __init__(self, model: AgVas) -> None:
        self._model = model
        backbone: nn.Module = model.pixel_encoder.backbone
        self._backbone: Callable[[Tensor], Tensor | tuple[Tensor, Tensor]] = (
            FusedSam(backbone) if isinstance(backbone, SamImageEncoder) else backbone
        )
        self._dtype = next(backbone.parameters()).dtype
        self._norm = None if model.linear_p is None else model.linear_p.norm
        self._spam = None if model.linear_p is None or model.spam is None else fold_linear_p(model.linear_p, model.spam)

    def semantic(self, image: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> f_s [B, N, D]."""
        f_s: Tensor = self._model.semantic_encoder(image)
        return f_s

    def pixel(self, image: Tensor) -> PixelFeatures:
        """uint8 [B, H, W, 3] -> f_p [B, C, h, w] and finer features, if any."""
        encoder = self._model.pixel_encoder
        features = self._backbone(encoder.normalize(image).to(self._dtype))
        if encoder.adapter is not None:
            features = encoder.adapter(features)
        return PixelFeatures(features, None) if isinstance(features, Tensor) else PixelFeatures(*features)

    def align(self, f_s: Tensor, f_p: Tensor) -> Tensor:
        """f_s [B, N, D], f_p [B, C, h, w] -> f_align [B, N, D], or [B, 0, D] without SPAM."""
        if self._spam is None or self._norm is None:
            return f_s[:, :0]
        dtype = self._norm.weight.dtype
        cells = self._norm(f_p.to(dtype).flatten(2).transpose(1, 2))  # [B, hw, C]
        return _ask(self._spam, f_s.to(dtype), cells, (f_p.shape[2], f_p.shape[3]))

    def masks(self, anchors: Tensor, pixel: PixelFeatures) -> Tensor:
        """Anchor states [B, 3, D] -> logits float32 [B, 3, H', W']."""
        f_p, f_detail = pixel.f_p, pixel.f_detail
        return self._model.decode(anchors.float(), PixelFeatures(f_p.float(), None if f_detail is None else f_detail.float()))


def _ask(spam: Spam, f_s: Tensor, cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """``Spam.forward`` with a fused attention kernel in place of scores [B, heads, N, hw]."""

    def split(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], spam.heads, -1).transpose(1, 2)  # [B, heads, n, d]

    q, k, v = split(spam.to_q(spam.norm(f_s))), split(spam.to_k(cells)), split(spam.to_v(cells))
    place: Tensor | float = 0.0
    if spam.position is not None and spam.position_gain is not None and spam.place is not None:
        side = round(f_s.shape[1] ** 0.5)
        of_patches = spam.position(side, side).to(q.dtype)  # [1, N, inner]
        q = q + spam.position_gain * split(of_patches)
        k = k + split(spam.position(*grid).to(k.dtype))
        place = spam.place(of_patches)  # [1, N, D]
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # [B, N, inner]
    aligned: Tensor = spam.norm_out(spam.to_out(attended) + place)  # [B, N, D]
    return aligned
