"""ZJU-Leaper: fabrics of 19 patterns.

Images/000001.jpg (or .png), Annotations/masks/000001.png (only of defective ones), Annotations/xmls/000001.xml,
ImageSets/Patterns/pattern1.json: {"normal": {"train": [id], "test": [id]}, "defect": {"train": [id], "test": [id]}}

The layout is that of the authors' own reader (zl_fabric.py); no copy of the set was at hand.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agvas_core.data.sets.adapter import Adapter
from agvas_core.data.sets.annotation_file import need, read_json
from agvas_core.data.sets.masks import FileMask
from agvas_core.data.sets.record import Family, Record

__all__ = ["ZJU_LEAPER"]

_DIGITS: Final = 6


def _patterns(root: Path) -> list[Path]:
    return sorted(
        (root / "ImageSets" / "Patterns").glob("pattern*.json"), key=lambda path: int(re.sub(r"\D", "", path.stem) or 0)
    )


def _zju_leaper_records(root: Path) -> Iterator[Record]:
    suffix = ".png" if any((root / "Images").glob("*.png")) else ".jpg"  # the authors publish the one or the other
    for path in _patterns(root):
        raw = read_json(path)
        need(raw, ("normal", "defect"), str(path))
        for group, anomalous in (("normal", False), ("defect", True)):
            need(raw[group], ("train", "test"), f"{path}: {group}")
            for split in ("train", "test"):
                for number in raw[group][split]:
                    stem = str(number).zfill(_DIGITS)
                    picture = root / "Images" / f"{stem}{suffix}"
                    mask = FileMask(root / "Annotations" / "masks" / f"{stem}.png") if anomalous else None
                    yield Record(
                        "zju-leaper", Family.ANOMALY, picture, f"Images/{picture.name}", split, path.stem, anomalous, mask=mask
                    )


ZJU_LEAPER: Final = Adapter(
    "zju-leaper",
    Family.ANOMALY,
    "Images/000001.jpg, Annotations/masks/*.png, ImageSets/Patterns/pattern1.json",
    lambda root: bool(_patterns(root)),
    _zju_leaper_records,
    parts=("Images", "Annotations/masks"),
    training_splits=("train", "test"),
    published_images=98_777,
)
