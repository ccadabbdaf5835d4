"""Joints 1 and 3 as they are computed here: eq. 1 and 2 in the engine's dtype, eq. 4-7 in float32."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agvas_core.model.agvas import AgVas
from agvas_core.model.encoders import PixelFeatures
from agvas_core.model.folding import fold_linear_p
from agvas_core.model.nano_encoder import NanoEncoder
from agvas_core.model.sam_encoder import SamImageEncoder
from agvas_core.model.spam import Spam
from agvas_runtime.stages.torch_cuda.sam import FusedSam

__all__ = ["Eyes", "placed"]


def placed(model: AgVas, device: torch.device, dtype: torch.dtype) -> AgVas:
    """A copy of ``model`` on ``device``, whose parameters share memory with the model's own where they are there already in that form.

    Parameters get ``dtype`` but for those of the decoder and of nano's pixel encoder, which are small and take differences of small numbers. Buffers
    stay as they are: normalisation, and positions whose angles would lose their period.
    """
    exact: list[nn.Module] = [model.refiner, model.agmd]
    if isinstance(model.pixel_encoder.backbone, NanoEncoder):
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
        f_p, f_detail = pixel
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
