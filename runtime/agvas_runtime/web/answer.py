"""A result as the reply to a request, with what was asked for of its mask."""

import base64
from collections.abc import Collection
from typing import Any

import cv2
import numpy as np

from agvas_runtime.result import Result
from agvas_runtime.sinks.image_files import encode_png16
from agvas_runtime.web.run_lengths import coco_run_lengths

__all__ = ["entry_of"]


def entry_of(result: Result, include: Collection[str]) -> dict[str, Any]:
    """The line of ``results.jsonl`` for one image, less its polygons where they were not asked for, and with ``mask_rle``, ``mask_png``
    and ``score_png`` where they were. ``NO_VERDICT`` has none of them."""
    entry = result.to_dict()
    if "polygons" not in include:
        for region in entry["regions"]:
            del region["polygon"], region["holes"]
    if result.mask is None or result.score_map is None:
        return entry
    if "rle" in include:
        entry["mask_rle"] = coco_run_lengths(result.mask)
    if "png" in include:
        done, data = cv2.imencode(".png", result.mask.astype(np.uint8) * 255)
        assert done
        entry["mask_png"] = base64.b64encode(data.tobytes()).decode()
    if "score" in include:
        entry["score_png"] = base64.b64encode(encode_png16(result.score_map)).decode()
    return entry
