"""RSDDs: "Type-I RSDDs dataset"/"Rail surface images"/rail_1.jpg with GroundTruth/rail_1.jpg; every rail carries a defect.

The masks are JPEG, so their noise is cut off at half. The two types are two categories.
"""

from collections.abc import Iterator
from pathlib import Path

from agvas_core.evaluation.item import Item
from agvas_core.files import folders, images, inside, pair

__all__ = ["NAME", "items", "matches"]

NAME = "rsdd"
IMAGES, MASKS = "rail surface images", "groundtruth"


def matches(root: Path) -> bool:
    """Whether ``root``, or folders of it, have rail surface images."""
    return bool(_types(root))


def items(root: Path) -> Iterator[Item]:
    """All images; the set has no test half of its own."""
    for kind, pictures, masks in _types(root):
        for picture, mask in pair(images(pictures), images(masks), ("", "_mask")):
            yield Item(picture, mask, kind, "defect", True, inside(root, picture), mask_level="half")


def _types(root: Path) -> list[tuple[str, Path, Path]]:
    """Category, folder of images, folder of masks."""
    found = []
    for folder in (root, *folders(root)):
        by_name = {path.name.lower().replace("_", " "): path for path in folders(folder)}
        if IMAGES in by_name:
            lower = folder.name.lower()
            category = "type-ii" if "type-ii" in lower else "type-i" if "type-i" in lower else "rail"
            found.append((category, by_name[IMAGES], by_name.get(MASKS, folder / "GroundTruth")))
    return found
