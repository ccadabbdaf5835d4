"""GC10-DET: steel strip with ten kinds of defect.

1/img_01_425000200_00001.jpg to 10/..., lable/img_01_425000200_00001.xml (the set's own spelling; VOC's form: object/name, object/bndbox)

The set has boxes and no outlines. The paper trains on it and does not say with which masks; here a box is filled (a coarse mask), unless a
picture of the image's name lies in a folder masks. Every image shows a defect. A name that comes in several folders has one annotation
only, so nobody knows whose it is: those images are left out. Names of the defects: ours, from the Chinese that the set abbreviates.
The layout was read from public code that loads the set.
"""

import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agvas_core.contract.errors import UsageError
from agvas_core.data.sets.adapter import Adapter, first_folder
from agvas_core.data.sets.masks import BoxMask, FileMask
from agvas_core.data.sets.record import Family, MaskSource, Record
from agvas_core.files.pairing import images, inside

__all__ = ["GC10"]

_LABELS: Final = ("lable", "label", "labels", "Annotations")
_GC10_KINDS: Final = {
    "1": "punching hole", "2": "weld line", "3": "crescent gap", "4": "water spot", "5": "oil spot", "6": "silk spot", "7": "inclusion",
    "8": "rolled pit", "9": "crease", "10": "waist folding",
}  # fmt: skip
_CORNERS: Final = ("xmin", "ymin", "xmax", "ymax")


def _folders(root: Path) -> list[Path]:
    return [folder for number in _GC10_KINDS if (folder := first_folder(root, number, f"images/{number}")) is not None]


def _gc10_records(root: Path) -> Iterator[Record]:
    labels = first_folder(root, *_LABELS)
    drawn = {path.stem: path for path in images(root / "masks")}
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for folder in _folders(root):
        for picture in images(folder):
            by_stem[picture.stem].append(picture)
    for stem, pictures in sorted(by_stem.items()):
        if len(pictures) == 1:
            picture = pictures[0]
            mask: MaskSource | None = (
                FileMask(drawn[stem]) if stem in drawn else _boxes(labels / f"{stem}.xml") if labels else None
            )
            kind = _GC10_KINDS[picture.parent.name]
            yield Record("gc10", Family.ANOMALY, picture, inside(root, picture), "train", "steel strip", True, kind, mask)


def _boxes(path: Path) -> BoxMask | None:
    """The boxes of one annotation file, None where there is none.

    Raises:
        UsageError: it is no such file.
    """
    if not path.is_file():
        return None
    try:
        # Python's own parser resolves nothing outside of the file, and expat bounds how far entities can grow.
        found = [[float(box.findtext(corner, "")) for corner in _CORNERS] for box in ElementTree.parse(path).iter("bndbox")]
    except (ElementTree.ParseError, ValueError) as error:
        raise UsageError(f"{path} is no whole annotation in VOC's form ({error}): copy it again") from error
    return BoxMask(tuple((left, top, right, bottom) for left, top, right, bottom in found)) if found else None


GC10: Final = Adapter(
    "gc10",
    Family.ANOMALY,
    "1/*.jpg to 10/*.jpg, lable/*.xml",
    lambda root: len(_folders(root)) >= 2 and (first_folder(root, *_LABELS) is not None or (root / "masks").is_dir()),
    _gc10_records,
    parts=tuple(f"{number}|images/{number}" for number in _GC10_KINDS),
)
