"""Sets with a class number for every pixel: ADE20K (SceneParse150) and COCO-Stuff.

ADE20K: images/training/ADE_train_00000001.jpg, annotations/training/ADE_train_00000001.png, objectInfo150.txt, as in
ADEChallengeData2016.zip. 0 is "other"; 1 to 150 are the lines of objectInfo150.txt, whose last column has the names.

COCO-Stuff (164k): images/train2017/000000000009.jpg, annotations/train2017/000000000009.png, as its repository lays them out, or
stuffthingmaps_trainval2017/train2017 as the archive unpacks, or train2017 with both side by side as LISA wants them; labels.txt from its
repository ("1: person"). A pixel is the number in labels.txt less one, 255 is unlabelled. Names with a hyphen (wall-brick, sky-other)
are no words that anybody says; they are left out, as LISA does.

Both read from descriptions and public code, not from a copy of the sets.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from agvas_core.contract.errors import UsageError
from agvas_core.data.datasets.masks import LabelFile
from agvas_core.data.datasets.record import Adapter, Family, Record, first_file, first_folder, image_in
from agvas_core.files import inside

__all__ = ["ADE20K", "COCO_STUFF"]

_SPLITS: Final = {"training": "train", "validation": "val", "train2017": "train", "val2017": "val"}
_COCO_IMAGES: Final = ("images/{0}", "{0}", "../coco/{0}")
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
            images = image_in(root, f"COCO-Stuff {split}", *(place.format(split) for place in _COCO_IMAGES))
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
