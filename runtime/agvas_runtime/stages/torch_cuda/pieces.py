"""Element-wise parts of the language model, as functions that torch may compile into one kernel each."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["PLAIN", "Pieces", "compiled"]


def add_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + y, and its root-mean-square norm: [B, L, D] each."""
    x = x + y
    return x, F.rms_norm(x, weight.shape, weight, eps)


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions: q [B, heads, n, d], k [B, kv heads, m, d]; cos and sin [m, d], of which q takes the last n."""
    return _turn(q, cos[-q.shape[2] :], sin[-q.shape[2] :]), _turn(k, cos, sin)


def gated(both: Tensor) -> Tensor:
    """silu(gate) * up, of [gate, up]: [B, L, 2F] -> [B, L, F]."""
    gate, up = both.chunk(2, -1)
    return F.silu(gate) * up


class Pieces(NamedTuple):
    """The three, as they are or compiled."""

    add_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] = add_norm
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = rotate
    gated: Callable[[Tensor], Tensor] = gated


PLAIN = Pieces()


def compiled() -> Pieces:
    """Compiled by torch at their first call, which needs Triton (or, on a CPU, a C++ compiler)."""
    return Pieces(
        torch.compile(PLAIN.add_norm, dynamic=False),
        torch.compile(PLAIN.rotate, dynamic=False),
        torch.compile(PLAIN.gated, dynamic=False),
    )


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
