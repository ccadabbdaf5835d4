"""Masks as COCO writes them: polygons or run lengths. The only module that imports pycocotools, which draws the polygons."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from agvas_core.contract.errors import ImageError
from agvas_core.data.sets.masks import same_size
from agvas_core.data.sets.record import Shape
from agvas_core.data.sets.run_lengths import mask_of_runs, uncompressed

__all__ = ["CocoMask"]


@dataclass(frozen=True, slots=True)
class CocoMask:
    """Everything that some annotations cover together.

    ``segmentations`` are the annotations' own: lists of polygons [x, y, x, y, ...], run lengths {size, counts} (compressed or not), or
    lists of these (refCLEF). ``size``: height and width in px of the image that they were drawn on.
    """

    segmentations: tuple[Any, ...] = field(repr=False)
    size: Shape
    name: str
    path: Path | None = None
    coarse: bool = False

    def read(self, shape: Shape) -> NDArray[np.bool_]:
        """As ``MaskSource.read``."""
        mask = np.zeros(self.size, bool)
        try:
            for segmentation in self.segmentations:
                for part in _parts(segmentation, self.size):
                    mask |= same_size(_decoded(part), self.size, self.name)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ImageError(f"{self.name} is neither polygons nor run lengths ({error}): copy the annotations again") from error
        return same_size(mask, shape, self.name)


def _parts(segmentation: Any, size: Shape) -> list[dict[str, Any]]:
    """The run lengths that one annotation is made of; none for one that covers nothing."""
    if isinstance(segmentation, dict):
        return [segmentation]
    if all(isinstance(part, dict) for part in segmentation):
        return list(segmentation)
    polygons = [[float(number) for number in part] for part in segmentation if len(part) >= 6]  # two points have no area
    return list(coco.frPyObjects(polygons, *size)) if polygons else []


def _decoded(part: dict[str, Any]) -> NDArray[np.bool_]:
    # pycocotools' own decode() warns with numpy 2, and will not work with a later one.
    height, width = part["size"]
    counts = part["counts"]
    return mask_of_runs(counts if isinstance(counts, list) else uncompressed(counts), (int(height), int(width)))
