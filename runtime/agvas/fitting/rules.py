"""How much the model's own score map counts beside the distances of a product.

    weight = zero_shot_weight(evidence)        # 0.5, 1 or 2

On some parts the distances outline defects best, on others the model's own map does. Defects painted
on the good images say which. The weight is 1 unless they clearly prefer another one: the weights are
compared on a few images, so a small difference is often chance.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_IMAGES", "WEIGHTS", "Evidence", "average_precision", "clear_gain", "zero_shot_weight"]

Float = NDArray[np.float32]

DEFAULT: Final = 1.0
WEIGHTS: Final = (0.5, DEFAULT, 2.0)
LEAST_IMAGES: Final = 8
"""Good images; with fewer, the spread of a gain over the images is not known well enough."""
LEAST_GAIN: Final = 0.01
"""In average precision."""
SURE: Final = 2.0
"""Standard errors of a gain that it must exceed."""


class Evidence(NamedTuple):
    """One good image and its copies with painted defects, as pixels in any order.

    All distances are to a memory bank that has nothing of the image.
    """

    distance: Float
    """Rarity of the joint distance, [N]."""
    zero_shot: Float
    """Rarity of the model's own score map, [N]."""
    truth: NDArray[np.bool_]
    """Where a defect was painted, [N]."""


def zero_shot_weight(evidence: Sequence[Evidence]) -> float:
    """The weight in ``distance + weight * zero_shot`` that outlines painted defects best.

    It is 1 where no other one is clearly better: the average precision of pixels, a value for each good
    image, is higher by ``LEAST_GAIN`` and by ``SURE`` standard errors of the paired difference. Good
    images without a painted defect do not count.
    """
    used = [each for each in evidence if each.truth.any()]
    if len(used) < LEAST_IMAGES:
        return DEFAULT
    precision = {weight: np.array([_precision(each, weight) for each in used]) for weight in WEIGHTS}
    best, most = DEFAULT, 0.0
    for weight in WEIGHTS:
        gain = precision[weight] - precision[DEFAULT]
        if clear_gain(gain) and gain.mean() > most:
            best, most = weight, float(gain.mean())
    return best


def clear_gain(gain: NDArray[np.float64]) -> bool:
    """Whether gains in average precision, one for each image [N], are clearly above nothing in the mean."""
    if len(gain) < LEAST_IMAGES:
        return False
    error = float(gain.std(ddof=1)) / math.sqrt(len(gain))
    return bool(gain.mean() > max(LEAST_GAIN, SURE * error))


def _precision(each: Evidence, weight: float) -> float:
    return average_precision(each.distance + np.float32(weight) * each.zero_shot, each.truth)


def average_precision(values: Float, truth: NDArray[np.bool_]) -> float:
    """Mean precision at the ranks of the true values, [N] each; 0 where nothing is true."""
    ranks = np.flatnonzero(truth[np.argsort(-values, kind="stable")]) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks)) if len(ranks) else 0.0
