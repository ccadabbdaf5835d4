"""MVTec-AD, and the many sets that follow it (MPDD among them).

CATEGORY/test/good/000.png, CATEGORY/test/KIND/000.png, CATEGORY/ground_truth/KIND/000_mask.png, CATEGORY/train/good/000.png

MVTec LOCO has a folder of masks for each image instead, one mask an anomaly: CATEGORY/ground_truth/KIND/000/000.png, 001.png, ...
"""

from collections.abc import Iterator
from pathlib import Path

from agvas_core.evaluation.item import Item
from agvas_core.files import GOOD, folders, images, inside, pair, parts_of_mask

__all__ = ["NAME", "items", "matches", "train_items"]

NAME = "mvtec"
MASK_SUFFIXES = ("_mask", "")


def matches(root: Path) -> bool:
    """Whether ``root``, or every folder of it that holds a test half, has this layout."""
    return any(images(kind) for category in _categories(root) for kind in folders(category / "test"))


def items(root: Path) -> Iterator[Item]:
    """The test half, category by category."""
    for category in _categories(root):
        for kind in folders(category / "test"):
            anomalous = kind.name != GOOD
            masks = images(category / "ground_truth" / kind.name) if anomalous else []
            for picture, mask in pair(images(kind), masks, MASK_SUFFIXES):
                several = category / "ground_truth" / kind.name / picture.stem
                found = parts_of_mask(several) if anomalous and mask is None and several.is_dir() else []
                first = found[0] if found else mask
                name = inside(root, picture)
                yield Item(picture, first, category.name, kind.name, anomalous, name, more_masks=tuple(found[1:]))


def train_items(root: Path) -> Iterator[Item]:
    """The good images of the training half."""
    for category in _categories(root):
        for picture in images(category / "train" / GOOD):
            yield Item(picture, None, category.name, GOOD, False, inside(root, picture))


def _categories(root: Path) -> list[Path]:
    if (root / "test").is_dir():  # a single category was named
        return [root]
    return [path for path in folders(root) if (path / "test").is_dir()]
