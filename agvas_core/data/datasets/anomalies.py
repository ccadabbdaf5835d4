"""Anomaly sets for training: CrackForest, GC10-DET, Real-IAD, ZJU-Leaper, those in MVTec's layout, reviewed parts.

MVTec's layout and the review folder are read by ``layouts``, for training and for evaluation alike.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from agvas_core.contract.errors import UsageError
from agvas_core.contract.review_folder import IMAGES, MASKS, REVIEW
from agvas_core.data.datasets.coco import need, read_json
from agvas_core.data.datasets.layouts import GOOD_KINDS, list_name, listed, mvtec_kind, reviewed
from agvas_core.data.datasets.masks import BoxMask, FileMask
from agvas_core.data.datasets.mat_file import CrackMat
from agvas_core.data.datasets.record import Adapter, Family, MaskSource, Record, first_folder, image_in
from agvas_core.files import folders, images, inside

__all__ = [
    "CRACK_FOREST",
    "DTD_SYNTHETIC",
    "GC10",
    "GOODS_AD",
    "LISTED",
    "LISTS",
    "MIAD",
    "MVTEC",
    "REAL_IAD",
    "REVIEWED",
    "ZJU_LEAPER",
    "listed_records",
]

# Road cracks: CrackForest-dataset, the paper's "Road".
#
# image/001.jpg, groundTruth/001.mat (struct groundTruth with Segmentation, 2 for crack); where groundTruthPng/001.png or
# groundTruthPngImg/001.png lies beside them, as most who use the set write it, it is read instead. Every image has a crack. The layout was
# read from public code that loads the set.

_PNG_FOLDERS: Final = ("groundTruthPng", "groundTruthPngImg")


def _crack_forest_records(root: Path) -> Iterator[Record]:
    png = first_folder(root, *_PNG_FOLDERS)
    folder = png or root / "groundTruth"
    truths: dict[str, MaskSource] = (
        {path.stem: FileMask(path) for path in images(folder)}
        if png
        else {path.stem: CrackMat(path) for path in folder.glob("*.mat")}
    )
    pictures = {path.stem: path for path in images(root / "image")}
    for stem in sorted(pictures.keys() | truths.keys()):
        picture = pictures.get(stem, root / "image" / f"{stem}.jpg")
        yield Record("road", Family.ANOMALY, picture, inside(root, picture), "train", "road", True, "crack", truths.get(stem))


CRACK_FOREST: Final = Adapter(
    "road",
    Family.ANOMALY,
    "image/*.jpg, groundTruth/*.mat",
    lambda root: (root / "image").is_dir() and first_folder(root, "groundTruth", *_PNG_FOLDERS) is not None,
    _crack_forest_records,
    published_images=118,
)

# GC10-DET: steel strip with ten kinds of defect.
#
# 1/img_01_425000200_00001.jpg to 10/..., lable/img_01_425000200_00001.xml (the set's own spelling; VOC's form: object/name, object/bndbox)
#
# The set has boxes and no outlines. The paper trains on it and does not say with which masks; here a box is filled (a coarse mask), unless a
# picture of the image's name lies in a folder masks. Every image shows a defect. A name that comes in several folders has one annotation
# only, so its image is unknown: those are left out. Names of the defects: ours, from the Chinese that the set abbreviates.
# The layout was read from public code that loads the set.


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

# Real-IAD: images in one folder, and for each category a JSON file that says which are which.
#
# realiad_1024/audiojack/OK/S0001/audiojack_0001_OK_C1_*.jpg (or realiad_512, realiad_256, realiad_raw),
# realiad_jsons/realiad_jsons/audiojack.json (also realiad_jsons/audiojack.json):
#
# {"meta": {"normal_class": "OK", "prefix": "audiojack/"}, "train": [{"category", "anomaly_class", "image_path", "mask_path"}], "test": [...]}
#
# Paths are relative to the images' folder and the prefix. The other lists (realiad_jsons_sv, realiad_jsons_fuiad_*) are choices of the same
# images, for other protocols, and are not read. Taken from public code that loads the set; the words for its codes of anomaly are ours, from
# the Chinese that they abbreviate. An image of a defective part on which the defect cannot be seen counts as normal, as the lists have it.


_LISTS: Final = ("realiad_jsons/realiad_jsons", "realiad_jsons")
_IMAGES: Final = ("realiad_1024", "realiad_512", "realiad_256", "realiad_raw")
_REAL_IAD_KINDS: Final = {
    "AK": "pit", "BX": "deformation", "CH": "abrasion", "HS": "scratch", "PS": "damage", "QS": "missing part", "YW": "foreign object",
    "ZW": "contamination",
}  # fmt: skip


def _list_files(root: Path) -> list[Path]:
    lists = first_folder(root, *_LISTS)
    return sorted(lists.glob("*.json")) if lists else []


def _real_iad_records(root: Path) -> Iterator[Record]:
    images = image_in(root, "Real-IAD", *_IMAGES)
    for path in _list_files(root):
        raw = read_json(path)
        need(raw, ("meta", "train", "test"), str(path))
        normal = str(raw["meta"].get("normal_class", "OK"))
        folder = images / str(raw["meta"].get("prefix") or path.stem)
        for split in ("train", "test"):
            for number, row in enumerate(raw[split]):
                need(row, ("image_path", "anomaly_class"), f"{path}: {split}[{number}]")
                yield _record(images, folder, path.stem, split, row, normal)


def _record(images: Path, folder: Path, category: str, split: str, row: dict[str, Any], normal: str) -> Record:
    picture = folder / str(row["image_path"])
    code = str(row["anomaly_class"])
    anomalous = code != normal
    mask = row.get("mask_path") if anomalous else None
    return Record(
        "real-iad",
        Family.ANOMALY,
        picture,
        picture.relative_to(images).as_posix(),
        split,
        category,
        anomalous,
        _REAL_IAD_KINDS.get(code, "") if anomalous else "",
        FileMask(folder / str(mask)) if mask else None,
    )


REAL_IAD: Final = Adapter(
    "real-iad",
    Family.ANOMALY,
    "realiad_jsons/realiad_jsons/*.json, realiad_1024/CATEGORY/...",
    lambda root: bool(_list_files(root)) or first_folder(root, *_IMAGES) is not None,
    _real_iad_records,
    parts=("|".join(_LISTS), "|".join(_IMAGES)),
    training_splits=("train", "test"),
    published_images=151_050,
)

# ZJU-Leaper: fabrics of 19 patterns.
#
# Images/000001.jpg (or .png), Annotations/masks/000001.png (only of defective ones), Annotations/xmls/000001.xml,
# ImageSets/Patterns/pattern1.json: {"normal": {"train": [id], "test": [id]}, "defect": {"train": [id], "test": [id]}}
#
# The layout is that of the authors' own reader (zl_fabric.py); no copy of the set was at hand.


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

# Sets in the layout of MVTec-AD (``layouts.mvtec_kind``): DTD-Synthetic, GoodsAD, MIAD, and any other folder that has it.
#
# The three are told by their categories: Woven_001 and the other textures; drink_bottle and the other goods; photovoltaic_module and the
# other tasks of inspection. That GoodsAD has this layout says its README; for DTD-Synthetic and MIAD it was read from public code that
# loads them. Both halves are for training: anomalous images are in the test half only, and the paper evaluates on other sets.

_TEXTURES: Final = {"blotchy", "fibrous", "marbled", "matted", "mesh", "perforated", "stratified", "woven"}
_GOODS: Final = {"cigarette_box", "drink_bottle", "drink_can", "food_bottle", "food_box", "food_package"}
_INSPECTIONS: Final = {
    "catenary_dropper", "electrical_insulator", "metal_welding", "nut_and_bolt", "photovoltaic_module", "wind_turbine", "witness_mark",
}  # fmt: skip
_NO_KIND: Final = {"bad", "defect", "defective", "anomaly", "abnormal", "ng", "ko"}


def kind_words(folder: str) -> str:
    """The kind of anomaly that a folder's name means; empty where it only says that there is one."""
    return "" if folder.lower() in _NO_KIND else folder.replace("_", " ").lower()


def _categories(root: Path) -> list[Path]:
    """Category folders; ``root`` itself where it is one."""
    if (root / "test").is_dir():
        return [root]
    return [path for path in folders(root) if (path / "test").is_dir() or (path / "train").is_dir()]


def _mvtec_records(root: Path, dataset: str) -> Iterator[Record]:
    for category in _categories(root):
        for half in ("train", "test"):
            for kind in folders(category / half):
                yield from _of_kind(root, dataset, category, half, kind)
        for kind in folders(category / "ground_truth"):
            if not (category / "test" / kind.name).is_dir():  # masks whose images never came
                yield from _orphans(root, dataset, category, kind, images(kind))


def _of_kind(root: Path, dataset: str, category: Path, half: str, kind: Path) -> Iterator[Record]:
    used = set()
    for item in mvtec_kind(root, category, half, kind):
        used.add(item.mask_path)
        mask = FileMask(item.mask_path, more=item.more_masks) if item.mask_path else None
        words = kind_words(kind.name) if item.anomalous else ""
        yield Record(
            dataset, Family.ANOMALY, item.image_path, item.name, half, category.name, item.anomalous, words, mask
        )  # fmt: skip
    if kind.name not in GOOD_KINDS and half == "test":
        masks = images(category / "ground_truth" / kind.name)
        yield from _orphans(root, dataset, category, kind, [mask for mask in masks if mask not in used])


def _orphans(root: Path, dataset: str, category: Path, kind: Path, masks: list[Path]) -> Iterator[Record]:
    """Masks without an image, as records of the images that should be there: the check says so."""
    for mask in masks:
        picture = category / "test" / kind.name / f"{mask.stem.removesuffix('_mask')}{mask.suffix}"
        yield Record(
            dataset,
            Family.ANOMALY,
            picture,
            inside(root, picture),
            "test",
            category.name,
            True,
            kind_words(kind.name),
            FileMask(mask),
        )


def _mvtec_matches(root: Path, names: set[str] | None) -> bool:
    found = [category for category in _categories(root) if any(folders(category / "test")) or any(folders(category / "train"))]
    return any(names is None or _family_of(category) in names for category in found)


def _family_of(category: Path) -> str:
    """ "Woven_001" -> "woven", and "woven1" too, as the authors standardise it: the textures of DTD-Synthetic are numbered."""
    return re.sub(r"_?\d+$", "", category.resolve().name.lower())


def _mvtec_adapter(dataset: str, names: set[str] | None, example: str, published_images: int | None = None) -> Adapter:
    return Adapter(
        dataset,
        Family.ANOMALY,
        f"{example}/train/good/*, {example}/test/KIND/*, {example}/ground_truth/KIND/*_mask.*",
        partial(_mvtec_matches, names=names),
        partial(_mvtec_records, dataset=dataset),
        training_splits=("train", "test"),
        published_images=published_images,
    )


DTD_SYNTHETIC: Final = _mvtec_adapter("dtd-synthetic", _TEXTURES, "Woven_001")
GOODS_AD: Final = _mvtec_adapter("goodsad", _GOODS, "drink_bottle", 6_124)
MIAD: Final = _mvtec_adapter("miad", _INSPECTIONS, "photovoltaic_module", 105_000)
MVTEC: Final = _mvtec_adapter("mvtec", None, "CATEGORY")

# Reviewed parts of a station, as a training set: few-shot adaptation to a station.


def _reviewed_records(root: Path) -> Iterator[Record]:
    for line, good in reviewed(root):
        mask = FileMask(root / line.mask) if line.mask and not good else None
        kind = "" if good else line.kind
        yield Record("review", Family.ANOMALY, root / line.image, line.image, "train", line.category, not good, kind, mask)


REVIEWED: Final = Adapter(
    "review",
    Family.ANOMALY,
    f"{IMAGES}/*, {MASKS}/* of the same names, and {REVIEW} where it was written by a review",
    lambda root: (root / IMAGES).is_dir() and ((root / REVIEW).is_file() or (root / MASKS).is_dir()),
    _reviewed_records,
)

# Lists (``meta_<set>.json``, see ``layouts``), as the authors order their anomaly sets: my_dataset/anomaly_seg/meta_Road.json and the
# folder Road beside it. The lists of table 5's sets are known by their names; any other list is taken where it is named itself.

_LIST_NAMES: Final = {
    "road": ("road",), "zju-leaper": ("zju", "zjuleaper"), "real-iad": ("realiadc1", "realiad"), "dtd-synthetic": ("dtd", "dtdsynthetic"),
    "miad": ("miad",), "goodsad": ("goods", "goodsad"), "gc10": ("gc", "gc10"),
}  # fmt: skip


def listed_records(path: Path, dataset: str | None = None) -> Iterator[Record]:
    """The images of a list, as records of an anomaly set; raises UsageError as ``layouts.listed``."""
    for half in ("train", "test"):
        for item in listed(path, half):
            mask = FileMask(item.mask_path, more=item.more_masks) if item.mask_path else None
            kind = kind_words(item.specie) if item.anomalous else ""
            yield Record(
                dataset or list_name(path),
                Family.ANOMALY,
                item.image_path,
                item.name,
                half,
                item.category,
                item.anomalous,
                kind,
                mask,
            )


def _is_list(path: Path, names: tuple[str, ...] | None) -> bool:
    if not (path.is_file() and path.suffix == ".json" and path.stem.startswith("meta_")):
        return False
    return names is None or re.sub(r"[^a-z0-9]", "", list_name(path).lower()) in names


def _list_adapter(dataset: str, names: tuple[str, ...] | None) -> Adapter:
    return Adapter(
        dataset,
        Family.ANOMALY,
        f"meta_{names[0] if names else 'SET'}.json, a list of images and masks",
        partial(_is_list, names=names),
        partial(listed_records, dataset=None if names is None else dataset),
        training_splits=("train", "test"),
    )


LISTS: Final = tuple(_list_adapter(dataset, names) for dataset, names in _LIST_NAMES.items())
LISTED: Final = _list_adapter("list", None)
