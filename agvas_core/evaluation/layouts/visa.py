"""VisA: CATEGORY/Data/Images/{Normal,Anomaly}/0000.JPG, CATEGORY/Data/Masks/Anomaly/000.png, split_csv/1cls.csv.

Masks number the kinds of anomaly from 1; everything above 0 is anomalous. The official split, where its file is there, says which
good images belong to the test half; all anomalous ones do.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from agvas_core.contract.errors import UsageError
from agvas_core.evaluation.item import Item
from agvas_core.files import GOOD, folders, images, inside, pair

__all__ = ["NAME", "items", "matches", "train_items"]

NAME = "visa"
SPLIT = Path("split_csv") / "1cls.csv"


def matches(root: Path) -> bool:
    """Whether any folder of ``root`` has Data/Images/Anomaly."""
    return any((path / "Data" / "Images" / "Anomaly").is_dir() for path in folders(root))


def items(root: Path) -> Iterator[Item]:
    """All anomalous images, and the good ones of the test half (of everything where no split file is there)."""
    test = _half(root, "test")
    for category in folders(root):
        data = category / "Data"
        for picture, mask in pair(images(data / "Images" / "Anomaly"), images(data / "Masks" / "Anomaly"), ("",)):
            name = inside(root, picture)
            if test is None or name in test:
                yield Item(picture, mask, category.name, "anomaly", True, name)
        for picture, _ in pair(images(data / "Images" / "Normal"), [], ("",)):
            name = inside(root, picture)
            if test is None or name in test:
                yield Item(picture, None, category.name, GOOD, False, name)


def train_items(root: Path) -> Iterator[Item]:
    """The good images of the official training half; none without the file that says which these are."""
    train = _half(root, "train") or set()
    for category in folders(root):
        for picture in images(category / "Data" / "Images" / "Normal"):
            if (name := inside(root, picture)) in train:
                yield Item(picture, None, category.name, GOOD, False, name)


def _half(root: Path, which: str) -> set[str] | None:
    path = root / SPLIT
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"split", "image"} <= rows[0].keys():
        raise UsageError(f"{path} has columns {', '.join(rows[0])}; split and image are needed: copy the file of the set again")
    return {row["image"].replace("\\", "/") for row in rows if row["split"] == which}
