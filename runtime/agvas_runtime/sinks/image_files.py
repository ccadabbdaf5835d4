"""Files of a run: masks, overlays, score maps, and the files of other tools (CSV, COCO, YOLO)."""

import io
import json
from collections.abc import Collection
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_runtime.masks.annotations import CATEGORY, CocoWriter, table_csv, table_rows, yolo_labels
from agvas_runtime.masks.overlay import draw_overlay
from agvas_runtime.masks.result import Result
from agvas_runtime.sinks.output_names import OutputNames
from agvas_runtime.sinks.run_folder import CLASSES_NAME, COCO_NAME, CSV_NAME, RunFolder

__all__ = ["IMAGE_KINDS", "DatasetFiles", "ImageFiles", "encode_jpeg", "encode_npy", "encode_png16"]

IMAGE_KINDS: Final = ("mask", "overlay", "score", "score-npy", "yolo")

OVERLAY_JPEG_QUALITY = 90


class ImageFiles:
    """Writes the images of each result into a run's folder.

    ============ ========================== ==================================================
    kind         file                       contents
    ============ ========================== ==================================================
    mask         ``masks/<stem>.png``       0 or 255, at the frame's size
    overlay      ``overlays/<stem>.jpg``    for the eye, at most 1600 px
    score        ``scores/<stem>.png``      16 bit: P = value / 65535, at the frame's size
    score-npy    ``scores/<stem>.npy``      float32 P
    yolo         ``labels/<stem>.txt``      a polygon a line; empty where nothing was found
    ============ ========================== ==================================================

    Scores are never rounded to 8 bits: ranking metrics would change.
    """

    def __init__(self, folder: RunFolder, names: OutputNames, kinds: Collection[str]) -> None:
        self.folder = folder
        self.names = names
        self.kinds = [kind for kind in IMAGE_KINDS if kind in kinds]

    def write(self, result: Result) -> dict[str, str]:
        """Writes the files of one result; returns kind -> path inside the folder. Empty where there is no verdict.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        if result.image is None or result.mask is None or result.score_map is None:
            return {}
        stem = self.names.stem(result.name)
        files = {}
        for kind in self.kinds:
            if kind == "mask":
                data, path = _encode(".png", result.mask.astype(np.uint8) * 255), f"masks/{stem}.png"
            elif kind == "overlay":
                tag = str(result.verdict) if result.score is None else f"{result.verdict} {result.score:.2f}"
                drawn = draw_overlay(result.image, result.mask, tag=tag)
                data, path = encode_jpeg(drawn, OVERLAY_JPEG_QUALITY), f"overlays/{stem}.jpg"
            elif kind == "score":
                data, path = encode_png16(result.score_map), f"scores/{stem}.png"
            elif kind == "yolo":
                data, path = yolo_labels(result).encode(), f"labels/{stem}.txt"
            else:
                data, path = encode_npy(result.score_map), f"scores/{stem}.npy"
            files[kind] = self.folder.store(path, data)
        return files


class DatasetFiles:
    """The files of other tools that hold all results of a run; they are written at its end, whole.

    ============ ==================== ==========================================================
    kind         file                 contents
    ============ ==================== ==========================================================
    csv          ``results.csv``      one row per region; a row without one where there is none
    coco         ``coco.json``        images, annotations and the one category
    yolo         ``classes.txt``      the names of the classes in ``labels/``
    ============ ==================== ==========================================================
    """

    def __init__(self, folder: RunFolder, kinds: Collection[str]) -> None:
        self.folder, self.kinds = folder, kinds
        self._rows: list[dict[str, Any]] = []
        self._coco = CocoWriter()

    def add(self, result: Result) -> None:
        """Takes a result in."""
        if "csv" in self.kinds:
            self._rows += table_rows(result)
        if "coco" in self.kinds:
            self._coco.add(result)

    def write(self) -> None:
        """Writes the files.

        Raises:
            OutputError: the disk is full, or the folder cannot be written.
        """
        if "csv" in self.kinds:
            text = table_csv(self._rows)
            self.folder.store(CSV_NAME, text.encode("utf-8-sig", "backslashreplace"))  # the mark tells Excel that it is UTF-8
        if "coco" in self.kinds:
            self.folder.store(COCO_NAME, json.dumps(self._coco.dataset, allow_nan=False).encode())
        if "yolo" in self.kinds:
            self.folder.store(CLASSES_NAME, f"{CATEGORY}\n".encode())


def encode_png16(score_map: NDArray[np.float32]) -> bytes:
    """16-bit grey PNG of a score map in 0..1."""
    return _encode(".png", np.round(np.clip(score_map, 0, 1) * 65535).astype(np.uint16))


def encode_npy(score_map: NDArray[np.float32]) -> bytes:
    """NumPy file of a score map, float32."""
    buffer = io.BytesIO()
    np.save(buffer, score_map.astype(np.float32), allow_pickle=False)
    return buffer.getvalue()


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG of an RGB image [H, W, 3]."""
    # 4:4:4: with the usual halved colour a line of one pixel goes grey.
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return _encode(".jpg", np.ascontiguousarray(image[:, :, ::-1]), options)


def _encode(suffix: str, pixels: NDArray[np.uint8] | NDArray[np.uint16], options: list[int] | None = None) -> bytes:
    done, data = cv2.imencode(suffix, pixels, options or [])
    assert done, f"OpenCV cannot encode {pixels.shape} {pixels.dtype} as {suffix}"
    return data.tobytes()
