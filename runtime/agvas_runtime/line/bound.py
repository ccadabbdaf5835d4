"""How many good parts will be rejected: exact bounds from a finite number of them, with no assumption on how their scores are spread.

Take the n good parts' scores in descending order, and put the threshold at the j-th. Of a further good part's score, drawn as these
were, the chance to lie above it is at most that of a Beta(j, n - j + 1) variable (Wilks 1941; ties only help). So the j that keeps this
below ``max_false_reject`` with ``confidence`` is fixed by n alone, before any score was looked at, and the bound is exact:

    P(share rejected > max_false_reject) <= P(Binomial(n, max_false_reject) <= j - 1) <= 1 - confidence

The same number is Clopper and Pearson's upper limit on j - 1 rejects among n. For one further part alone this is split conformal
prediction; here the promise is on the share of all further parts, given these n.
"""

import math
from functools import lru_cache

import numpy as np

from agvas_core.contract.errors import UsageError

__all__ = ["allowed_rejects", "binomial_at_most", "needed_parts", "upper_bound"]


def binomial_at_most(k: int, n: int, share: float) -> float:
    """P(Binomial(n, share) <= k), summed in logarithms."""
    if k < 0:
        return 0.0
    if k >= n or share <= 0.0:
        return 1.0
    if share >= 1.0:
        return 0.0
    terms = [_log_choose(n, i) + i * math.log(share) + (n - i) * math.log1p(-share) for i in range(k + 1)]
    return float(min(1.0, math.exp(float(np.logaddexp.reduce(terms)))))


def needed_parts(max_false_reject: float, confidence: float, *, choices: int = 1) -> int:
    """The least number of good parts with which any threshold can be promised."""
    _check(max_false_reject, confidence)
    return math.ceil(math.log((1.0 - confidence) / choices) / math.log1p(-max_false_reject))


@lru_cache(maxsize=256)
def allowed_rejects(n: int, max_false_reject: float, confidence: float, *, choices: int = 1) -> int | None:
    """How many of the n good parts may lie above the threshold; None where n is too few for any promise.

    Args:
        choices: among how many thresholds the caller will choose afterwards; each must hold with the rest of the doubt (Bonferroni).
    """
    _check(max_false_reject, confidence)
    doubt = (1.0 - confidence) / choices
    if binomial_at_most(0, n, max_false_reject) > doubt:
        return None
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if binomial_at_most(middle, n, max_false_reject) <= doubt else (low, middle)
    return low


@lru_cache(maxsize=256)
def upper_bound(rejects: int, n: int, confidence: float) -> float:
    """The largest share of rejects that n parts with so many of them leave possible (Clopper and Pearson, one-sided)."""
    if rejects >= n:
        return 1.0
    low, high = rejects / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_at_most(rejects, n, middle) > 1.0 - confidence else (low, middle)
    return high


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _check(max_false_reject: float, confidence: float) -> None:
    for name, value in (("max-false-reject", max_false_reject), ("confidence", confidence)):
        if not 0.0 < value < 1.0:
            raise UsageError(f"{name} is {value:g}; it is a share between 0 and 1, both excluded: 0.005 is one part in 200")
