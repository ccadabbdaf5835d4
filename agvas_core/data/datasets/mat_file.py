"""Masks in MATLAB files (PASCAL-Part and CrackForest), and the set PASCAL-Part. The only module that imports scipy.

scipy's reader makes arrays and structs of them and runs nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from agvas_core.contract.errors import ImageError
from agvas_core.data.datasets.general import pascal_words
from agvas_core.data.datasets.masks import ArrayMask, same_size
from agvas_core.data.datasets.record import Adapter, Family, Record, Shape, Target, first_folder, image_in

__all__ = ["PASCAL_PART", "CrackMat", "PartsMat"]


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


# PASCAL-Part as published: a MATLAB file of things and their parts for each image of VOC 2010.
#
# Annotations_Part/2008_000003.mat (also below trainval/, as the archive unpacks), VOCdevkit/VOC2010/JPEGImages/2008_000003.jpg, and VOC's own
# split in VOCdevkit/VOC2010/ImageSets/Main/{train,val}.txt; without it all count as train. The fields are those that public readers of the
# set use; no copy of the set was at hand.


_ANNOTATIONS: Final = ("Annotations_Part", "trainval/Annotations_Part")
_VOC: Final = ("VOCdevkit/VOC2010", "VOC2010", "../VOCdevkit/VOC2010")


def _pascal_parts_records(root: Path) -> Iterator[Record]:
    annotations = first_folder(root, *_ANNOTATIONS) or root / _ANNOTATIONS[0]
    images = image_in(root, "PASCAL-Part", *(f"{place}/JPEGImages" for place in _VOC))
    lists = images.parent / "ImageSets" / "Main"
    val = set((lists / "val.txt").read_text(encoding="utf-8").split()) if (lists / "val.txt").is_file() else set()
    for path in sorted(annotations.glob("*.mat")):
        split = "val" if path.stem in val else "train"
        yield Record("pascal-part", Family.GENERAL, images / f"{path.stem}.jpg", f"{path.stem}.jpg", split, labels=PartsMat(path))


PASCAL_PART: Final = Adapter(
    "pascal-part",
    Family.GENERAL,
    "Annotations_Part/*.mat, VOCdevkit/VOC2010/JPEGImages/*.jpg",
    lambda root: first_folder(root, *_ANNOTATIONS) is not None,
    _pascal_parts_records,
    published_images=10_103,
)
