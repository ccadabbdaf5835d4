"""Images of parts on disk: losslessly, beside the ledger, and never at the cost of a verdict.

A thread writes them. Where it cannot follow, where the disk is short, or where it fails, an image is dropped and the ledger says so.
"""

import hashlib
import json
import logging
import os
import queue
import threading
from pathlib import Path
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_runtime.line.ledger.disk_reserve import DiskLevel
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.recipe.recipe import Keep
from agvas_runtime.masks.overlay import draw_overlay, shrink
from agvas_runtime.masks.result import Verdict

__all__ = ["SIDE_PX", "THUMB_PX", "ImageStore", "drawn", "hash_of_image", "mask_of_findings", "read_kept", "wanted"]


log = logging.getLogger("agvas.line")

FOLDER: Final = "images"
QUEUE_IMAGES: Final = 16
PNG_LEVEL: Final = 1  # fast; a photograph hardly gets smaller by more


def hash_of_image(image: NDArray[np.uint8]) -> str:
    """sha256 of height, width and the RGB bytes: the same from a camera and from the stored PNG."""
    digest = hashlib.sha256(f"{image.shape[0]}x{image.shape[1]} RGB\n".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def wanted(keep: Keep, verdict: Verdict, number: int) -> bool:
    """Whether the image of a part is to be kept; ``number`` counts the parts of its station."""
    if verdict is Verdict.FAIL and keep.rejects:
        return True
    if verdict is Verdict.NO_VERDICT and keep.no_verdicts:
        return True
    if number <= keep.first:
        return True
    return keep.sample_every > 0 and number % keep.sample_every == 0


class _Job(NamedTuple):
    seq: int
    image: NDArray[np.uint8]
    verdict: Verdict
    max_bytes: float


class ImageStore:
    """``images/000123/000123456-FAIL.png`` in the ledger's folder."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._jobs: queue.Queue[_Job | None] = queue.Queue(QUEUE_IMAGES)
        self.failure: BaseException | None = None
        self.dropped = 0
        self._bytes = sum(path.stat().st_size for path in (ledger.folder / FOLDER).rglob("*.png"))
        self._thread = threading.Thread(target=self._run, name="agvas-images", daemon=True)
        self._thread.start()

    def offer(self, seq: int, image: NDArray[np.uint8], verdict: Verdict, *, max_gb: float) -> None:
        """Takes an image to be written, or drops it at once where there is no room for it."""
        try:
            self._jobs.put_nowait(_Job(seq, image, verdict, max_gb * 1e9))
        except queue.Full:
            self._drop(seq)

    def close(self) -> None:
        """Writes what waits, and ends."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                self._store(job)
        except BaseException as error:
            self.failure = error

    def _store(self, job: _Job) -> None:
        if self._ledger.reserve.level() is not DiskLevel.FINE:
            self._drop(job.seq)
            return
        relative = f"{FOLDER}/{job.seq // 1000:06d}/{job.seq:09d}-{job.verdict}.png"
        path = self._ledger.folder / relative
        part = path.with_suffix(".part")
        done, data = cv2.imencode(".png", np.ascontiguousarray(job.image[:, :, ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])
        assert done, f"OpenCV cannot encode {job.image.shape} as PNG"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data.tobytes())
            part.replace(path)
        except OSError as error:
            log.warning("the image of part %d cannot be kept: %s", job.seq, error.strerror)
            part.unlink(missing_ok=True)
            self._drop(job.seq)
            return
        self._bytes += len(data)
        self._ledger.note_image(job.seq, "kept", relative)
        if self._bytes > job.max_bytes:
            self._make_room(job.max_bytes)

    def _make_room(self, max_bytes: float) -> None:
        """Removes the oldest images until nine tenths of the limit are left."""
        for seq, relative in self._ledger.read(
            "SELECT seq, image_path FROM parts WHERE image_state = 'kept' ORDER BY seq LIMIT 1000"
        ):
            if self._bytes <= 0.9 * max_bytes:
                break
            path = self._ledger.folder / relative
            if path.exists():
                self._bytes -= os.stat(path).st_size
                path.unlink()
            self._ledger.note_image(seq, "removed", None)

    def _drop(self, seq: int) -> None:
        self.dropped += 1
        self._ledger.note_image(seq, "dropped")


def read_kept(folder: Path, relative: str) -> NDArray[np.uint8] | None:
    """The RGB pixels of a kept image, [H, W, 3]; None where the file is gone or damaged."""
    data = cv2.imread(str(folder / relative), cv2.IMREAD_COLOR)
    return None if data is None else np.ascontiguousarray(data[:, :, ::-1])


# Pictures of parts for the eye: JPEG, with what was found drawn on it or without.


Mask = NDArray[np.bool_]

SIDE_PX: Final = 1280
THUMB_PX: Final = 320
QUALITY: Final = 82


def drawn(image: NDArray[np.uint8], mask: Mask | None, *, side_px: int = SIDE_PX) -> bytes:
    """JPEG of an RGB frame [H, W, 3], at most ``side_px`` on its longer side, with the outline of ``mask`` where there is one."""
    shown = shrink(image, side_px) if mask is None else draw_overlay(image, mask, max_side_px=side_px)
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(shown[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done, f"OpenCV cannot encode {shown.shape} as JPEG"
    return data.tobytes()


def mask_of_findings(findings: str | list[dict[str, Any]], height: int, width: int) -> Mask:
    """The pixels of a ledger row's findings, bool [H, W]. Their outlines are polygons within 0.75 px of the mask, so this is, too."""
    table: list[dict[str, Any]] = json.loads(findings) if isinstance(findings, str) else findings
    mask = np.zeros((height, width), np.uint8)
    for finding in table:
        inside = np.zeros_like(mask)
        cv2.fillPoly(inside, [np.array(finding["polygon"], np.int32)], 1)
        for hole in finding.get("holes", ()):
            ring = np.array(hole, np.int32)  # its points are pixels of the region around it
            cv2.fillPoly(inside, [ring], 0)
            cv2.polylines(inside, [ring], True, 1)
        mask |= inside
    return mask.astype(bool)
