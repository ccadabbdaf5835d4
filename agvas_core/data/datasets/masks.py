"""Masks that lie in picture files, in files of class numbers, or are drawn from boxes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_core.data.datasets.record import Shape, Target
from agvas_core.files import MaskLevel, read_mask, read_samples

__all__ = ["ArrayMask", "BoxMask", "FileMask", "LabelFile", "same_size"]


def same_size(mask: NDArray[np.bool_], shape: Shape, name: str) -> NDArray[np.bool_]:
    """``mask`` where it has the image's size; raises ImageError with both where it has not."""
    if mask.shape != shape:
        raise ImageError(
            f"{name} is {mask.shape[1]}x{mask.shape[0]} px, its image {shape[1]}x{shape[0]}: one of them was changed"
        )
    return mask


@dataclass(frozen=True, slots=True)
class FileMask:
    """A picture in which the thing is bright."""

    path: Path
    level: MaskLevel = "any"
    coarse: bool = False
    more: tuple[Path, ...] = ()
    """Further masks of the same image, as MVTec LOCO has them."""

    def read(self, shape: Shape) -> NDArray[np.bool_]:
        """As ``MaskSource.read``."""
        mask = np.zeros(shape, bool)
        for path in (self.path, *self.more):
            mask |= same_size(read_mask(path, f"mask {path.name}", self.level).pixels, shape, f"mask {path.name}")
        return mask


@dataclass(frozen=True, slots=True)
class BoxMask:
    """Filled boxes (left, top, right, bottom; px, right and bottom included), for sets that have nothing finer."""

    boxes: tuple[tuple[float, float, float, float], ...]
    path: Path | None = None
    coarse: bool = True

    def read(self, shape: Shape) -> NDArray[np.bool_]:
        """As ``MaskSource.read``; what reaches beyond the image is cut off."""
        mask = np.zeros(shape, bool)
        for left, top, right, bottom in self.boxes:
            mask[max(0, round(top)) : max(0, round(bottom) + 1), max(0, round(left)) : max(0, round(right) + 1)] = True
        return mask


@dataclass(frozen=True, slots=True)
class ArrayMask:
    """Part of a label file that has been read."""

    labels: NDArray[np.integer]
    value: int
    path: Path | None = None
    coarse: bool = False

    def read(self, shape: Shape) -> NDArray[np.bool_]:
        """As ``MaskSource.read``."""
        return np.asarray(self.labels == self.value)


@dataclass(frozen=True, slots=True)
class LabelFile:
    """A PNG whose values number classes; those without a name (unlabelled, or left out) are no targets."""

    path: Path
    names: Mapping[int, str] = field(repr=False)

    def targets(self, shape: Shape) -> tuple[Target, ...]:
        """As ``LabelSource.targets``."""
        labels: NDArray[Any] = read_samples(self.path, f"label file {self.path.name}").pixels
        if labels.ndim != 2:
            raise ImageError(
                f"label file {self.path.name} has {labels.shape[2]} channels, not one class number a pixel: copy it again"
            )
        same_size(labels.astype(bool), shape, f"label file {self.path.name}")
        present = (int(value) for value in np.unique(labels))
        return tuple(Target((self.names[value],), ArrayMask(labels, value)) for value in present if value in self.names)
