"""Referring sets: refCLEF, refCOCO, refCOCO+, refCOCOg, as their authors publish them.

refcoco/refs(unc).p, refcoco/instances.json, and the images in images/mscoco/images/train2014/COCO_train2014_000000581857.jpg; refclef has
images/saiapr_tc-12/19/images/19579.jpg. refCOCOg has the split umd, which keeps the images of its halves apart, besides google; the others
unc. One folder holds one set or all four. The list of references is a pickle, from which only plain data is taken (``pickled_data``);
refs(unc).json, the same list as JSON, comes first where it is there. Layout and fields are those of the authors' own reader (refer.py).
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from agvas_core.contract.errors import UsageError
from agvas_core.data.sets.adapter import Adapter, first_file, first_folder
from agvas_core.data.sets.annotation_file import CocoAnnotations, need, read_coco, read_json
from agvas_core.data.sets.coco_mask import CocoMask
from agvas_core.data.sets.pickled_data import read_plain
from agvas_core.data.sets.record import Family, Record, Target

__all__ = ["REFCLEF", "REFCOCO", "REFCOCOG", "REFCOCO_PLUS"]

_SPLIT_BY: Final = {
    "refclef": ("unc", "berkeley"),
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
}
_COCO_FOLDERS: Final = ("images/mscoco/images/train2014", "../coco/train2014", "../../coco/train2014", "train2014")
_CLEF_FOLDERS: Final = ("images/saiapr_tc-12", "saiapr_tc-12")


def _refs_file(root: Path, dataset: str) -> Path | None:
    names = [f"{dataset}/refs({by}).{kind}" for by in _SPLIT_BY[dataset] for kind in ("json", "p")]
    return first_file(root, *names)


def _records(root: Path, dataset: str) -> Iterator[Record]:
    path = _refs_file(root, dataset)
    if path is None:
        raise UsageError(f"{root / dataset} has no refs({_SPLIT_BY[dataset][0]}).p: unpack {dataset}.zip again")
    refs = read_json(path) if path.suffix == ".json" else read_plain(path)
    if not isinstance(refs, list):
        raise UsageError(f"{path} holds {type(refs).__name__}, not a list of references: take the set's own file")
    tables = read_coco(root / dataset / "instances.json")
    annotations = {row.get("id"): row for rows in tables.annotations.values() for row in rows}
    places = _CLEF_FOLDERS if dataset == "refclef" else _COCO_FOLDERS
    images = first_folder(root, *places) or root / places[0]
    for number, ref in enumerate(refs):
        where = f"{path}: reference {number}"
        need(ref, ("ann_id", "image_id", "sentences", "split"), where)
        if ref["ann_id"] not in annotations or ref["image_id"] not in tables.images:
            raise UsageError(
                f"{where} is about annotation {ref['ann_id']}, which instances.json lacks: the two are of different versions"
            )
        yield _record(images, dataset, ref, annotations[ref["ann_id"]], tables)


def _record(images: Path, dataset: str, ref: dict[str, Any], annotation: dict[str, Any], tables: CocoAnnotations) -> Record:
    image = tables.images[ref["image_id"]]
    file_name = str(image["file_name"])
    words = tuple(dict.fromkeys(" ".join(str(sentence["sent"]).split()).lower() for sentence in ref["sentences"]))
    size = (int(image["height"]), int(image["width"]))
    mask = CocoMask((annotation.get("segmentation") or [],), size, f"reference {ref.get('ref_id')} in {file_name}")
    return Record(
        dataset,
        Family.REFERRING,
        images / file_name,
        f"{file_name}#{ref.get('ref_id', ref['ann_id'])}",
        str(ref["split"]),
        category=tables.categories.get(annotation["category_id"], ""),
        targets=(Target(tuple(word for word in words if word), mask),),
    )


def _adapter(dataset: str, published_images: int | None = None) -> Adapter:
    images = " or ".join((_CLEF_FOLDERS if dataset == "refclef" else _COCO_FOLDERS)[:2])
    return Adapter(
        dataset,
        Family.REFERRING,
        f"{dataset}/refs({_SPLIT_BY[dataset][0]}).p, {dataset}/instances.json, {images}",
        lambda root: _refs_file(root, dataset) is not None or (root / dataset / "instances.json").is_file(),
        partial(_records, dataset=dataset),
        parts=(f"{dataset}/instances.json", "|".join(_CLEF_FOLDERS if dataset == "refclef" else _COCO_FOLDERS)),
        published_images=published_images,
    )


REFCLEF: Final = _adapter("refclef")
REFCOCO: Final = _adapter("refcoco", 19_994)
REFCOCO_PLUS: Final = _adapter("refcoco+", 19_992)
REFCOCOG: Final = _adapter("refcocog", 25_799)
