"""Masks as COCO writes them: polygons or run lengths. The only module that imports pycocotools."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from agvas_core.contract.errors import ImageError
from agvas_core.data.sets.masks import same_size
from agvas_core.data.sets.record import Shape

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
                if (found := _runs(segmentation, self.size)) is not None:
                    mask |= same_size(np.asarray(coco.decode(found), bool), self.size, self.name)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ImageError(f"{self.name} is neither polygons nor run lengths ({error}): copy the annotations again") from error
        return same_size(mask, shape, self.name)


def _runs(segmentation: Any, size: Shape) -> dict[str, Any] | None:
    """The compressed run lengths of one annotation; None for one that covers nothing."""
    height, width = size
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return dict(coco.frPyObjects(segmentation, height, width))
        counts = segmentation["counts"]
        return {"size": list(segmentation["size"]), "counts": counts.encode() if isinstance(counts, str) else counts}
    parts = [part for part in segmentation if isinstance(part, dict) or len(part) >= 6]  # fewer than three points are no area
    if not parts:
        return None
    if isinstance(parts[0], dict):
        return dict(coco.merge([_runs(part, size) for part in parts]))
    return dict(coco.merge(coco.frPyObjects([[float(number) for number in part] for part in parts], height, width)))
