"""From the good images' maps to one scale, thresholds, image limits and what can be promised.

Every value of a good image used here was made with a memory bank that has nothing of that image.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agvas.fitting.bank import nearest
from agvas_core.contract.product import (
    CatchRate,
    MapScale,
    PaintedDefect,
    Promise,
    RangeLimit,
)
from agvas_runtime.line.calibration.calibration import allowed_rejects, needed_parts, upper_bound

__all__ = [
    "CONFIDENCE",
    "IMAGE_SHARE",
    "are_mixed",
    "catch_rates",
    "image_limits",
    "map_scale",
    "more_images",
    "outliers",
    "promise",
    "reliable_length",
    "threshold_of",
]

Float = NDArray[np.float32]

IMAGE_SHARE: Final = 0.005
"""Of the pixels: the mean of so many of the highest is the score of an image."""
CONFIDENCE: Final = 0.95
AIM: Final = 0.05
"""False rejects that the default threshold promises, where there are enough good images."""
TAIL: Final = 0.01
"""Share of good cells beyond which rarity is extrapolated, as if values fell off exponentially."""
KNOTS: Final = 41
POOLED: Final = 2_000_000
"""Values of good maps that are sorted at most."""
LEAST_EXCESS: Final = 0.01
"""Of a map, that its tail falls off with at least: images that are equal to the last bit have no tail of their own."""
FEW: Final = 10
"""With fewer good images the highest score is too low a threshold: the next good part may well reach it."""
SIGMAS: Final = 2.0
STRICT_SIGMAS: Final = 4.0
LEAST_SIGMA: Final = 0.1
"""Of the logarithm of good scores: fewer images than a handful say little about it."""


def map_scale(maps: Sequence[Float]) -> MapScale:
    """The rarity of a map's values, of good images' maps on the grid."""
    step = max(1, sum(each.size for each in maps) // POOLED)
    pool = np.sort(np.concatenate([each.ravel()[::step] for each in maps]).astype(np.float64))
    shares = np.exp(np.linspace(0.0, math.log(TAIL), KNOTS))  # 1 to TAIL
    knots = np.quantile(pool, 1.0 - shares)
    tail = pool[pool > knots[-1]] - knots[-1]
    excess = max(float(tail.mean()) if len(tail) else 0.0, LEAST_EXCESS)
    keep = np.concatenate([np.diff(knots) > 1e-9, [True]])  # of equal values the rarest counts
    values, rarity = knots[keep], -np.log(shares)[keep]
    if len(values) < 2:
        values, rarity = np.array([values[-1] - LEAST_EXCESS, values[-1]]), np.array([0.0, rarity[-1]])
    return MapScale(values=tuple(map(float, values)), rarity=tuple(map(float, rarity)), slope=1.0 / excess)


def threshold_of(scores: Sequence[float], *, strict: bool = False) -> float:
    """The image threshold 0..1 of good images' scores 0..1.

    With enough images, the lowest score that promises ``AIM``; with fewer, the highest one; with a handful, or where it is to be
    strict, at least that, and as far out as the spread of the scores asks for.
    """
    highest = max(scores)
    allowed = allowed_rejects(len(scores), AIM, CONFIDENCE)
    if not strict and allowed is not None:
        return sorted(scores, reverse=True)[allowed]
    if not strict and len(scores) >= FEW:
        return highest
    odds = np.log(_odds(scores))
    spread = max(float(odds.std(ddof=1)) if len(odds) > 1 else 0.0, LEAST_SIGMA)
    return max(highest, _score(math.exp(float(odds.mean()) + (STRICT_SIGMAS if strict else SIGMAS) * spread)))


def _odds(scores: Sequence[float]) -> NDArray[np.float64]:
    clipped = np.clip(np.asarray(scores, np.float64), 1e-6, 1 - 1e-6)
    return clipped / (1 - clipped)


def _score(odds: float) -> float:
    return min(odds / (1 + odds), 1 - 1e-4)


def ranked_threshold(scores: Sequence[float], max_false_reject: float) -> tuple[float | None, int]:
    """The threshold that keeps a promise, by rank, and how many good images are missing for it; None where some are."""
    allowed = allowed_rejects(len(scores), max_false_reject, CONFIDENCE)
    if allowed is None:
        return None, needed_parts(max_false_reject, CONFIDENCE) - len(scores)
    ordered = sorted(scores, reverse=True)
    return min(max(ordered[allowed], 1e-4), 1 - 1e-4), 0


def promise(scores: Sequence[float], threshold: float, *, asked: float | None, missing: int) -> Promise:
    """What these good images, judged at ``threshold``, say about all others."""
    rejects = sum(score > threshold for score in scores)
    return Promise(
        good_images=len(scores),
        false_rejects=rejects,
        confidence=CONFIDENCE,
        bound=upper_bound(rejects, len(scores), CONFIDENCE),
        asked=asked,
        missing=missing,
    )


OUTLIER_SIGMAS: Final = 6.0
OUTLIER_RATIO: Final = 1.5
MOST_OUTLIERS: Final = 0.1
LEAST_FOR_OUTLIERS: Final = 5


def outliers(highest: Sequence[float]) -> list[int]:
    """Good images whose maps reach far higher than those of all others; none where they are many, for then parts differ.

    Args:
        highest: what each image's distances reach, judged by a bank without it.
    """
    if len(highest) < LEAST_FOR_OUTLIERS:
        return []
    values = np.log(np.maximum(highest, 1e-6))
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    far = np.flatnonzero(values > middle + max(OUTLIER_SIGMAS * spread, math.log(OUTLIER_RATIO)))
    return far.tolist() if len(far) <= max(1.0, MOST_OUTLIERS * len(highest)) else []


MIXED_SHARE: Final = 0.65
MIXED_RATIO: Final = 3.3
MIXED_IMAGES, MIXED_CELLS = 8, 400


def are_mixed(distances: Sequence[Float], cells: Sequence[Float], rng: np.random.Generator) -> bool:
    """Whether good images show different products: their cells are as far from each other's as those of unlike things.

    Images of one product reach 0.55 of a cell's length, and 2.8 times the distance between cells of the same image; images of different products
    0.76 and 4.2 at least.

    Args:
        distances: deep distances of each image's cells to a bank without it.
        cells: of each image, deep channels [N, C].
    """
    if len(cells) < 2:
        return False
    lengths, far, own = [], [], []
    for each, there in list(zip(distances, cells, strict=True))[:MIXED_IMAGES]:
        order = rng.permutation(len(there))
        some, rest = there[order[:MIXED_CELLS]], there[order[MIXED_CELLS:]]
        if not len(rest):
            return False
        lengths.append(float(np.sqrt(np.square(some).sum(1)).mean()))
        far.append(float(each.mean()))
        own.append(max(float(nearest(some, rest).mean()), 1e-6))
    shares, ratios = np.array(far) / np.maximum(lengths, 1e-6), np.array(far) / np.array(own)
    return bool(np.median(shares) > MIXED_SHARE and np.median(ratios) > MIXED_RATIO)


class MoreImages(NamedTuple):
    """So many good images, none of them rejected, buy this bound."""

    images: int
    bound: float


def more_images(have: int) -> list[MoreImages]:
    """What more good images would promise."""
    wanted = [count for count in (10, 20, 30, 60, 100, 200, 300, 600, 1000) if count > have][:5]
    return [MoreImages(count, upper_bound(0, count, CONFIDENCE)) for count in wanted]


SIZES_PX: Final = (0.0, 0.02, 0.06, 0.18)
"""Edges of the ranges of lengths, as shares of the image's longer side."""
ALL: Final = "all"
RELIABLE: Final = 0.9
LEAST_PAINTED: Final = 8


def catch_rates(painted: Sequence[PaintedDefect], longer_side_px: float) -> tuple[CatchRate, ...]:
    """Found of painted defects by kind and range of lengths."""
    edges = [round(share * longer_side_px) for share in SIZES_PX]
    rates = []
    for kind in (ALL, *sorted({defect.kind for defect in painted})):
        for low, high in zip(edges, [*edges[1:], None], strict=True):
            those = [
                defect
                for defect in painted
                if kind in (ALL, defect.kind) and defect.length_px >= low and (high is None or defect.length_px < high)
            ]
            if those:
                found = sum(defect.found for defect in those)
                rates.append(CatchRate(kind=kind, from_px=low, to_px=high, painted=len(those), found=found))
    return tuple(rates)


def reliable_length(painted: Sequence[PaintedDefect]) -> float | None:
    """The length in px from which on nine of ten painted defects are found; None where there is none."""
    ordered = sorted(painted, key=lambda defect: defect.length_px, reverse=True)
    best, found = None, 0
    for count, defect in enumerate(ordered, 1):
        found += defect.found
        if count >= LEAST_PAINTED and found >= RELIABLE * count:
            best = defect.length_px
    return best


DARKER, BRIGHTER, LEVELS = 0.75, 1.25, (2 / 255, 8 / 255)
CLIPPED_MORE: Final = 0.2
SOFTER: Final = 0.35
SHARPER: Final = 20.0
SQUEEZED: Final = 1.6
FARTHER: Final = 1.5


def image_limits(facts: Sequence[Mapping[str, float]]) -> tuple[RangeLimit, ...]:
    """Limits of a frame's facts, wide around what the good images have: a defective part is to be judged, another scene is not."""
    limits = []
    for fact in facts[0]:
        values = [each[fact] for each in facts]
        low, high = min(values), max(values)
        least, most = {
            "brightness": (DARKER * low - LEVELS[0], BRIGHTER * high + LEVELS[1]),
            "clipped": (None, high + CLIPPED_MORE),
            "focus": (SOFTER * low, SHARPER * high),
            "aspect": (low / SQUEEZED, high * SQUEEZED),
            "distance": (None, max(FARTHER, FARTHER * high)),
        }[fact]
        limits.append(RangeLimit(fact=fact, low=least, high=most, good=(low, high)))
    return tuple(limits)
