"""A review folder for other tools: COCO, and tasks of Label Studio with their annotations.

Both say the masks to the pixel: COCO as compressed run lengths, one annotation for each connected region; Label Studio as brush labels,
whose run lengths are packed bits (``encode_rle`` of label-studio-converter): the number of bytes in 32 bits, their word size less one in 5, four sizes
of lengths less one in 4 each, and then runs: a bit that says whether one value is repeated, two bits for the size of the length, the length less one,
and the value, or the values. The picture is RGBA, row by row.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import OutputError, UsageError
from agvas_core.contract.review_folder import REVIEW, ReviewLine, read_lines
from agvas_runtime.images.read import read_image
from agvas_runtime.masks.run_lengths import coco_run_lengths

__all__ = ["brush_run_lengths", "coco_of", "label_studio_of", "write_json"]

Mask = NDArray[np.bool_]

KIND: Final = "anomaly"  # where a person gave none
LENGTH_BITS: Final = (3, 4, 8, 16)
PREFIX: Final = "/data/local-files/?d="  # of Label Studio's local storage


def coco_of(folder: Path) -> dict[str, Any]:
    """Every reviewed image; good ones have no annotation.

    Raises:
        UsageError: no review folder, or an image or mask of it that is not there.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    kinds: dict[str, int] = {}
    for number, (line, height, width, mask) in enumerate(_reviewed(folder), 1):
        images.append({"id": number, "file_name": line.image, "width": width, "height": height})
        for region in _regions(mask):
            x, y, wide, tall = cv2.boundingRect(region.astype(np.uint8))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": kinds.setdefault(line.kind or KIND, len(kinds) + 1),
                    "segmentation": coco_run_lengths(region),
                    "bbox": [x, y, wide, tall],
                    "area": int(region.sum()),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name, "supercategory": "anomaly"} for name, number in kinds.items()]
    return {"info": {"description": "review of agvas"}, "images": images, "annotations": annotations, "categories": categories}


def label_studio_of(folder: Path, *, prefix: str = PREFIX) -> list[dict[str, Any]]:
    """One task for each reviewed image; ``prefix`` goes before the path in the folder.

    The labelling interface has ``<Image name="image" value="$image"/>``, ``<BrushLabels name="mask" toName="image">`` with the kinds, and
    ``<Choices name="verdict" toName="image">`` with ``good`` and ``bad``.

    Raises:
        UsageError: as for ``coco_of``.
    """
    tasks = []
    for number, (line, height, width, mask) in enumerate(_reviewed(folder), 1):
        size = {"original_width": width, "original_height": height, "image_rotation": 0}
        word = {"id": f"word-{number}", "from_name": "verdict", "to_name": "image", "type": "choices",
                "value": {"choices": ["good" if line.good else "bad"]}}  # fmt: skip
        result: list[dict[str, Any]] = [word]
        if mask.any():
            value = {"format": "rle", "rle": brush_run_lengths(mask), "brushlabels": [line.kind or KIND]}
            result.append(
                {"id": f"mask-{number}", "from_name": "mask", "to_name": "image", "type": "brushlabels", **size, "value": value}
            )
        tasks.append(
            {
                "data": {"image": prefix + line.image, "category": line.category},
                "annotations": [{"result": result, "ground_truth": True}],
            }
        )
    return tasks


def brush_run_lengths(mask: Mask) -> list[int]:
    """A mask [H, W] as the bytes of Label Studio's brush: each pixel is four values, all 255 or all 0."""
    flat = mask.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts = np.concatenate([[0], edges])
    lengths = np.diff(np.concatenate([starts, [flat.size]])) * 4
    pieces = [f"{flat.size * 4:032b}{7:05b}" + "".join(f"{bits - 1:04b}" for bits in LENGTH_BITS)]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        pieces += _runs(length, 255 if flat[start] else 0)
    text = "".join(pieces)
    return np.packbits(np.frombuffer(text.encode(), np.uint8) - ord("0")).tolist()


def write_json(path: Path, content: Any) -> None:
    """Raises OutputError where it cannot be written."""
    try:
        path.write_text(json.dumps(content), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): choose another name") from error


def _runs(length: int, value: int) -> Iterable[str]:
    while length > 0:
        now = min(length, 1 << LENGTH_BITS[-1])
        size = next(index for index, bits in enumerate(LENGTH_BITS) if now <= 1 << bits)
        yield f"1{size:02b}{now - 1:0{LENGTH_BITS[size]}b}{value:08b}"
        length -= now


def _regions(mask: Mask) -> Iterator[Mask]:
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    for label in range(1, count):
        yield np.asarray(labels == label)


def _reviewed(folder: Path) -> Iterator[tuple[ReviewLine, int, int, Mask]]:
    """Line, height, width and mask of each image."""
    if not (folder / REVIEW).is_file():
        raise UsageError(f"{folder} has no {REVIEW}: review some parts first, or name their folder with --out")
    for line in read_lines(folder):
        height, width = read_image(folder / line.image).shape[:2]
        mask = np.zeros((height, width), bool)
        if line.mask is not None:
            grey = cv2.imread(str(folder / line.mask), cv2.IMREAD_GRAYSCALE)
            if grey is None or grey.shape != mask.shape:
                raise UsageError(
                    f"{folder / line.mask} is not there, or has another size than {line.image}: review that part again"
                )
            mask = np.asarray(grey > 127)
        yield line, height, width, mask
