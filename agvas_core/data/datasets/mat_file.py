"""Masks in MATLAB files, of which two sets are made: PASCAL-Part and CrackForest. The only module that imports scipy.

scipy's reader makes arrays and structs of them and runs nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from agvas_core.contract.errors import ImageError
from agvas_core.data.datasets.masks import ArrayMask, same_size
from agvas_core.data.datasets.parts import pascal_words
from agvas_core.data.datasets.record import Shape, Target

__all__ = ["CrackMat", "PartsMat"]

CRACK = 2  # in groundTruth.Segmentation; 1 is road


@dataclass(frozen=True, slots=True)
class CrackMat:
    """CrackForest's ``groundTruth/001.mat``: struct groundTruth with Segmentation, 2 where a crack is."""

    path: Path
    coarse: bool = False

    def read(self, shape: Shape) -> NDArray[np.bool_]:
        """As ``MaskSource.read``."""
        truth = _variable(self.path, "groundTruth")
        mask = np.asarray(_field(truth, "Segmentation", self.path)) == CRACK
        return same_size(mask, shape, f"ground truth {self.path.name}")


@dataclass(frozen=True, slots=True)
class PartsMat:
    """PASCAL-Part's ``Annotations_Part/2008_000003.mat``: anno.objects[].class, .mask and .parts[].part_name, .mask."""

    path: Path

    def targets(self, shape: Shape) -> tuple[Target, ...]:
        """As ``LabelSource.targets``: each kind of thing, and each kind of part, with all that the image has of it."""
        found: dict[tuple[str, ...], NDArray[np.bool_]] = {}
        for thing in _rows(_field(_variable(self.path, "anno"), "objects", self.path)):
            name = str(_field(thing, "class", self.path))
            self._add(found, pascal_words(name), thing, shape)
            for part in _rows(_field(thing, "parts", self.path)):
                self._add(found, pascal_words(name, str(_field(part, "part_name", self.path))), part, shape)
        return tuple(Target(words, ArrayMask(mask.astype(np.uint8), 1)) for words, mask in sorted(found.items()))

    def _add(self, found: dict[tuple[str, ...], NDArray[np.bool_]], words: tuple[str, ...], row: Any, shape: Shape) -> None:
        mask = same_size(np.asarray(_field(row, "mask", self.path), bool), shape, f"{words[0]} in {self.path.name}")
        found[words] = found[words] | mask if words in found else mask


def _variable(path: Path, name: str) -> Any:
    try:
        return loadmat(str(path), squeeze_me=True, struct_as_record=False)[name]
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, MatReadError) as error:
        raise ImageError(f"{path} is missing, cut short, or has no {name} ({error}): copy it again") from error


def _field(struct: Any, name: str, path: Path) -> Any:
    if not hasattr(struct, name):
        raise ImageError(f"{path} has no field {name}: this is another file, or another version")
    return getattr(struct, name)


def _rows(value: Any) -> list[Any]:
    """A struct array of no, one or several rows."""
    return list(np.atleast_1d(value).ravel()) if isinstance(value, np.ndarray) else [value]
