"""Annotation files: JSON, and what COCO makes of it."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agvas_core.contract.errors import UsageError

__all__ = ["CocoAnnotations", "need", "read_coco", "read_json"]


@dataclass(frozen=True)
class CocoAnnotations:
    """``images`` by id; ``annotations`` by the id of their image; ``categories``: names by id."""

    images: dict[int, dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]
    categories: dict[int, str]


def read_json(path: Path) -> Any:
    """What the file holds.

    Raises:
        UsageError: missing, or cut short.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        size = path.stat().st_size
        raise UsageError(f"{path} ({size:,} bytes) is no whole JSON file ({error}): download it again") from error


def need(row: Any, keys: tuple[str, ...], where: str) -> None:
    """Raises UsageError where ``row`` is no object, or lacks a key."""
    if not isinstance(row, dict):
        raise UsageError(
            f"{where} is {type(row).__name__}, not an object with {', '.join(keys)}: this is another file, or another version"
        )
    if missing := [key for key in keys if key not in row]:
        raise UsageError(
            f"{where} lacks {missing[0]!r} (it has {', '.join(map(str, row)) or 'nothing'}): this is another file, or another version"
        )


def read_coco(path: Path) -> CocoAnnotations:
    """The three tables of a COCO file.

    Raises:
        UsageError: not such a file, or one cut short.
    """
    raw = read_json(path)
    need(raw, ("images", "annotations", "categories"), str(path))
    for table, keys in (
        ("images", ("id", "file_name")),
        ("annotations", ("image_id", "category_id")),
        ("categories", ("id", "name")),
    ):
        for number, row in enumerate(raw[table]):
            need(row, keys, f"{path}: {table}[{number}]")
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in raw["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    return CocoAnnotations(
        images={row["id"]: row for row in raw["images"]},
        annotations=dict(by_image),
        categories={row["id"]: str(row["name"]) for row in raw["categories"]},
    )
