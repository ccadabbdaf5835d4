"""Defects painted on good images: which of them a threshold finds, and which pixel threshold draws them best.

Several are painted on one image, apart from each other, and each is judged by itself: its surroundings are taken from the painted
image's map, all else from the good image's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.decision import mean_of_highest
from agvas_core.data.synthetic.photographs import PaintedOn
from agvas_runtime.pipeline.references import GRID_PX, Statistics, squash

__all__ = ["AROUND", "Trial", "best_pixel_threshold", "trial_of"]

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]

AROUND: Final = 13
"""Cells of the grid around a defect that its painting may change."""
TOUCHES: Final = 2
"""Cells that a region may be away from a defect and still touch it."""


@dataclass(frozen=True)
class Trial:
    """One painted defect."""

    defect: PaintedOn
    picture: int
    """Index of the good image."""
    label: Mask
    """Where it lies, [GRID_PX, GRID_PX]."""
    total: Float
    """The statistic of the image with this defect alone, [GRID_PX, GRID_PX]."""

    def score(self, half: float, share: float) -> float:
        """Of the image with this defect alone, 0..1."""
        return mean_of_highest(squash(self.total, half), share)

    def touched(self, half: float, threshold: float) -> bool:
        """Whether a pixel above ``threshold`` lies on the defect."""
        near = _grown(self.label, TOUCHES)
        return bool((squash(self.total, half)[near] > threshold).any())


def trial_of(defect: PaintedOn, picture: int, label: Mask, painted: Statistics, good: Statistics, share: float) -> Trial:
    """Args:
    label: where the defect lies, bool [H, W] of the image.
    painted, good: statistics of the painted and the good image.
    share: of the highest values, that an image's score is the mean of.
    """
    small = cv2.resize(label.astype(np.float32), (GRID_PX, GRID_PX), interpolation=cv2.INTER_AREA) > 0.2
    if not small.any():
        y, x = np.argwhere(label).mean(0) / label.shape * GRID_PX
        small[min(int(y), GRID_PX - 1), min(int(x), GRID_PX - 1)] = True
    near = _grown(small, AROUND)
    alone = Statistics(np.where(near, painted.pixel, good.pixel), np.where(near, painted.image, good.image))
    return Trial(defect, picture, small, alone.fused(share))


def best_pixel_threshold(trials: Sequence[Trial], half: float, image_threshold: float, share: float) -> float:
    """The threshold of pixels whose masks agree best with the painted ones: highest mean IoU of those that are found.

    Args:
        image_threshold: of image scores; where no defect is found it is the answer.
    """
    found = [trial for trial in trials if trial.score(half, share) > image_threshold]
    if not found:
        return image_threshold
    odds = image_threshold / (1 - image_threshold) * np.geomspace(0.5, 2.5, 12)
    options = odds / (1 + odds)
    agreement = np.zeros(len(options))
    for trial in found:
        near = _grown(trial.label, AROUND)
        values, truth = squash(trial.total, half)[near], trial.label[near]
        score = trial.score(half, share)
        for index, option in enumerate(options):
            mask = values > min(float(option), score)  # as ``outline_threshold``
            agreement[index] += np.count_nonzero(mask & truth) / np.count_nonzero(mask | truth)
    return float(options[int(agreement.argmax())])


def _grown(mask: Mask, cells: int) -> Mask:
    side = 2 * cells + 1
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)), np.bool_)
