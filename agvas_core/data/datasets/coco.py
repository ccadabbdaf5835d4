"""Annotation files (JSON, and COCO's three tables), and masks as COCO writes them: polygons or run lengths.

The only module that imports pycocotools, which draws the polygons.
"""

import json
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.data.datasets.masks import same_size
from agvas_core.data.datasets.record import Shape

__all__ = ["CocoAnnotations", "CocoMask", "mask_of_runs", "need", "read_coco", "read_json", "uncompressed"]


@dataclass(frozen=True)
class CocoAnnotations:
    """``images`` by id; ``annotations`` by the id of their image; ``categories``: names by id."""

    images: dict[int, dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    categories: dict[int, str]


def read_json(path: Path) -> Any:
    """What the file holds.

    Raises:
        UsageError: missing, or cut short.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        size = path.stat().st_size
        raise UsageError(f"{path} ({size:,} bytes) is no whole JSON file ({error}): download it again") from error


def need(row: Any, keys: tuple[str, ...], where: str) -> None:
    """Raises UsageError where ``row`` is no object, or lacks a key."""
    if not isinstance(row, dict):
        raise UsageError(
            f"{where} is {type(row).__name__}, not an object with {', '.join(keys)}: this is another file, or another version"
        )
    if missing := [key for key in keys if key not in row]:
        raise UsageError(
            f"{where} lacks {missing[0]!r} (it has {', '.join(map(str, row)) or 'nothing'}): this is another file, or another version"
        )


def read_coco(path: Path) -> CocoAnnotations:
    """The three tables of a COCO file.

    Raises:
        UsageError: not such a file, or one cut short.
    """
    raw = read_json(path)
    need(raw, ("images", "annotations", "categories"), str(path))
    for table, keys in (
        ("images", ("id", "file_name")),
        ("annotations", ("image_id", "category_id")),
        ("categories", ("id", "name")),
    ):
        for number, row in enumerate(raw[table]):
            need(row, keys, f"{path}: {table}[{number}]")
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in raw["annotations"]:
        annotation["segmentation"] = compact(annotation.get("segmentation"))
        by_image[annotation["image_id"]].append(annotation)
    return CocoAnnotations(
        images={row["id"]: row for row in raw["images"]},
        annotations=dict(by_image),
        categories={row["id"]: str(row["name"]) for row in raw["categories"]},
    )


def compact(segmentation: Any) -> Any:
    """Polygons as arrays of doubles, which take a quarter of the memory of lists: each process of a training holds those of all its images.

    Anything else is returned unchanged; ``CocoMask.read`` refuses what is broken.
    """
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        return segmentation
    try:
        return tuple(array("d", part) for part in segmentation)
    except TypeError:
        return segmentation


# COCO's run lengths to pixels: how many are off, how many on, and so by turns, column by column.
#
# Compressed, a count is a string of characters of 6 bits (from "0" on): 5 bits of the number, the lowest first, and one that says that more
# follow; the highest of the last is the sign. From the third count on it is the difference to the count before the last (COCO API, maskApi.c).


_FIRST = ord("0")


def uncompressed(text: str | bytes) -> list[int]:
    """The counts that a compressed string stands for; raises ValueError where it ends within a number."""
    counts: list[int] = []
    number = bits = 0
    for character in text.encode() if isinstance(text, str) else text:
        value = character - _FIRST
        number |= (value & 0x1F) << bits
        bits += 5
        if not value & 0x20:
            if value & 0x10:
                number -= 1 << bits
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = bits = 0
    if bits:
        raise ValueError("run lengths end within a number")
    return counts


def mask_of_runs(counts: Sequence[int], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """bool [H, W]; raises ValueError where the runs do not fill the image exactly."""
    runs = np.asarray(counts, np.int64)
    if (runs < 0).any() or runs.sum() != shape[0] * shape[1]:
        raise ValueError(f"run lengths cover {int(runs.sum())} of {shape[0] * shape[1]} px")
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(shape[1], shape[0]).T)


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
