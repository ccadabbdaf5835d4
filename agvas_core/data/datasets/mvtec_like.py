"""Anomaly sets in the layout of MVTec-AD: DTD-Synthetic, GoodsAD, MIAD, and any other folder that has it.

CATEGORY/train/good/000.png, CATEGORY/test/good/000.png, CATEGORY/test/KIND/000.png, CATEGORY/ground_truth/KIND/000_mask.png (or 000.png)
MVTec LOCO has a folder of masks for each image, one mask an anomaly: CATEGORY/ground_truth/KIND/000/000.png, 001.png, ...

The three are told by their categories: Woven_001 and the other textures; drink_bottle and the other goods; photovoltaic_module and the
other tasks of inspection. That GoodsAD has this layout says its README; for DTD-Synthetic and MIAD it was read from public code that loads
them. Both halves are for training: anomalous images are in the test half only, and the paper evaluates on other sets.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from agvas_core.data.datasets.masks import FileMask
from agvas_core.data.datasets.record import Adapter, Family, Record
from agvas_core.files import GOOD, folders, images, inside, pair, parts_of_mask

__all__ = ["DTD_SYNTHETIC", "GOODS_AD", "MIAD", "MVTEC", "kind_words"]

_TEXTURES: Final = {"blotchy", "fibrous", "marbled", "matted", "mesh", "perforated", "stratified", "woven"}
_GOODS: Final = {"cigarette_box", "drink_bottle", "drink_can", "food_bottle", "food_box", "food_package"}
_INSPECTIONS: Final = {
    "catenary_dropper", "electrical_insulator", "metal_welding", "nut_and_bolt", "photovoltaic_module", "wind_turbine", "witness_mark",
}  # fmt: skip
_NO_KIND: Final = {"bad", "defect", "defective", "anomaly", "abnormal", "ng", "ko"}
_MASKS: Final = ("_mask", "")


def kind_words(folder: str) -> str:
    """The kind of anomaly that a folder's name means; empty where it only says that there is one."""
    return "" if folder.lower() in _NO_KIND else folder.replace("_", " ").lower()


def _categories(root: Path) -> list[Path]:
    """Category folders; ``root`` itself where it is one."""
    if (root / "test").is_dir():
        return [root]
    return [path for path in folders(root) if (path / "test").is_dir() or (path / "train").is_dir()]


def _records(root: Path, dataset: str) -> Iterator[Record]:
    for category in _categories(root):
        for half in ("train", "test"):
            for kind in folders(category / half):
                yield from _of_kind(root, dataset, category, half, kind)
        for kind in folders(category / "ground_truth"):
            if not (category / "test" / kind.name).is_dir():  # masks whose images never came
                yield from _orphans(root, dataset, category, kind, images(kind))


def _of_kind(root: Path, dataset: str, category: Path, half: str, kind: Path) -> Iterator[Record]:
    anomalous = kind.name != GOOD
    masks = images(category / "ground_truth" / kind.name) if anomalous and half == "test" else []
    used = set()
    for picture, mask in pair(images(kind), masks, _MASKS):
        used.add(mask)
        several = category / "ground_truth" / kind.name / picture.stem
        found = [mask] if mask else parts_of_mask(several) if anomalous and half == "test" and several.is_dir() else []
        yield Record(
            dataset, Family.ANOMALY, picture, inside(root, picture), half, category.name, anomalous,
            kind_words(kind.name) if anomalous else "", FileMask(found[0], more=tuple(found[1:])) if found else None,
        )  # fmt: skip
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


def _matches(root: Path, names: set[str] | None) -> bool:
    found = [category for category in _categories(root) if any(folders(category / "test")) or any(folders(category / "train"))]
    return any(names is None or _family_of(category) in names for category in found)


def _family_of(category: Path) -> str:
    """ "Woven_001" -> "woven": the textures of DTD-Synthetic are numbered."""
    name = category.resolve().name.lower()
    stem, _, number = name.rpartition("_")
    return stem if number.isdigit() else name


def _adapter(dataset: str, names: set[str] | None, example: str, published_images: int | None = None) -> Adapter:
    return Adapter(
        dataset,
        Family.ANOMALY,
        f"{example}/train/good/*, {example}/test/KIND/*, {example}/ground_truth/KIND/*_mask.*",
        partial(_matches, names=names),
        partial(_records, dataset=dataset),
        training_splits=("train", "test"),
        published_images=published_images,
    )


DTD_SYNTHETIC: Final = _adapter("dtd-synthetic", _TEXTURES, "Woven_001")
GOODS_AD: Final = _adapter("goodsad", _GOODS, "drink_bottle", 6_124)
MIAD: Final = _adapter("miad", _INSPECTIONS, "photovoltaic_module", 105_000)
MVTEC: Final = _adapter("mvtec", None, "CATEGORY")
