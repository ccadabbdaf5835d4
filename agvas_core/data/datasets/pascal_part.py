"""PASCAL-Part as published: a MATLAB file of things and their parts for each image of VOC 2010.

Annotations_Part/2008_000003.mat (also below trainval/, as the archive unpacks), VOCdevkit/VOC2010/JPEGImages/2008_000003.jpg, and VOC's own
split in VOCdevkit/VOC2010/ImageSets/Main/{train,val}.txt; without it all count as train. The fields are those that public readers of the
set use; no copy of the set was at hand.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agvas_core.data.datasets.adapter import Adapter, first_folder, image_in
from agvas_core.data.datasets.mat_file import PartsMat
from agvas_core.data.datasets.record import Family, Record

__all__ = ["PASCAL_PART"]

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
