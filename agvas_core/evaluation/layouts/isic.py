"""ISIC, the segmentation task of 2016 to 2018: a folder of images and one of masks, side by side.

ISBI2016_ISIC_Part1_Test_Data/ISIC_0000003.jpg     ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_0000003_Segmentation.png
ISIC-2017_Test_v2_Data/ISIC_0012086.jpg            ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_0012086_segmentation.png
ISIC2018_Task1-2_Test_Input/ISIC_0012169.jpg       ISIC2018_Task1_Test_GroundTruth/ISIC_0012169_segmentation.png
"""

import re
from collections.abc import Iterator
from pathlib import Path

from agvas_core.contract.errors import UsageError
from agvas_core.evaluation.item import Item
from agvas_core.files import folders, images, inside, pair

__all__ = ["NAME", "items", "matches"]

NAME = "isic"
FIRST_TASK = r"^(?!.*(Part|Task)[23])"
IMAGES = re.compile(FIRST_TASK + r".*ISIC.*Test.*_(Data|Input)$", re.IGNORECASE)
MASKS = re.compile(FIRST_TASK + r".*ISIC.*Test.*GroundTruth$", re.IGNORECASE)


def matches(root: Path) -> bool:
    """Whether ``root`` has a test folder of ISIC's naming."""
    return any(IMAGES.search(path.name) for path in folders(root))


def items(root: Path) -> Iterator[Item]:
    """The test half; every image shows a lesion."""
    pictures = _only(root, IMAGES)
    masks = _only(root, MASKS)
    shown = [path for path in images(pictures) if "superpixels" not in path.stem] if pictures else []
    found = images(masks) if masks else []
    for picture, mask in pair(shown, found, ("_segmentation", "_Segmentation")):
        yield Item(picture, mask, "skin", "lesion", True, inside(root, picture))


def _only(root: Path, pattern: re.Pattern[str]) -> Path | None:
    found = [path for path in folders(root) if pattern.search(path.name)]
    if len(found) > 1:
        raise UsageError(f"{root} has two test halves, {found[0].name} and {found[1].name}: give each year a folder of its own")
    return found[0] if found else None
