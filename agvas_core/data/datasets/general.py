"""Sets of things and their parts by name: ADE20K, COCO-Stuff, PACO-LVIS, PartImageNet, PASCAL-Part in COCO's JSON.

All were read from descriptions and public code, not from copies of the sets.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from agvas_core.contract.errors import UsageError
from agvas_core.data.datasets.coco import CocoMask, read_coco
from agvas_core.data.datasets.masks import LabelFile
from agvas_core.data.datasets.record import Adapter, Family, Record, Target, first_file, first_folder, image_in
from agvas_core.files import inside

__all__ = ["ADE20K", "COCO_STUFF", "PACO", "PART_IMAGENET", "PASCAL_PART_JSON", "part_names", "pascal_words"]

# Sets with a class number for every pixel: ADE20K (SceneParse150) and COCO-Stuff.
#
# ADE20K: images/training/ADE_train_00000001.jpg, annotations/training/ADE_train_00000001.png, objectInfo150.txt, as in
# ADEChallengeData2016.zip. 0 is "other"; 1 to 150 are the lines of objectInfo150.txt, whose last column has the names.
#
# COCO-Stuff (164k): images/train2017/000000000009.jpg, annotations/train2017/000000000009.png, as its repository lays them out, or
# stuffthingmaps_trainval2017/train2017 as the archive unpacks, or cocostuff/train2017 with the images in coco/train2017 beside it, as LISA
# and the paper's authors order them; labels.txt from its repository ("1: person"). A pixel is the number in labels.txt less one, 255 is unlabelled. Names with a hyphen (wall-brick, sky-other)
# are no words that anybody says; they are left out, as LISA does.

_SPLITS: Final = {"training": "train", "validation": "val", "train2017": "train", "val2017": "val"}
_COCO_IMAGES: Final = ("images/{0}", "{0}", "../coco/{0}", "../coco/images/{0}")
_COCO_LABELS: Final = ("annotations/{0}", "stuffthingmaps_trainval2017/{0}", "stuffthingmaps/{0}", "{0}")


def _ade20k(root: Path) -> Iterator[Record]:
    names = _ade20k_names(root / "objectInfo150.txt")
    for folder in ("training", "validation"):
        if (root / "annotations" / folder).is_dir() or (root / "images" / folder).is_dir():
            yield from _pairs("ade20k", root, root / "images" / folder, root / "annotations" / folder, names)


def _ade20k_names(path: Path) -> dict[int, str]:
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}): it has the names of the classes, take it from the set's archive"
        ) from error
    names = {int(row[0]): row[-1].split(",")[0].strip() for row in rows if row[0].strip().isdigit()}
    if not names:
        raise UsageError(
            f"{path} lists no class: each line has a number and, last, names, with tabs between; take it from the set's archive"
        )
    return names


def _coco_stuff(root: Path) -> Iterator[Record]:
    path = first_file(root, "labels.txt", "annotations/labels.txt", "cocostuff_classes.txt")
    if path is None:
        raise UsageError(f"{root} has no labels.txt: it names COCO-Stuff's classes; take it from the set's repository")
    rows = [line.partition(":") for line in path.read_text(encoding="utf-8").splitlines()]
    numbered = {int(number) - 1: name.strip() for number, colon, name in rows if colon and number.strip().isdigit()}
    names = {number: name for number, name in numbered.items() if 0 <= number < 255 and "-" not in name}
    for split in ("train2017", "val2017"):
        labels = first_folder(root, *(place.format(split) for place in _COCO_LABELS))
        if labels is not None:
            # In LISA's order the folder of the labels has the name that images have elsewhere: what holds photographs counts.
            places = [place.format(split) for place in _COCO_IMAGES]
            with_photographs = [place for place in places if any((root / place).glob("*.jpg"))]
            images = image_in(root, f"COCO-Stuff {split}", *(with_photographs or places))
            yield from _pairs("coco-stuff", root, images, labels, names)


def _pairs(dataset: str, root: Path, images: Path, labels: Path, names: Mapping[int, str]) -> Iterator[Record]:
    """One record for every image and every label file, also where its counterpart is missing: the check says so."""
    pictures = {path.stem: path for path in images.glob("*.jpg")}
    maps = {path.stem: path for path in labels.glob("*.png")}
    for stem in sorted(pictures.keys() | maps.keys()):
        if not stem.endswith("_labelTrainIds"):  # what other tools write beside COCO-Stuff's own
            picture = pictures.get(stem, images / f"{stem}.jpg")
            source = LabelFile(maps.get(stem, labels / f"{stem}.png"), names)
            name = inside(root, picture) if picture.is_relative_to(root) else f"{images.name}/{picture.name}"
            yield Record(dataset, Family.GENERAL, picture, name, _SPLITS[images.name], labels=source)


ADE20K: Final = Adapter(
    "ade20k",
    Family.GENERAL,
    "images/training/*.jpg, annotations/training/*.png, objectInfo150.txt",
    lambda root: (root / "annotations" / "training").is_dir() and any((root / "annotations" / "training").glob("ADE_train_*")),
    _ade20k,
    parts=("images/training", "images/validation", "annotations/validation", "objectInfo150.txt"),
    published_images=22_210,
)
COCO_STUFF: Final = Adapter(
    "coco-stuff",
    Family.GENERAL,
    "images/train2017/*.jpg, annotations/train2017/*.png, labels.txt",
    lambda root: any(
        (root / place.format("train2017")).is_dir() and any((root / place.format("train2017")).glob("*.png"))
        for place in _COCO_LABELS
    ),
    _coco_stuff,
    parts=("labels.txt|annotations/labels.txt|cocostuff_classes.txt",),
    published_images=123_287,
)

# Parts of things, in COCO's JSON: PACO-LVIS, PartImageNet, and PASCAL-Part as VLPart converts it.
#
# PACO-LVIS: annotations/paco_lvis_v1_train.json; its images are COCO's ("train2017/000000391895.jpg"), here, in images, or in a folder
# coco beside it or beside its parent (LISA's order). Categories "trash_can" and "trash_can:lid".
#
# PartImageNet: annotations/train/train.json with images/train/n01440764_10040.JPEG as the archive unpacks, or train.json with
# train/n01440764/... as VLPart wants it. Categories "Quadruped Head", supercategory "Quadruped".
#
# PASCAL-Part: train.json with VOCdevkit/VOC2010/JPEGImages/2008_000003.jpg; categories "aeroplane:body". As published, with .mat files, it is
# read by ``mat_file``.
#
# Where an image has several annotations of one name, the name means all of them together: "the wheel" of four would be a guess. (LISA
# takes one at random.)

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

# PASCAL-Part's short names of parts as words: "rflleg" is a right front lower leg.


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
