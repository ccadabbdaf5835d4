"""BTAD: 01/test/ok/0000.bmp, 01/test/ko/0000.bmp, 01/ground_truth/ko/0000.png, 01/train/ok/0000.bmp."""

from collections.abc import Iterator
from pathlib import Path

from agvas_core.evaluation.item import Item
from agvas_core.files import GOOD, folders, images, inside, pair

__all__ = ["NAME", "items", "matches", "train_items"]

NAME = "btad"


def matches(root: Path) -> bool:
    """Whether any folder of ``root`` has test/ko."""
    return any((path / "test" / "ko").is_dir() for path in folders(root))


def items(root: Path) -> Iterator[Item]:
    """The test half, product by product."""
    for category in folders(root):
        for picture, mask in pair(images(category / "test" / "ko"), images(category / "ground_truth" / "ko"), ("", "_mask")):
            yield Item(picture, mask, category.name, "ko", True, inside(root, picture))
        for picture, _ in pair(images(category / "test" / "ok"), [], ("",)):
            yield Item(picture, None, category.name, GOOD, False, inside(root, picture))


def train_items(root: Path) -> Iterator[Item]:
    """The good images of the training half."""
    for category in folders(root):
        for picture in images(category / "train" / "ok"):
            yield Item(picture, None, category.name, GOOD, False, inside(root, picture))
