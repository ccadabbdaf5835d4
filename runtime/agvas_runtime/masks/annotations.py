"""Results in the forms that other tools read: table rows, COCO, YOLO.

    coco = coco_dataset(results)        # dict for json.dump, read by pycocotools, FiftyOne, CVAT, Label Studio
    lines = yolo_labels(result)         # text of one label file of YOLO segmentation

There is one category, ``anomaly``. A picture without a verdict is never written as a good one: it is in no label file and in no list
of images.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_runtime.masks.result import Region, Result, Verdict
from agvas_runtime.masks.run_lengths import coco_run_lengths

__all__ = [
    "CATEGORY",
    "CocoWriter",
    "coco_dataset",
    "region_mask",
    "table_csv",
    "table_rows",
    "yolo_labels",
]

CATEGORY: Final = "anomaly"
CATEGORY_ID: Final = 1

COLUMNS: Final = (
    "name", "index", "verdict", "score", "regions", "region", "x", "y", "width", "height", "area_px", "centroid_x", "centroid_y",
    "mean_score", "max_score", "image_width", "image_height", "threshold", "seed_threshold", "model", "error", "total_ms",
)  # fmt: skip
"""Of a table; x, y, width, height are a region's box in pixels."""

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet computes a cell of text that begins so; a file name may."""


def table_rows(result: Result) -> list[dict[str, Any]]:
    """One row per region, numbered from 1 in ``region``; one row without a region where there is none. Keys are ``COLUMNS``."""
    height, width = result.image.shape[:2] if result.image is not None else (None, None)
    base: dict[str, Any] = dict.fromkeys(COLUMNS) | {
        "name": result.name,
        "index": result.index,
        "verdict": str(result.verdict),
        "score": result.score,
        "regions": None if result.verdict is Verdict.NO_VERDICT else len(result.regions),
        "image_width": width,
        "image_height": height,
        "threshold": result.threshold,
        "seed_threshold": result.seed_threshold,
        "model": result.bundle,
        "error": result.error,
        "total_ms": round(result.timing["total"], 3) if "total" in result.timing else None,
    }
    return [base | _of_region(region, number) for number, region in enumerate(result.regions, start=1)] or [base]


def _of_region(region: Region, number: int) -> dict[str, Any]:
    x, y, width, height = region.box
    return {
        "region": number,
        "x": x,
        "y": y,
        "width": width,
        "height": height,
        "area_px": region.area_px,
        "centroid_x": round(region.centroid[0], 2),
        "centroid_y": round(region.centroid[1], 2),
        "mean_score": round(region.mean_score, 5),
        "max_score": round(region.max_score, 5),
    }


def table_csv(rows: Iterable[dict[str, Any]]) -> str:
    """Rows of ``table_rows`` as CSV with a header. Text that a spreadsheet would take for a formula gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _plain(value) for key, value in row.items()})
    return text.getvalue()


def _plain(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.lstrip(" \n").startswith(_FORMULA) else value


def region_mask(result: Result, region: Region) -> NDArray[np.bool_]:
    """The pixels of one region of a result within its box, bool [height, width]. Its polygon is simplified, this is not."""
    assert result.mask is not None, "a region comes of a mask"
    x, y, width, height = region.box
    inside = np.ascontiguousarray(result.mask[y : y + height, x : x + width]).view(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8, ltype=cv2.CV_32S)
    # Others reach into the box; only the region itself fills it from side to side both ways.
    fills = (stats[:, cv2.CC_STAT_WIDTH] == width) & (stats[:, cv2.CC_STAT_HEIGHT] == height)
    fills &= stats[:, cv2.CC_STAT_AREA] == region.area_px
    fills[0] = False  # what lies outside the mask
    return np.asarray(labels == int(np.argmax(fills)), np.bool_)


class CocoWriter:
    """Collects results; ``dataset`` is the whole. It keeps run lengths and no pictures."""

    def __init__(self) -> None:
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, result: Result) -> None:
        """Takes a result; one without a verdict is left out."""
        if result.image is None or result.mask is None or result.verdict is Verdict.NO_VERDICT:
            return
        image_id = len(self._images) + 1
        height, width = result.image.shape[:2]
        self._images.append({"id": image_id, "file_name": result.name, "width": width, "height": height})
        for region in result.regions:
            x, y, w, h = region.box
            whole = np.zeros((height, width), np.bool_)
            whole[y : y + h, x : x + w] = region_mask(result, region)
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY_ID,
                    "segmentation": coco_run_lengths(whole),
                    "bbox": [x, y, w, h],
                    "area": region.area_px,
                    "iscrowd": 0,
                    "score": round(region.max_score, 5),
                }
            )

    @property
    def dataset(self) -> dict[str, Any]:
        """``images``, ``annotations`` and ``categories``. Segmentations are compressed run lengths: the mask to the pixel, with holes."""
        return {
            "info": {"description": "anomalies found by AG-VAS"},
            "licenses": [],
            "images": self._images,
            "annotations": self._annotations,
            "categories": [{"id": CATEGORY_ID, "name": CATEGORY, "supercategory": CATEGORY}],
        }


def coco_dataset(results: Iterable[Result]) -> dict[str, Any]:
    """Results as one COCO data set, ready for ``json.dump``; ``CocoWriter`` says what is in it."""
    writer = CocoWriter()
    for result in results:
        writer.add(result)
    return writer.dataset


def yolo_labels(result: Result) -> str:
    """The label file of a result: a line ``0 x1 y1 x2 y2 ...`` per region, coordinates as shares of width and height, 0 to 1.

    The outline alone: YOLO has no holes. Empty where nothing was found.
    """
    if result.image is None:
        return ""
    height, width = result.image.shape[:2]
    lines = []
    for region in result.regions:
        numbers = [f"{value:.6f}" for x, y in _outline(region) for value in (x / width, y / height)]
        lines.append(" ".join(("0", *numbers)) + "\n")
    return "".join(lines)


def _outline(region: Region) -> Iterator[tuple[float, float]]:
    """Points (x, y) in px of a polygon of at least three; a pixel at column 0 reaches from 0 to 1."""
    if len(region.polygon) > 2:
        for x, y in region.polygon:
            yield x + 0.5, y + 0.5
        return
    x, y, width, height = region.box  # a point or a line: its box is a polygon
    yield from ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
