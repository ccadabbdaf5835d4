"""The generic layout: ``meta_<set>.json`` lists images and masks, wherever they lie below it.

Either a list of {img_path, mask_path?, category, specie, anomaly}, or, as other zero-shot code writes it,
{"test": {CATEGORY: [{img_path, mask_path, cls_name, specie_name, anomaly}]}}, and "train" likewise. Paths are relative to the file's folder, or to a
folder of the set's name beside it.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agvas_core.contract.errors import UsageError
from agvas_core.evaluation.item import Item
from agvas_core.files import GOOD, parts_of_mask

__all__ = ["NAME", "items", "meta_files", "set_name", "train_items"]

NAME = "meta"


def meta_files(root: Path) -> list[Path]:
    """The lists in ``root``, by name."""
    return sorted(path for path in root.glob("meta_*.json") if path.is_file())


def set_name(path: Path) -> str:
    """``meta_mvtec.json`` -> ``mvtec``."""
    return path.stem.removeprefix("meta_")


def items(path: Path) -> Iterator[Item]:
    """The test images of one list.

    Raises:
        UsageError: not such a list, an entry that lacks a field, or an image that stands there twice.
    """
    yield from _listed(path, _entries(path))


def train_items(path: Path) -> Iterator[Item]:
    """The good images of a list's training half; none where it has none."""
    yield from (item for item in _listed(path, _entries(path, "train")) if not item.anomalous)


def _listed(path: Path, entries: list[dict[str, Any]]) -> Iterator[Item]:
    names = Counter(entry["img_path"] for entry in entries)
    if twice := [name for name, count in names.items() if count > 1]:
        raise UsageError(f"{path} lists {twice[0]} {names[twice[0]]} times: keep one entry")
    for entry in entries:
        anomalous = bool(int(entry["anomaly"]))
        mask = entry.get("mask_path") or None
        masks = parts_of_mask(_found(path, mask)) if mask and anomalous else []
        yield Item(
            image_path=_found(path, entry["img_path"]),
            mask_path=masks[0] if masks else None,
            category=str(entry["category"]),
            specie=str(entry.get("specie") or ("anomaly" if anomalous else GOOD)),
            anomalous=anomalous,
            name=str(entry["img_path"]).replace("\\", "/"),
            more_masks=tuple(masks[1:]),
        )


def _entries(path: Path, half: str = "test") -> list[dict[str, Any]]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}): write it again") from error
    if isinstance(raw, dict) and isinstance(raw.get("test"), dict):
        listed = raw.get(half)
        named: dict[str, Any] = listed if isinstance(listed, dict) else {}
        raw = [{"category": category, **entry} for category, some in named.items() for entry in some]
        for entry in raw:
            entry.setdefault("specie", entry.get("specie_name"))
    elif half != "test":
        return []
    if not isinstance(raw, list) or not all(isinstance(entry, dict) for entry in raw):
        raise UsageError(
            f"{path} holds no list of images: it must be a list of {{img_path, mask_path, category, specie, anomaly}}"
        )
    for number, entry in enumerate(raw):
        if missing := sorted({"img_path", "category", "anomaly"} - entry.keys()):
            raise UsageError(f"{path}: entry {number} lacks {missing[0]}: add it")
    return raw


def _found(meta: Path, name: str) -> Path:
    beside = meta.parent / name
    below = meta.parent / set_name(meta) / name
    return below if below.exists() and not beside.exists() else beside
