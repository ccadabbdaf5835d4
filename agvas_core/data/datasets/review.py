"""Reviewed parts of one's own (``contract/review_folder.py`` has the layout), as a training set: few-shot adaptation to a station."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agvas_core.contract.review_folder import IMAGES, MASKS, REVIEW, ReviewLine, read_lines
from agvas_core.data.datasets.adapter import Adapter
from agvas_core.data.datasets.masks import FileMask
from agvas_core.data.datasets.record import Family, Record
from agvas_core.files.pairing import IMAGE_SUFFIXES, inside, pair
from agvas_core.files.picture import is_empty

__all__ = ["REVIEWED", "review_lines"]


def review_lines(root: Path) -> Iterator[ReviewLine]:
    """What the folder says of each of its images; by its pictures alone where it has no ``review.jsonl``.

    Raises:
        UsageError: a line that is not one, or a picture that has two masks.
    """
    if (root / REVIEW).is_file():
        yield from read_lines(root)
        return
    for picture, mask in pair(_pictures(root / IMAGES), _pictures(root / MASKS), ("", "_mask")):
        yield ReviewLine(image=inside(root, picture), mask=inside(root, mask) if mask else None, good=mask is None)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _records(root: Path) -> Iterator[Record]:
    for line in review_lines(root):
        good = line.good or (line.mask is not None and is_empty(root / line.mask))  # nothing was marked
        mask = FileMask(root / line.mask) if line.mask and not good else None
        kind = "" if good else line.kind
        yield Record("review", Family.ANOMALY, root / line.image, line.image, "train", line.category, not good, kind, mask)


REVIEWED: Final = Adapter(
    "review",
    Family.ANOMALY,
    f"{IMAGES}/*, {MASKS}/* of the same names, and {REVIEW} where it was written by a review",
    lambda root: (root / IMAGES).is_dir() and ((root / REVIEW).is_file() or (root / MASKS).is_dir()),
    _records,
)
