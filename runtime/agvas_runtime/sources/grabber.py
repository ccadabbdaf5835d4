"""How frames are got out of each kind of camera, one at a time; ``camera`` runs one of these in its thread."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, SourceError
from agvas_runtime.image_file import decode_image, quiet_opencv
from agvas_runtime.sources.mjpeg import MjpegStream

__all__ = ["Grabber", "HttpGrabber", "device_grabber", "rtsp_grabber"]

Rgb = NDArray[np.uint8]


class Grabber(Protocol):
    """``open``, then ``grab`` and perhaps ``retrieve`` again and again, then ``close``; all from one thread."""

    def open(self) -> None:
        """Raises SourceError where there is no camera."""
        ...

    def grab(self) -> None:
        """Waits for the next frame. Raises SourceError where none comes any more."""
        ...

    def retrieve(self) -> Rgb | ImageError:
        """The frame last grabbed, RGB uint8 [H, W, 3], or why it cannot be used."""
        ...

    def close(self) -> None: ...


class HttpGrabber:
    """MJPEG over HTTP. A picture that arrived broken is an ImageError; the stream goes on."""

    def __init__(self, url: str, open_timeout_s: float, stall_timeout_s: float, max_pixels: int) -> None:
        self._url, self._max_pixels = url, max_pixels
        self._open_timeout_s, self._stall_timeout_s = open_timeout_s, stall_timeout_s
        self._stream: MjpegStream | None = None
        self._pictures: Iterator[bytes] = iter(())
        self._picture = b""

    def open(self) -> None:
        self._stream = MjpegStream(self._url, self._open_timeout_s, self._stall_timeout_s)
        self._pictures = iter(self._stream)

    def grab(self) -> None:
        self._picture = next(self._pictures)  # raises SourceError at the end, never StopIteration

    def retrieve(self) -> Rgb | ImageError:
        try:
            return decode_image(self._picture, max_pixels=self._max_pixels)
        except ImageError as error:
            return error

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


class CaptureGrabber:
    """A camera that OpenCV reads. ``connect`` opens the capture, or raises SourceError."""

    def __init__(self, connect: Callable[[cv2.VideoCapture], None]) -> None:
        self._connect, self._capture = connect, cv2.VideoCapture()

    def open(self) -> None:
        with quiet_opencv():
            self._connect(self._capture)

    def grab(self) -> None:
        with quiet_opencv():
            if not self._capture.grab():
                raise SourceError("it sends no frames any more")

    def retrieve(self) -> Rgb | ImageError:
        with quiet_opencv():
            decoded, bgr = self._capture.retrieve()
        if not decoded or bgr is None:
            return ImageError("the frame cannot be decoded")
        rgb: Rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
        return rgb

    def close(self) -> None:
        self._capture.release()


def rtsp_grabber(url: str, open_timeout_s: float, stall_timeout_s: float) -> Grabber:
    """RTSP through FFmpeg, over TCP where the camera offers it (OpenCV's default)."""
    open_ms, read_ms = int(open_timeout_s * 1000), int(stall_timeout_s * 1000)
    options = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, open_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, read_ms]

    def connect(capture: cv2.VideoCapture) -> None:
        if not capture.open(url, cv2.CAP_FFMPEG, options):
            raise SourceError("no RTSP stream answers")

    return CaptureGrabber(connect)


def device_grabber(device: str) -> Grabber:
    """A camera of this machine: V4L2 on Linux, whatever OpenCV finds elsewhere."""
    linux = sys.platform.startswith("linux")

    def connect(capture: cv2.VideoCapture) -> None:
        if linux and not os.path.exists(device):  # False, not an error, for a name too long for a path
            there = sorted(str(path) for path in Path("/dev").glob("video*"))
            raise SourceError(f"there is no {device} (there {'are ' + ', '.join(there) if there else 'is no /dev/video*'})")
        index = device.removeprefix("/dev/video")
        if not (capture.open(device, cv2.CAP_V4L2) if linux else capture.open(int(index), cv2.CAP_ANY)):
            raise SourceError(f"{device} cannot be opened as a camera")

    return CaptureGrabber(connect)
