"""Linear layers of the language model side by side in one product, in the weights' own dtype or in float8.

float8 (e4m3): weights have one scale a row of the output, kept; activations one scale a token, found as they come. The product accumulates in
float32 and gives bfloat16 (``torch._scaled_mm``, which GPUs have from compute capability 8.9 on).
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Dense", "Float8", "Product", "fused"]

_FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FLOAT8).max  # 448


class Product(Protocol):
    """x [..., K] -> [..., N]; ``rows`` takes a part of the N."""

    def __call__(self, x: Tensor, rows: slice = slice(None)) -> Tensor: ...


class Dense:
    """W x + b."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        return F.linear(x, self.weight[rows], None if self.bias is None else self.bias[rows])


class Float8:
    """W x + b with both factors in float8.

    Args:
        weight: [N, K], both multiples of 16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        largest = weight.abs().amax(1, keepdim=True).float().clamp(min=1e-12)
        self.scale = largest / _LARGEST  # [N, 1]
        self.weight = (weight.float() / self.scale).to(_FLOAT8)
        self.bias, self.dtype = bias, weight.dtype

    def __call__(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        flat = x.flatten(0, -2)  # [M, K]
        scale = flat.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / _LARGEST  # [M, 1]
        short = (flat.float() / scale).to(_FLOAT8)
        weight = self.weight[rows]
        out = torch._scaled_mm(
            short, weight.t(), scale_a=scale, scale_b=self.scale[rows].t().contiguous(), out_dtype=torch.bfloat16
        )
        out = out.to(self.dtype).view(*x.shape[:-1], len(weight))
        return out if self.bias is None else out + self.bias[rows]


def fused(layers: Sequence[nn.Linear], *, float8: bool = False) -> Product:
    """One product for all of ``layers``, in their order.

    In their own dtype they go on to work by themselves, on parts of the same memory; in float8 their weights are given up.
    """
    with torch.no_grad():
        weight = torch.cat([layer.weight for layer in layers])
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        if float8:
            short = Float8(weight, bias)
            for layer in layers:
                layer.weight.data = layer.weight.data.new_empty(0)
            return short
        at = 0
        for layer in layers:
            layer.weight.data = weight[at : at + len(layer.weight)]
            at += len(layer.weight)
        return Dense(weight, bias)
