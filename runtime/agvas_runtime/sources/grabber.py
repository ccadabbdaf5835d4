"""How frames are got out of each kind of camera, one at a time; ``camera`` runs one of these in its thread."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, SourceError
from agvas_runtime.frame import Sent
from agvas_runtime.image_file import decode_image, quiet_opencv
from agvas_runtime.sources.mjpeg import MjpegStream

__all__ = ["V4L2_FORMATS", "Grabber", "HttpGrabber", "device_grabber", "rtsp_grabber"]

Rgb = NDArray[np.uint8]


class Grabber(Protocol):
    """``open``, then ``grab`` and perhaps ``retrieve`` again and again, then ``close``; all from one thread."""

    def open(self) -> None:
        """Raises SourceError where there is no camera."""
        ...

    def grab(self) -> None:
        """Waits for the next frame. Raises SourceError where none comes any more."""
        ...

    def retrieve(self) -> Rgb | Sent | ImageError:
        """The frame last grabbed, RGB uint8 [H, W, 3] or as the camera sent it, or why it cannot be used."""
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

    def __init__(self, connect: Callable[[cv2.VideoCapture], None], raw: tuple[str, int] | None = None) -> None:
        """``raw``: pixel format and bits in which the camera sends, and frames are given; RGB where None."""
        self._connect, self._capture, self._raw = connect, cv2.VideoCapture(), raw

    def open(self) -> None:
        with quiet_opencv():
            self._connect(self._capture)

    def grab(self) -> None:
        with quiet_opencv():
            if not self._capture.grab():
                raise SourceError("it sends no frames any more")

    def retrieve(self) -> Rgb | Sent | ImageError:
        with quiet_opencv():
            decoded, bgr = self._capture.retrieve()
        if not decoded or bgr is None:
            return ImageError("the frame cannot be decoded")
        if self._raw is not None:
            height, width = (int(self._capture.get(side)) for side in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
            return Sent(np.ascontiguousarray(bgr), self._raw[0], (height, width), self._raw[1])
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


V4L2_FORMATS: Final = {
    "Mono8": "GREY",
    "Mono16": "Y16 ",
    "BayerRG8": "RGGB",
    "BayerGB8": "GBRG",
    "NV12": "NV12",
    "YUYV": "YUYV",
    "RGB8": "RGB3",
    "BGR8": "BGR3",
}
"""Pixel formats as V4L2 names them."""


def device_grabber(device: str, raw: tuple[str, int] | None = None) -> Grabber:
    """A camera of this machine: V4L2 on Linux, whatever OpenCV finds elsewhere; RGB, or ``raw`` = (pixel format, bits) as it sends."""
    linux = sys.platform.startswith("linux")

    def connect(capture: cv2.VideoCapture) -> None:
        if linux and not os.path.exists(device):  # False, not an error, for a name too long for a path
            there = sorted(str(path) for path in Path("/dev").glob("video*"))
            raise SourceError(f"there is no {device} (there {'are ' + ', '.join(there) if there else 'is no /dev/video*'})")
        index = device.removeprefix("/dev/video")
        if not (capture.open(device, cv2.CAP_V4L2) if linux else capture.open(int(index), cv2.CAP_ANY)):
            raise SourceError(f"{device} cannot be opened as a camera")
        if raw is not None:
            _send_raw(capture, device, V4L2_FORMATS[raw[0]])

    return CaptureGrabber(connect, raw)


def _send_raw(capture: cv2.VideoCapture, device: str, code: str) -> None:
    """Has the camera send in a format of V4L2, and OpenCV leave it as it is."""
    capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*code))
    capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
    sends = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("latin-1")
    if sends != code:
        raise SourceError(
            f"{device} sends {sends.strip()!r} and not {code.strip()!r}: v4l2-ctl --list-formats lists what it can send"
        )
