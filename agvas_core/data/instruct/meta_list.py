"""Samples by list, for images that lie in no known layout: a JSON list of {img_path, mask_path?, category, specie?, anomaly}.

The same file as ``agvas eval`` reads, ``meta_<set>.json``; paths are relative to its folder. Normal images (anomaly 0) are what references
are chosen from.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agvas_core.contract.errors import UsageError
from agvas_core.data.sets.masks import FileMask
from agvas_core.data.sets.record import Family, Record

__all__ = ["list_name", "listed_records"]

_NEEDED = ("img_path", "category", "anomaly")


def list_name(path: Path) -> str:
    """``meta_parts.json`` -> ``parts``."""
    return path.stem.removeprefix("meta_")


def listed_records(path: Path) -> Iterator[Record]:
    """The images of a list, as records of an anomaly set.

    Raises:
        UsageError: no such list, or an entry that lacks a field.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}): write it again") from error
    if not isinstance(rows, list):
        raise UsageError(f"{path} holds no list: it must be a list of {{img_path, mask_path, category, specie, anomaly}}")
    for number, row in enumerate(rows):
        missing = [name for name in _NEEDED if not isinstance(row, dict) or name not in row]
        if missing or str(row["anomaly"]) not in ("0", "1", "True", "False"):
            raise UsageError(f"{path}: entry {number} lacks {(missing or ['an anomaly of 0 or 1'])[0]}: add it")
        yield _record(path, row)


def _record(path: Path, row: dict[str, Any]) -> Record:
    anomalous = str(row["anomaly"]) in ("1", "True")
    mask = row.get("mask_path") if anomalous else None
    return Record(
        list_name(path),
        Family.ANOMALY,
        path.parent / str(row["img_path"]),
        str(row["img_path"]),
        "train",
        str(row["category"]),
        anomalous,
        str(row.get("specie") or "") if anomalous else "",
        FileMask(path.parent / str(mask)) if mask else None,
    )
