"""Real-IAD: images in one folder, and for each category a JSON file that says which are which.

realiad_1024/audiojack/OK/S0001/audiojack_0001_OK_C1_*.jpg (or realiad_512, realiad_256, realiad_raw),
realiad_jsons/realiad_jsons/audiojack.json (also realiad_jsons/audiojack.json):

{"meta": {"normal_class": "OK", "prefix": "audiojack/"}, "train": [{"category", "anomaly_class", "image_path", "mask_path"}], "test": [...]}

Paths are relative to the images' folder and the prefix. The other lists (realiad_jsons_sv, realiad_jsons_fuiad_*) are choices of the same
images, for other protocols, and are not read. Taken from public code that loads the set; the words for its codes of anomaly are ours, from
the Chinese that they abbreviate. An image of a defective part on which the defect cannot be seen counts as normal, as the lists have it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from agvas_core.data.sets.adapter import Adapter, first_folder, image_in
from agvas_core.data.sets.annotation_file import need, read_json
from agvas_core.data.sets.masks import FileMask
from agvas_core.data.sets.record import Family, Record

__all__ = ["REAL_IAD"]

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
