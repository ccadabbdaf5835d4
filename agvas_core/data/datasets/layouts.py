"""Folders of test images with masks, one layout after another: which one a folder has, and what it lists.

A layout is read here alone. Evaluation tests on ``items`` and fits on ``train_items``; training makes its records of the same reading
where it learns from a layout (``anomalies``: MVTec's, and the review folder).

for data in find_test_sets(Path("sets")):
    for item in data.items:
        ...
"""

import csv
import json
import logging
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from agvas_core.contract.errors import UsageError
from agvas_core.contract.review_folder import IMAGES, MASKS, REVIEW, ReviewLine, read_lines
from agvas_core.data.datasets.item import DataSet, Item
from agvas_core.files import GOOD, IMAGE_SUFFIXES, folders, images, inside, is_empty, pair, parts_of_mask

__all__ = ["GOOD_KINDS", "LAYOUT_NAMES", "find_test_sets", "limited", "list_name", "listed", "mvtec_kind", "reviewed"]

log = logging.getLogger("agvas")


@dataclass(frozen=True)
class Layout:
    """One published folder layout."""

    name: str
    matches: Callable[[Path], bool]
    """Whether a folder has it."""
    items: Callable[[Path], Iterator[Item]]
    """The test images of a folder that has it."""
    train_items: Callable[[Path], Iterator[Item]] | None = None
    """The good images that it keeps apart for training; None where it keeps none."""


# MVTec-AD, and the many sets that follow it (MPDD among them).
#
# CATEGORY/test/good/000.png, CATEGORY/test/KIND/000.png, CATEGORY/ground_truth/KIND/000_mask.png (or 000.png), CATEGORY/train/good/000.png
#
# MVTec LOCO has a folder of masks for each image instead, one mask an anomaly: CATEGORY/ground_truth/KIND/000/000.png, 001.png, ...

GOOD_KINDS: Final = frozenset({GOOD, "ok"})
"""Folders of good images: BTAD, and sets that follow it, say ok."""


def mvtec_kind(root: Path, category: Path, half: str, kind: Path) -> Iterator[Item]:
    """The images of one folder of MVTec's layout, each with its masks.

    Args:
        root: the set's folder, which names are relative to.
        category: folder of the category.
        half: ``train``, which has no masks, or ``test``.
        kind: the folder, ``category / half / KIND``; ``good`` holds good images.
    """
    anomalous = kind.name not in GOOD_KINDS
    truth = category / "ground_truth" / kind.name
    with_masks = anomalous and half == "test"
    for picture, mask in pair(images(kind), images(truth) if with_masks else [], ("_mask", "")):
        several = truth / picture.stem
        found = [mask] if mask else parts_of_mask(several) if with_masks and several.is_dir() else []
        first = found[0] if found else None
        name = inside(root, picture)
        yield Item(picture, first, category.name, kind.name, anomalous, name, more_masks=tuple(found[1:]))


def _mvtec_categories(root: Path) -> list[Path]:
    if (root / "test").is_dir():  # a single category was named
        return [root]
    return [path for path in folders(root) if (path / "test").is_dir()]


def _mvtec_items(root: Path) -> Iterator[Item]:
    for category in _mvtec_categories(root):
        for kind in folders(category / "test"):
            yield from mvtec_kind(root, category, "test", kind)


def _mvtec_train(root: Path) -> Iterator[Item]:
    for category in _mvtec_categories(root):
        yield from _good(root, category.name, category / "train" / GOOD)


def _good(root: Path, category: str, folder: Path) -> Iterator[Item]:
    """Good images that are directly in a folder."""
    for picture in images(folder):
        yield Item(picture, None, category, GOOD, False, inside(root, picture))


MVTEC: Final = Layout(
    "mvtec",
    lambda root: any(images(kind) for category in _mvtec_categories(root) for kind in folders(category / "test")),
    _mvtec_items,
    _mvtec_train,
)

# BTAD: 01/test/ok/0000.bmp, 01/test/ko/0000.bmp, 01/ground_truth/ko/0000.png, 01/train/ok/0000.bmp.


def _btad_items(root: Path) -> Iterator[Item]:
    for category in folders(root):
        for picture, mask in pair(images(category / "test" / "ko"), images(category / "ground_truth" / "ko"), ("", "_mask")):
            yield Item(picture, mask, category.name, "ko", True, inside(root, picture))
        for picture, _ in pair(images(category / "test" / "ok"), [], ("",)):
            yield Item(picture, None, category.name, GOOD, False, inside(root, picture))


def _btad_train(root: Path) -> Iterator[Item]:
    for category in folders(root):
        yield from _good(root, category.name, category / "train" / "ok")


BTAD: Final = Layout(
    "btad", lambda root: any((path / "test" / "ko").is_dir() for path in folders(root)), _btad_items, _btad_train
)

# VisA: CATEGORY/Data/Images/{Normal,Anomaly}/0000.JPG, CATEGORY/Data/Masks/Anomaly/000.png, split_csv/1cls.csv.
#
# Masks number the kinds of anomaly from 1; everything above 0 is anomalous. The official split, where its file is there, says which
# good images belong to the test half; all anomalous ones do.

_VISA_SPLIT = Path("split_csv") / "1cls.csv"


def _visa_items(root: Path) -> Iterator[Item]:
    test = _visa_half(root, "test")
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


def _visa_train(root: Path) -> Iterator[Item]:
    train = _visa_half(root, "train") or set()
    for category in folders(root):
        for picture in images(category / "Data" / "Images" / "Normal"):
            if (name := inside(root, picture)) in train:
                yield Item(picture, None, category.name, GOOD, False, name)


def _visa_half(root: Path, which: str) -> set[str] | None:
    path = root / _VISA_SPLIT
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if rows and not {"split", "image"} <= rows[0].keys():
        raise UsageError(f"{path} has columns {', '.join(rows[0])}; split and image are needed: copy the file of the set again")
    return {row["image"].replace("\\", "/") for row in rows if row["split"] == which}


VISA: Final = Layout(
    "visa", lambda root: any((path / "Data" / "Images" / "Anomaly").is_dir() for path in folders(root)), _visa_items, _visa_train
)

# KolektorSDD2: test/20000.png with test/20000_GT.png beside it; a black mask says that the image is good.

_KSDD2_MASK = "_GT"


def _ksdd2_items(root: Path) -> Iterator[Item]:
    yield from _ksdd2_half(root, "test")


def _ksdd2_train(root: Path) -> Iterator[Item]:
    yield from (item for item in _ksdd2_half(root, "train") if not item.anomalous)


def _ksdd2_half(root: Path, which: str) -> Iterator[Item]:
    files = images(root / which)
    masks = [path for path in files if path.stem.endswith(_KSDD2_MASK)]
    pictures = [path for path in files if not path.stem.endswith(_KSDD2_MASK)]
    for picture, mask in pair(pictures, masks, (_KSDD2_MASK,)):
        name = inside(root, picture)
        if mask is None:  # not labelled good or bad
            raise UsageError(f"{picture} has no {picture.stem}{_KSDD2_MASK}.png beside it: copy the set again")
        if is_empty(mask):
            yield Item(picture, None, "surface", GOOD, False, name)
        else:
            yield Item(picture, mask, "surface", "defect", True, name)


KSDD2: Final = Layout(
    "ksdd2", lambda root: any(path.stem.endswith(_KSDD2_MASK) for path in images(root / "test")), _ksdd2_items, _ksdd2_train
)

# RSDDs: "Type-I RSDDs dataset"/"Rail surface images"/rail_1.jpg with GroundTruth/rail_1.jpg; every rail carries a defect.
#
# The masks are JPEG, so their noise is cut off at half. The two types are two categories.

_RSDD_IMAGES, _RSDD_MASKS = "rail surface images", "groundtruth"


def _rsdd_items(root: Path) -> Iterator[Item]:
    for kind, pictures, masks in _rsdd_types(root):
        for picture, mask in pair(images(pictures), images(masks), ("", "_mask")):
            yield Item(picture, mask, kind, "defect", True, inside(root, picture), mask_level="half")


def _rsdd_types(root: Path) -> list[tuple[str, Path, Path]]:
    """Category, folder of images, folder of masks."""
    found = []
    for folder in (root, *folders(root)):
        by_name = {path.name.lower().replace("_", " "): path for path in folders(folder)}
        if _RSDD_IMAGES in by_name:
            lower = folder.name.lower()
            category = "type-ii" if "type-ii" in lower else "type-i" if "type-i" in lower else "rail"
            found.append((category, by_name[_RSDD_IMAGES], by_name.get(_RSDD_MASKS, folder / "GroundTruth")))
    return found


RSDD: Final = Layout("rsdd", lambda root: bool(_rsdd_types(root)), _rsdd_items)

# ISIC, the segmentation task of 2016 to 2018: a folder of images and one of masks, side by side.
#
# ISBI2016_ISIC_Part1_Test_Data/ISIC_0000003.jpg     ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_0000003_Segmentation.png
# ISIC-2017_Test_v2_Data/ISIC_0012086.jpg            ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_0012086_segmentation.png
# ISIC2018_Task1-2_Test_Input/ISIC_0012169.jpg       ISIC2018_Task1_Test_GroundTruth/ISIC_0012169_segmentation.png

_FIRST_TASK = r"^(?!.*(Part|Task)[23])"
_ISIC_IMAGES = re.compile(_FIRST_TASK + r".*ISIC.*Test.*_(Data|Input)$", re.IGNORECASE)
_ISIC_MASKS = re.compile(_FIRST_TASK + r".*ISIC.*Test.*GroundTruth$", re.IGNORECASE)


def _isic_items(root: Path) -> Iterator[Item]:
    pictures = _isic_folder(root, _ISIC_IMAGES)
    masks = _isic_folder(root, _ISIC_MASKS)
    shown = [path for path in images(pictures) if "superpixels" not in path.stem] if pictures else []
    found = images(masks) if masks else []
    for picture, mask in pair(shown, found, ("_segmentation", "_Segmentation")):
        yield Item(picture, mask, "skin", "lesion", True, inside(root, picture))


def _isic_folder(root: Path, pattern: re.Pattern[str]) -> Path | None:
    found = [path for path in folders(root) if pattern.search(path.name)]
    if len(found) > 1:
        raise UsageError(f"{root} has two test halves, {found[0].name} and {found[1].name}: give each year a folder of its own")
    return found[0] if found else None


ISIC: Final = Layout("isic", lambda root: any(_ISIC_IMAGES.search(path.name) for path in folders(root)), _isic_items)

# CVC-ColonDB and CVC-ClinicDB: a folder of images and one of masks with the same names; every image shows a polyp.
#
# ClinicDB: Original/1.tif with "Ground Truth"/1.tif, also below PNG/ or TIF/. ColonDB: images/1.png with masks/1.png, or, as first
# published, 1.bmp with the mask p1.bmp beside it. Masks went through lossy compression, so their noise is cut off at half.

_CVC_PAIRS = (("original", "ground truth"), ("images", "masks"))
_NUMBERED = re.compile(r"^\d+$")


def _cvc_items(root: Path) -> Iterator[Item]:
    beside = _cvc_folders(root)
    if beside is not None:
        pairs = pair(images(beside[0]), images(beside[1]), ("", "_mask"))
    else:
        folder = _cvc_numbered(root) or root
        files = images(folder)
        masks = {path.stem[1:]: path for path in files if re.match(r"^p\d+$", path.stem)}
        pairs = iter([(path, masks.get(path.stem)) for path in files if _NUMBERED.match(path.stem)])
    for picture, mask in pairs:
        yield Item(picture, mask, "colon", "polyp", True, inside(root, picture), mask_level="half")


def _cvc_folders(root: Path) -> tuple[Path, Path] | None:
    for folder in (root, *(path for path in folders(root) if path.name.upper() in ("PNG", "TIF"))):
        by_name = {path.name.lower().replace("_", " "): path for path in folders(folder)}
        for pictures, masks in _CVC_PAIRS:
            if pictures in by_name and masks in by_name and images(by_name[pictures]):
                return by_name[pictures], by_name[masks]
    return None


def _cvc_numbered(root: Path) -> Path | None:
    for folder in (root, *folders(root)):
        stems = {path.stem for path in images(folder)}
        if any(_NUMBERED.match(stem) and f"p{stem}" in stems for stem in stems):
            return folder
    return None


CVC: Final = Layout("cvc", lambda root: _cvc_folders(root) is not None or _cvc_numbered(root) is not None, _cvc_items)

# Reviewed parts of one's own (``contract/review_folder.py`` has the layout). Evaluation asks for ``review.jsonl``; training goes by the
# pictures alone where there is none.


def reviewed(root: Path) -> Iterator[tuple[ReviewLine, bool]]:
    """What a review folder says of each of its images, and whether the part is good: said so, or nothing is marked.

    Raises:
        UsageError: a line that is not one, or a picture that has two masks.
    """
    for line in read_lines(root) if (root / REVIEW).is_file() else _by_pictures(root):
        yield line, line.good or (line.mask is not None and is_empty(root / line.mask))


def _by_pictures(root: Path) -> Iterator[ReviewLine]:
    for picture, mask in pair(_pictures(root / IMAGES), _pictures(root / MASKS), ("", "_mask")):
        yield ReviewLine(image=inside(root, picture), mask=inside(root, mask) if mask else None, good=mask is None)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _review_items(root: Path) -> Iterator[Item]:
    for line, good in reviewed(root):
        mask = root / line.mask if line.mask and not good else None
        kind = GOOD if good else line.kind or "defect"
        yield Item(root / line.image, mask, line.category or "parts", kind, not good, line.image)


REVIEWED: Final = Layout("review", lambda root: (root / REVIEW).is_file() and (root / IMAGES).is_dir(), _review_items)

# The generic layout: ``meta_<set>.json`` lists images and masks, wherever they lie below it.
#
# Either a list of {img_path, mask_path?, category, specie, anomaly}, or, as the authors' own lists are published (Bayes-PFL, DictAS),
# {"test": {CATEGORY: [{img_path, mask_path, cls_name, specie_name, anomaly}]}}, and "train" likewise. Paths are relative to the file's
# folder, or to a folder of the set's name beside it. A published half without images has one entry whose path is empty.

_META: Final = "meta"


def _meta_files(root: Path) -> list[Path]:
    """The lists in ``root``, by name."""
    return sorted(path for path in root.glob("meta_*.json") if path.is_file())


def list_name(path: Path) -> str:
    """``meta_mvtec.json`` -> ``mvtec``."""
    return path.stem.removeprefix("meta_")


def _meta_items(path: Path) -> Iterator[Item]:
    yield from listed(path, "test")


def _meta_train(path: Path) -> Iterator[Item]:
    """The good images of a list's training half; none where it has none."""
    yield from (item for item in listed(path, "train") if not item.anomalous)


def listed(path: Path, half: Literal["train", "test"] = "test") -> Iterator[Item]:
    """The images of one list; a plain list has a test half alone.

    Raises:
        UsageError: not such a list, an entry that lacks a field, or an image that stands there twice.
    """
    entries = _meta_entries(path, half)
    names = Counter(entry["img_path"] for entry in entries)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UsageError(f"{path} lists {twice[0]} {names[twice[0]]} times: keep one entry")
    for entry in entries:
        anomalous = str(entry["anomaly"]) in ("1", "True")
        mask = entry.get("mask_path") or None
        masks = parts_of_mask(_meta_path(path, mask)) if mask and anomalous else []
        yield Item(
            image_path=_meta_path(path, entry["img_path"]),
            mask_path=masks[0] if masks else None,
            category=str(entry["category"]),
            specie=str(entry.get("specie") or ("anomaly" if anomalous else GOOD)),
            anomalous=anomalous,
            name=str(entry["img_path"]).replace("\\", "/"),
            more_masks=tuple(masks[1:]),
        )


def _meta_entries(path: Path, half: str) -> list[dict[str, Any]]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}): write it again") from error
    if isinstance(raw, dict) and isinstance(raw.get("test"), dict):
        halves = raw.get(half)
        named: dict[str, Any] = halves if isinstance(halves, dict) else {}
        raw = [{"category": category, **entry} for category, some in named.items() for entry in some]
        for entry in raw:
            entry.setdefault("specie", entry.get("specie_name"))
        raw = [entry for entry in raw if entry.get("img_path") != ""]
    elif half != "test":
        return []
    if not isinstance(raw, list) or not all(isinstance(entry, dict) for entry in raw):
        raise UsageError(
            f"{path} holds no list of images: it must be a list of {{img_path, mask_path, category, specie, anomaly}}"
        )
    for number, entry in enumerate(raw):
        if missing := sorted({"img_path", "category", "anomaly"} - entry.keys()):
            raise UsageError(f"{path}: entry {number} lacks {missing[0]}: add it")
        if str(entry["anomaly"]) not in ("0", "1", "True", "False"):
            raise UsageError(f"{path}: entry {number} has an anomaly of {entry['anomaly']!r}: it is 0 or 1")
    return raw


def _meta_path(meta: Path, name: str) -> Path:
    beside = meta.parent / name
    below = meta.parent / list_name(meta) / name
    return below if below.exists() and not beside.exists() else beside


# Finding the sets in a folder, and a seeded choice of their images.


# The particular ones first: BTAD would pass for MVTec-AD, whose layout everyone follows. A list (meta_*.json) comes before all.
LAYOUTS: Final = (REVIEWED, BTAD, VISA, KSDD2, RSDD, ISIC, CVC, MVTEC)
LAYOUT_NAMES: Final = (_META, *(layout.name for layout in LAYOUTS))
ALIASES: Final = {"mpdd": "mvtec", "colondb": "cvc", "clinicdb": "cvc"}


def find_test_sets(data: Path, *, only: str | None = None, layout: str | None = None, train: bool = False) -> list[DataSet]:
    """The sets in a folder: the folder itself is one, or each of its folders is.

    Args:
        data: the folder.
        only: take the set of this name.
        layout: take the folders for this layout; found out where None.
        train: list the good images of the training half, too.

    Raises:
        UsageError: no such folder or set, no layout fits, or a set lists no image.
    """
    if not data.is_dir():
        raise UsageError(
            f"{data} is {'a file' if data.exists() else 'not there'}; --data takes the folder of a set, or of several"
        )
    if layout is not None and ALIASES.get(layout, layout) not in LAYOUT_NAMES:
        raise UsageError(f"--layout is {layout!r}; it can be {', '.join((*LAYOUT_NAMES, *ALIASES))}")
    wanted = ALIASES.get(layout, layout) if layout else None
    found = _sets_of(data, wanted, train)
    if not found:
        found = [one for folder in folders(data) for one in _sets_of(folder, wanted, train)]
    if not found:
        names = ", ".join(LAYOUT_NAMES) if wanted is None else wanted
        raise UsageError(f"{data} has none of the layouts {names}, nor have its folders: see docs, or write a meta_<set>.json")
    known = [one.name for one in found]
    if only is None:  # what is asked for by name is never left out
        found = _with_images(found)
    if only is not None:
        found = [one for one in found if one.name == only]
        if not found:
            raise UsageError(f"--set is {only!r}; {data} has {', '.join(known)}")
    if empty := [one.name for one in found if not one.items]:
        raise UsageError(f"the set {empty[0]} in {data} lists no image: copy it again, or name another --layout")
    if len({one.name for one in found}) < len(found):
        raise UsageError(f"{data} has two sets of one name ({', '.join(sorted(known))}): rename a folder")
    return found


def _with_images(found: list[DataSet]) -> list[DataSet]:
    """Without the lists none of whose images are there, where others have theirs: the authors publish all lists together."""
    there = [one for one in found if one.layout != _META or any(item.image_path.is_file() for item in one.items)]
    if not there:
        return found
    for one in found:
        if one not in there:
            log.warning("left out: none of the images of meta_%s.json is in %s", one.name, one.root)
    return there


def limited(data: DataSet, per_kind: int, seed: int) -> DataSet:
    """At most ``per_kind`` images of each kind of each category; the same ones for the same seed on every machine."""
    kinds: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in data.items:
        kinds[item.category, item.specie].append(item)
    kept: set[str] = set()
    for (category, specie), items in kinds.items():
        # A string seeds Random by its bytes, not by the salted hash.
        rng = random.Random(f"{seed}/{data.name}/{category}/{specie}")
        names = sorted(item.name for item in items)
        kept.update(rng.sample(names, min(per_kind, len(names))))
    return replace(data, items=tuple(item for item in data.items if item.name in kept))


def _sets_of(folder: Path, name: str | None, train: bool) -> list[DataSet]:
    if name in (None, _META) and (lists := _meta_files(folder)):
        return [_set(list_name(path), _META, folder, _meta_items(path), _meta_train(path) if train else ()) for path in lists]
    for layout in LAYOUTS:
        if name in (None, layout.name) and layout.matches(folder):
            good = layout.train_items(folder) if train and layout.train_items is not None else ()
            return [_set(folder.resolve().name, layout.name, folder, layout.items(folder), good)]
    return []


def _set(name: str, layout: str, root: Path, items: Iterable[Item], train: Iterable[Item]) -> DataSet:
    return DataSet(name, layout, root, tuple(items), tuple(train))
