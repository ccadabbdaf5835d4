"""Limits of an image: focus, exposure, and dirt that stays in one place from part to part."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from agvas_runtime.images.facts import ImageFacts, image_facts
from agvas_runtime.line.recipe.recipe import ImageLimits

__all__ = ["DirtWatch", "ImageFacts", "image_facts", "image_fault"]

GRID: Final = 48
DIRT_PARTS: Final = 50
DIRT_SHARE: Final = 0.9


def image_fault(facts: ImageFacts, limits: ImageLimits) -> str | None:
    """Why a frame is unfit for a verdict by the recipe's limits, or None."""
    if limits.min_focus is not None and facts.focus < limits.min_focus:
        return f"the focus is {facts.focus:.4g}; {limits.min_focus:.4g} is needed: clean and focus the lens"
    if limits.min_mean is not None and facts.mean < limits.min_mean:
        return f"the mean grey is {facts.mean:.3f}; {limits.min_mean:.3f} is needed: check the light"
    if limits.max_mean is not None and facts.mean > limits.max_mean:
        return f"the mean grey is {facts.mean:.3f}; {limits.max_mean:.3f} is allowed: check light and exposure"
    if limits.max_clipped is not None and facts.clipped > limits.max_clipped:
        return f"{facts.clipped:.1%} of the pixels are clipped; {limits.max_clipped:.1%} are allowed: check the exposure"
    return None


class DirtWatch:
    """Finds places that are anomalous on part after part: dirt on the lens, a scratch in the fixture."""

    def __init__(self, *, parts: int = DIRT_PARTS, share: float = DIRT_SHARE) -> None:
        """Dirt is where, of the last ``parts`` parts, at least ``share`` are anomalous."""
        self._parts, self._share = parts, share
        self._seen = np.zeros((parts, GRID, GRID), bool)
        self._count = 0

    def add(self, score_map: NDArray[np.float32], threshold: float) -> tuple[int, int] | None:
        """Takes the score map of one part, float32 [H, W]; the place of dirt as x, y in its pixels, or None."""
        height, width = score_map.shape
        rows = (np.arange(height) * GRID // height)[:, None]
        columns = (np.arange(width) * GRID // width)[None, :]
        cells = np.zeros((GRID, GRID), bool)
        hit = np.nonzero(score_map > threshold)
        cells[rows[hit[0], 0], columns[0, hit[1]]] = True
        self._seen[self._count % self._parts] = cells
        self._count += 1
        if self._count < self._parts:
            return None
        often = self._seen.mean(axis=0)
        y, x = np.unravel_index(int(often.argmax()), often.shape)
        if often[y, x] < self._share:
            return None
        return int((x + 0.5) * width / GRID), int((y + 0.5) * height / GRID)
