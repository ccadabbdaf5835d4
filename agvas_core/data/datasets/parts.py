"""Parts of things, in COCO's JSON: PACO-LVIS, PartImageNet, and PASCAL-Part as VLPart converts it.

PACO-LVIS: annotations/paco_lvis_v1_train.json; its images are COCO's ("train2017/000000391895.jpg"), here, in images, or in a folder
coco beside it or beside its parent (LISA's order). Categories "trash_can" and "trash_can:lid".

PartImageNet: annotations/train/train.json with images/train/n01440764_10040.JPEG as the archive unpacks, or train.json with
train/n01440764/... as VLPart wants it. Categories "Quadruped Head", supercategory "Quadruped".

PASCAL-Part: train.json with VOCdevkit/VOC2010/JPEGImages/2008_000003.jpg; categories "aeroplane:body". As published, with .mat files, it is
read by ``pascal_part``.

Where an image has several annotations of one name, the name means all of them together: "the wheel" of four would be a guess. (LISA
takes one at random.) Read from descriptions and public code, not from a copy of the sets.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from agvas_core.contract.errors import UsageError
from agvas_core.data.datasets.annotation_file import read_coco
from agvas_core.data.datasets.coco_mask import CocoMask
from agvas_core.data.datasets.record import Adapter, Family, Record, Target, first_file

__all__ = ["PACO", "PART_IMAGENET", "PASCAL_PART_JSON", "part_names", "pascal_words"]


Files = dict[str, tuple[str, ...]]
"""Split to where its annotations may lie."""

_PACO: Final[Files] = {
    split: (f"annotations/paco_lvis_v1_{split}.json", f"paco_lvis_v1_{split}.json") for split in ("train", "val", "test")
}
_PART_IMAGENET: Final[Files] = {
    split: (f"annotations/{split}/{split}.json", f"annotations/{split}.json", f"{split}_format.json", f"{split}.json")
    for split in ("train", "val", "test")
}
_PASCAL: Final[Files] = {split: (f"{split}.json",) for split in ("train", "val")}


def part_names(thing: str, part: str) -> tuple[str, ...]:
    """How a part may be asked for: "wheel" of "car" is "car wheel" or "the wheel of the car"."""
    return f"{thing} {part}", f"the {part} of the {thing}"


def _words(text: str) -> str:
    """ "trash_can_(indoor)" -> "trash can"."""
    return re.sub(r"_\(.*?\)", "", text).replace("_", " ").strip().lower()


def _colon_names(name: str) -> tuple[str, ...]:
    thing, colon, part = name.partition(":")
    return part_names(_words(thing), _words(part)) if colon else (_words(thing),)


def _part_imagenet_names(name: str) -> tuple[str, ...]:
    thing, _, part = name.strip().partition(" ")
    return part_names(thing.lower(), part.lower().replace("tier", "tire")) if part else (thing.lower(),)  # the set's own spelling


def _records(
    dataset: str, root: Path, files: Files, names_of: Callable[[str], tuple[str, ...]], image_of: Callable[[Path, str, str], Path]
) -> Iterator[Record]:
    for split, places in files.items():
        path = first_file(root, *places)
        if path is None:
            continue
        tables = read_coco(path)
        names = {number: names_of(name) for number, name in tables.categories.items()}
        for number in sorted(tables.images):
            row = tables.images[number]
            name = str(row["file_name"])
            by_names: dict[tuple[str, ...], list[Any]] = defaultdict(list)
            for annotation in tables.annotations.get(number, ()):
                if annotation["category_id"] not in names:
                    raise UsageError(
                        f"{path}: category {annotation['category_id']} of image {name} is not in its list of categories"
                    )
                if not annotation.get("iscrowd"):
                    by_names[names[annotation["category_id"]]].append(annotation.get("segmentation") or [])
            if by_names:  # an image without annotations has nothing to ask for
                size = _size(row, f"{path}: image {name}")
                targets = tuple(
                    Target(words, CocoMask(tuple(shapes), size, f"{words[0]} in {name}"))
                    for words, shapes in sorted(by_names.items())
                )
                yield Record(dataset, Family.GENERAL, image_of(root, split, name), name, split, targets=targets)


def _size(row: dict[str, Any], where: str) -> tuple[int, int]:
    try:
        return int(row["height"]), int(row["width"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{where} has no height and width: this is another file, or another version") from error


def _placed(root: Path, *candidates: str) -> Path:
    """The first that is there; the first at all where none is, so that the check names it."""
    return first_file(root, *candidates) or root / candidates[0]


PACO: Final = Adapter(
    "paco-lvis",
    Family.GENERAL,
    "annotations/paco_lvis_v1_train.json, and COCO's train2017 here or in ../coco",
    lambda root: first_file(root, *_PACO["train"]) is not None,
    lambda root: _records(
        "paco-lvis",
        root,
        _PACO,
        _colon_names,
        lambda root, split, name: _placed(root, name, f"images/{name}", f"coco/{name}", f"../coco/{name}", f"../../coco/{name}"),
    ),
    published_images=57_643,
)
PART_IMAGENET: Final = Adapter(
    "partimagenet",
    Family.GENERAL,
    "annotations/train/train.json, images/train/*.JPEG",
    lambda root: (
        first_file(root, *_PART_IMAGENET["train"][:2]) is not None
        or first_file(root, "train_format.json") is not None
        or any(root.glob("train/n0*"))
    ),
    lambda root: _records(
        "partimagenet",
        root,
        _PART_IMAGENET,
        _part_imagenet_names,
        lambda root, split, name: _placed(
            root, f"images/{split}/{name}", f"images/{name}", f"{split}/{name}", f"{split}/{name.split('_')[0]}/{name}"
        ),
    ),
    published_images=24_095,
)
PASCAL_PART_JSON: Final = Adapter(
    "pascal-part",
    Family.GENERAL,
    "train.json, VOCdevkit/VOC2010/JPEGImages/*.jpg",
    lambda root: (root / "train.json").is_file() and (root / "VOCdevkit").is_dir(),
    lambda root: _records(
        "pascal-part",
        root,
        _PASCAL,
        _colon_names,
        lambda root, split, name: _placed(
            root, f"VOCdevkit/VOC2010/JPEGImages/{name}", f"VOC2010/JPEGImages/{name}", f"JPEGImages/{name}"
        ),
    ),
)

# PASCAL-Part's short names of parts as words: "rflleg" is nobody's word for a right front lower leg.


_SIDES: Final = {"l": "left", "r": "right", "f": "front", "b": "back"}
_LIMB: Final = re.compile(
    r"^(?P<side>[lr])(?P<end>[fb])?(?P<level>[lu])?(?P<name>leg|pa|ho|arm|eye|ear|ebrow|horn|wing|foot|hand|mirror)$"
)
_LIMB_NAMES: Final = {"pa": "paw", "ho": "hoof", "ebrow": "eyebrow"}
_LEVELS: Final = {"l": "lower", "u": "upper"}
_FACE: Final = re.compile(r"^(?P<coach>[hc])?(?P<side>front|left|right|back|roof)side$")
_OTHERS: Final = {
    "fwheel": "front wheel",
    "bwheel": "back wheel",
    "fliplate": "front license plate",
    "bliplate": "back license plate",
    "leftmirror": "left mirror",
    "rightmirror": "right mirror",
    "chainwheel": "chain wheel",
}
_THINGS: Final = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "monitor"}


def pascal_words(thing: str, part: str | None = None) -> tuple[str, ...]:
    """How a thing, or a part of it, may be asked for; ``part`` as the set writes it, with or without a number."""
    thing = _THINGS.get(thing, thing)
    return (thing,) if part is None else part_names(thing, _part_words(re.sub(r"_\d+$", "", part)))


def _part_words(code: str) -> str:
    if code in _OTHERS:
        return _OTHERS[code]
    if limb := _LIMB.match(code):
        name = _LIMB_NAMES.get(limb["name"], limb["name"])
        words = (_SIDES[limb["side"]], _SIDES.get(limb["end"] or "", ""), _LEVELS.get(limb["level"] or "", ""), name)
        return " ".join(word for word in words if word)
    if face := _FACE.match(code):
        of = {"h": "head ", "c": "coach "}.get(face["coach"] or "", "")
        return f"{of}{face['side']} side"
    return code.replace("_", " ")
