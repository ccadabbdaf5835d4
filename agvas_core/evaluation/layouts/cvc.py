"""CVC-ColonDB and CVC-ClinicDB: a folder of images and one of masks with the same names; every image shows a polyp.

ClinicDB: Original/1.tif with "Ground Truth"/1.tif, also below PNG/ or TIF/. ColonDB: images/1.png with masks/1.png, or, as first
published, 1.bmp with the mask p1.bmp beside it. Masks went through lossy compression, so their noise is cut off at half.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from agvas_core.evaluation.item import Item
from agvas_core.files import folders, images, inside, pair

__all__ = ["NAME", "items", "matches"]

NAME = "cvc"
PAIRS = (("original", "ground truth"), ("images", "masks"))
NUMBERED = re.compile(r"^\d+$")


def matches(root: Path) -> bool:
    """Whether ``root`` or a folder of it has images and masks in one of these ways."""
    return _pair_of_folders(root) is not None or _numbered(root) is not None


def items(root: Path) -> Iterator[Item]:
    """All images; the sets have no test half of their own."""
    beside = _pair_of_folders(root)
    if beside is not None:
        pairs = pair(images(beside[0]), images(beside[1]), ("", "_mask"))
    else:
        folder = _numbered(root) or root
        files = images(folder)
        masks = {path.stem[1:]: path for path in files if re.match(r"^p\d+$", path.stem)}
        pairs = iter([(path, masks.get(path.stem)) for path in files if NUMBERED.match(path.stem)])
    for picture, mask in pairs:
        yield Item(picture, mask, "colon", "polyp", True, inside(root, picture), mask_level="half")


def _pair_of_folders(root: Path) -> tuple[Path, Path] | None:
    for folder in (root, *(path for path in folders(root) if path.name.upper() in ("PNG", "TIF"))):
        by_name = {path.name.lower().replace("_", " "): path for path in folders(folder)}
        for pictures, masks in PAIRS:
            if pictures in by_name and masks in by_name and images(by_name[pictures]):
                return by_name[pictures], by_name[masks]
    return None


def _numbered(root: Path) -> Path | None:
    for folder in (root, *folders(root)):
        stems = {path.stem for path in images(folder)}
        if any(NUMBERED.match(stem) and f"p{stem}" in stems for stem in stems):
            return folder
    return None
