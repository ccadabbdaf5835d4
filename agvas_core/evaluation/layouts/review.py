"""Reviewed parts of one's own, as ``contract/review_folder.py`` lays them out, where a review wrote ``review.jsonl``."""

from collections.abc import Iterator
from pathlib import Path

from agvas_core.contract.review_folder import IMAGES, REVIEW, read_lines
from agvas_core.evaluation.item import Item
from agvas_core.files import GOOD, is_empty

__all__ = ["NAME", "items", "matches"]

NAME = "review"


def matches(root: Path) -> bool:
    """Whether ``root`` is such a folder."""
    return (root / REVIEW).is_file() and (root / IMAGES).is_dir()


def items(root: Path) -> Iterator[Item]:
    """Every image that was reviewed; one whose mask marks nothing is a good part."""
    for line in read_lines(root):
        mask = root / line.mask if line.mask else None
        good = line.good or (mask is not None and is_empty(mask))
        kind = GOOD if good else line.kind or "defect"
        yield Item(root / line.image, None if good else mask, line.category or "parts", kind, not good, line.image)
