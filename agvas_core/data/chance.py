"""Small draws that the generator makes everywhere."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

__all__ = ["chance", "count_between", "log_uniform", "pick"]

T = TypeVar("T")


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Between ``low`` and ``high``, every octave as likely as any other: sizes of defects come this way."""
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def count_between(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``, both included."""
    return int(rng.integers(low, high + 1))


def pick(rng: np.random.Generator, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
    """One of ``options``; ``weights`` need not add up to one."""
    if weights is None:
        return options[int(rng.integers(len(options)))]
    edges = np.cumsum(weights)
    return options[min(int(np.searchsorted(edges, rng.random() * edges[-1], side="right")), len(options) - 1)]
