"""The frames of a video file, every one of them."""

import os
import stat
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_runtime.images.frame import Frame
from agvas_runtime.images.read import MAX_PIXELS, quiet_opencv

__all__ = ["VIDEO_SUFFIXES", "VideoSource"]

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv", ".3gp")
)
# These count their frames; for most others FFmpeg works the count out from duration and rate, which is right to about a frame.
COUNTING_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".avi"))
# These were made to be tuned into: the count is a guess from size and bit rate, but the time stamps show a gap.
STREAM_SUFFIXES = frozenset((".mpg", ".mpeg", ".ts", ".mts", ".m2ts"))

# FFmpeg inside OpenCV prints each damaged block, and reads its log level once, from here. What matters is in our own error.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


class VideoSource:
    """Frames named ``clip.mp4#000120``. A video that breaks off ends with one Frame whose ImageError says where.

    A decoder conceals damage inside a frame as well as it can and does not tell; frames that are missing altogether are found by
    their count (MPEG streams: by a gap in their time stamps, so not at the end). Frames behind a gap are numbered as if there
    were none.
    """

    live = False

    def __init__(self, path: str | Path, *, every: int = 1, skip: int = 0, max_pixels: int = MAX_PIXELS) -> None:
        """Gives frames ``skip``, ``skip + every``, ... of the file, as far as it goes."""
        self.path = Path(path)
        self.notes: list[str] = []
        self.decoded = 0
        """Frames read so far, with those that ``every`` left out."""
        self._every, self._skip, self._max_pixels = every, skip, max_pixels

    @property
    def total(self) -> int | None:
        """As the container says, None where it does not; 1 (the frame with the error) where it cannot be opened."""
        capture = _open(self.path)
        try:
            if not capture.isOpened():
                return 1
            count = self._count(capture)
        finally:
            capture.release()
        return max(0, -(-(count - self._skip) // self._every)) if count > 0 else None

    def __iter__(self) -> Iterator[Frame]:
        self.decoded = 0
        capture = _open(self.path)
        try:
            yield from self._frames(capture)
        finally:
            capture.release()

    def _frames(self, capture: cv2.VideoCapture) -> Iterator[Frame]:
        if not capture.isOpened():
            yield self._error(0, f"{_why_not_open(self.path)}: check that a player shows it, or convert it to MP4")
            return
        width, height = (int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > self._max_pixels:
            yield self._error(
                0, f"frames are {width}x{height} px; the cap is {self._max_pixels} pixels: pass --max-pixels {width * height}"
            )
            return
        index = 0
        stamps_ms: list[float] = []
        while True:
            wanted = self.decoded >= self._skip and (self.decoded - self._skip) % self._every == 0
            start = time.perf_counter()
            with quiet_opencv():
                got = capture.grab()
                decoded, bgr = capture.retrieve() if got and wanted else (got, None)
            if not (got and decoded):
                break
            if bgr is not None:
                rgb: NDArray[np.uint8] = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
                read_ms = (time.perf_counter() - start) * 1000
                yield Frame(self._name(self.decoded), index, image=rgb, path=self.path, read_ms=read_ms)
                index += 1
            self.decoded += 1
            if self._is_stream:
                stamps_ms.append(capture.get(cv2.CAP_PROP_POS_MSEC))
        expected = _count_by_time(stamps_ms) if self._is_stream else self._count(capture)
        allowed = 0 if self.path.suffix.lower() in COUNTING_SUFFIXES else 1 + expected // 100
        if self.decoded == 0 or self.decoded < expected - allowed:
            yield self._error(
                index,
                f"the video gave {self.decoded} of {expected} frames: the rest is damaged or missing; copy or record it again",
            )

    @property
    def _is_stream(self) -> bool:
        return self.path.suffix.lower() in STREAM_SUFFIXES

    def _count(self, capture: cv2.VideoCapture) -> int:
        """Frames that the container announces; 0 or less where it does not."""
        return 0 if self._is_stream else int(capture.get(cv2.CAP_PROP_FRAME_COUNT))

    def _name(self, number: int) -> str:
        return f"{self.path}#{number:06d}"

    def _error(self, index: int, reason: str) -> Frame:
        name = self._name(self.decoded)
        return Frame(name, index, error=ImageError(f"{name}: {reason}"), path=self.path)

    def close(self) -> None:
        """Nothing to do: the iterator holds the file, and frees it when it ends or is dropped."""

    def __enter__(self) -> "VideoSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: Path) -> cv2.VideoCapture:
    if not path.is_file():  # FFmpeg would wait for the other end of a pipe, for ever and deaf to Ctrl-C
        return cv2.VideoCapture()
    with quiet_opencv():
        # Absolute, so that no file name can be taken for a protocol.
        return cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)


def _count_by_time(stamps_ms: list[float]) -> int:
    """How many frames fit between the first and the last time stamp, at the usual distance between two."""
    steps = [round(later - earlier, 1) for earlier, later in pairwise(stamps_ms) if later > earlier]
    if not steps:
        return 0
    return round((max(stamps_ms) - min(stamps_ms)) / median(steps)) + 1


def _why_not_open(path: Path) -> str:
    try:
        if not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
            return "is a device or a pipe; a video file is needed"
        with path.open("rb") as file:
            return "not a video that can be read" if file.read(1) else "the file is empty (0 bytes)"
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
