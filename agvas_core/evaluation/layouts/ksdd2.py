"""KolektorSDD2: test/20000.png with test/20000_GT.png beside it; a black mask says that the image is good."""

from collections.abc import Iterator
from pathlib import Path

from agvas_core.contract.errors import UsageError
from agvas_core.evaluation.item import Item
from agvas_core.files import GOOD, images, inside, is_empty, pair

__all__ = ["NAME", "items", "matches", "train_items"]

NAME = "ksdd2"
MASK_SUFFIX = "_GT"


def matches(root: Path) -> bool:
    """Whether ``root``/test has masks that end in _GT."""
    return any(path.stem.endswith(MASK_SUFFIX) for path in images(root / "test"))


def items(root: Path) -> Iterator[Item]:
    """The test half."""
    yield from _half(root, "test")


def train_items(root: Path) -> Iterator[Item]:
    """The good images of the training half."""
    yield from (item for item in _half(root, "train") if not item.anomalous)


def _half(root: Path, which: str) -> Iterator[Item]:
    files = images(root / which)
    masks = [path for path in files if path.stem.endswith(MASK_SUFFIX)]
    pictures = [path for path in files if not path.stem.endswith(MASK_SUFFIX)]
    for picture, mask in pair(pictures, masks, (MASK_SUFFIX,)):
        name = inside(root, picture)
        if mask is None:  # good or not: nobody knows
            raise UsageError(f"{picture} has no {picture.stem}{MASK_SUFFIX}.png beside it: copy the set again")
        if is_empty(mask):
            yield Item(picture, None, "surface", GOOD, False, name)
        else:
            yield Item(picture, mask, "surface", "defect", True, name)
