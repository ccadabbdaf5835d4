"""Thresholds from good parts, with a promise on how many good parts they will reject.

Each part becomes one number per least area: the reject score that the recipe's rules give it with that area. ``bound`` says how many
of the n good parts may lie above the threshold, and the threshold is the score of the next one. Several least areas are tried, and each
has to keep the promise with its share of the doubt, so that choosing among them costs nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.decision import OperatingPoint
from agvas_core.contract.errors import UsageError

__all__ = ["Calibrated", "Scores", "allowed_rejects", "binomial_at_most", "calibrate", "needed_parts", "upper_bound"]


# How many good parts will be rejected: exact bounds from a finite number of them, with no assumption on how their scores are spread.
#
# Take the n good parts' scores in descending order, and put the threshold at the j-th. Of a further good part's score, drawn as these
# were, the chance to lie above it is at most that of a Beta(j, n - j + 1) variable (Wilks 1941; ties only help). So the j that keeps this
# below ``max_false_reject`` with ``confidence`` is fixed by n alone, before any score was looked at, and the bound is exact:
#
#     P(share rejected > max_false_reject) <= P(Binomial(n, max_false_reject) <= j - 1) <= 1 - confidence
#
# The same number is Clopper and Pearson's upper limit on j - 1 rejects among n. For one further part alone this is split conformal
# prediction; here the promise is on the share of all further parts, given these n.


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


Float = NDArray[np.float64]

LEAST_THRESHOLD = 1e-4
"""Good parts whose scores are all 0 leave room for any threshold; a map's noise must stay below it."""


@dataclass(frozen=True)
class Scores:
    """Reject scores of some parts, [parts, areas]: one column for each least area."""

    values: Float
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def columns(self, which: slice) -> "Scores":
        """The same parts with some of the least areas."""
        return Scores(self.values[:, which], self.names)


@dataclass(frozen=True)
class Calibrated:
    """What the good parts led to."""

    seed_threshold: float
    threshold: float
    """That draws the outlines: the one there was, or the seed threshold where that is lower."""
    min_area_px: float
    false_rejects: int
    """Good parts of this calibration above the threshold."""
    false_reject_bound: float
    """Upper bound of the share of all good parts, at the confidence that was asked for."""
    escapes: int | None
    """Bad parts below the threshold; None where none were given."""
    column: int
    """Of the chosen least area."""
    missing: int
    """Good parts that are too few for the promise that was asked for; 0 where it holds."""


def calibrate(
    good: Scores,
    areas_px: Sequence[float],
    point: OperatingPoint,
    *,
    max_false_reject: float,
    confidence: float,
    bad: Scores | None = None,
) -> Calibrated:
    """Chooses the seed threshold and the least area.

    With bad parts, the least area at which the fewest escape; without, the smallest at which the threshold does not have to lie above
    the bundle's own, or else the one with the lowest threshold. Where there are too few good parts for the promise, the threshold is
    the highest score of them, ``missing`` says how many more are needed, and the bound is the one that holds.

    Args:
        good, bad: their columns belong to ``areas_px``, which rises.
        point: its ``threshold`` draws the outlines, and comes down to the seed threshold where that is lower; its ``seed_threshold`` is
            what one would use without calibration.

    Raises:
        UsageError: no good part, or a share that is none.
    """
    n, choices = len(good), len(areas_px)
    if n == 0:
        raise UsageError("there is no good part: give pictures of good parts with --good DIR")
    allowed = allowed_rejects(n, max_false_reject, confidence, choices=choices)
    missing = 0 if allowed is not None else needed_parts(max_false_reject, confidence, choices=choices) - n
    ordered = np.sort(good.values, axis=0)[::-1]  # [n, areas], highest first
    # A part is rejected where its score lies above the threshold, so the threshold may be a score itself. One below the outlines' brings
    # these down with it, and its promise holds all the same: there, scores are the frames' own, and no rule rejects a frame of less.
    thresholds = np.clip(ordered[allowed or 0], LEAST_THRESHOLD, np.nextafter(1.0, 0.0))
    escapes = (bad.values <= thresholds).sum(axis=0) if bad is not None and len(bad) else None
    if escapes is not None:
        column = int(np.lexsort((thresholds, escapes))[0])
    else:
        low_enough = np.flatnonzero(thresholds <= point.seed_threshold)
        column = int(low_enough[0]) if len(low_enough) else int(np.argmin(thresholds))
    rejects = int((good.values[:, column] > thresholds[column]).sum())
    doubt = (1.0 - confidence) / choices
    return Calibrated(
        seed_threshold=float(thresholds[column]),
        threshold=point.threshold if point.image_share else min(point.threshold, float(thresholds[column])),
        min_area_px=float(areas_px[column]),
        false_rejects=rejects,
        # The promise is on the rank that was fixed beforehand; that fewer lie above (ties) does not make it better.
        false_reject_bound=upper_bound(allowed or 0, n, 1.0 - doubt),
        escapes=None if escapes is None else int(escapes[column]),
        column=column,
        missing=missing,
    )
