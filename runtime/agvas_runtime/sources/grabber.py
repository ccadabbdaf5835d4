"""Reads frames from each kind of camera, one at a time; ``camera`` runs one of these in its thread."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, SourceError
from agvas_runtime.images.frame import Sent
from agvas_runtime.images.read import decode_image, quiet_opencv
from agvas_runtime.sources.http_camera import HttpPictures
from agvas_runtime.sources.video import stream_class

if TYPE_CHECKING:
    from agvas_runtime.sources.ffmpeg import DecodedFrame, VideoStream

__all__ = ["CaptureGrabber", "Grabber", "HttpGrabber", "RtspGrabber", "reach"]


# Whether the host of a network camera takes connections.


POLL_S: Final = 0.1  # between two requests for a snapshot
ASKED_WAIT_S: Final = 0.2
ASKED_LOOK_S: Final = 1.0  # so often a camera without requests is checked
ATTEMPT_S: Final = 0.5
PORTS: Final = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322}


def reach(url: str, timeout_s: float, *, refusal_counts: bool = False) -> None:
    """Returns once a connection is taken, or refused with words, which the opener of the stream gets as an error; unless ``refusal_counts``.

    A cable that is out swallows packets. TCP waits 1, 2, 4 s until it sends the first one again, so that an attempt that began then would
    find a camera late that has long been back; short attempts find it at once.

    Raises:
        SourceError: nothing for ``timeout_s``, or a refusal where it counts.
    """
    parts = urlsplit(url)
    end_s = time.monotonic() + timeout_s
    while (left_s := end_s - time.monotonic()) > 0:
        try:
            socket.create_connection((parts.hostname, parts.port or PORTS[parts.scheme]), min(ATTEMPT_S, left_s)).close()
            return
        except TimeoutError:
            continue
        except OSError as error:
            if refusal_counts:
                raise SourceError(f"its host takes no connection ({error.strerror or error})") from error
            return
    raise SourceError("its host does not answer")


Rgb = NDArray[np.uint8]


class Grabber(Protocol):
    """``open``, then ``grab`` and perhaps ``retrieve`` again and again, then ``close``; all from one thread but ``fire``."""

    missed: int
    """Frames that the camera has numbered and that never came, since ``open``."""

    def open(self) -> None:
        """Raises SourceError where there is no camera."""
        ...

    def grab(self) -> bool | None:
        """Waits for the next frame: True once it is there, False where there is none and the camera is known to be well, None where there is
        none yet.

        Raises SourceError where none comes any more.
        """
        ...

    def retrieve(self) -> Rgb | Sent | ImageError | None:
        """The frame last grabbed, RGB uint8 [H, W, 3] or as the camera sent it, or why it cannot be used; None where it is to count as missed."""
        ...

    def fire(self) -> None:
        """Asks for a frame, where the camera waits to be asked; nothing, where it runs free."""
        ...

    def close(self) -> None: ...


class HttpGrabber:
    """MJPEG, or snapshots, over HTTP. A picture that arrived broken is an ImageError; the stream goes on."""

    missed = 0

    def __init__(self, url: str, open_timeout_s: float, stall_timeout_s: float, max_pixels: int, *, asked: bool = False) -> None:
        """``asked``: of a camera that gives one picture a request, each is asked for by ``fire``, and shows what is there then."""
        self._url, self._max_pixels, self._asked = url, max_pixels, asked
        self._open_timeout_s, self._stall_timeout_s = open_timeout_s, stall_timeout_s
        self._stream: HttpPictures | None = None
        self._pictures: Iterator[bytes] = iter(())
        self._picture = b""
        self._fired = threading.Semaphore(0)
        self._seen_s = 0.0

    def open(self) -> None:
        reach(self._url, self._open_timeout_s)
        self._stream = HttpPictures(self._url, self._open_timeout_s, self._stall_timeout_s, poll_s=POLL_S)
        self._pictures = iter(self._stream)

    def grab(self) -> bool | None:
        assert self._stream is not None, "open() comes first"
        if self._asked and self._stream.is_snapshot:
            if not self._fired.acquire(timeout=ASKED_WAIT_S):
                if time.monotonic() - self._seen_s > ASKED_LOOK_S:
                    self._seen_s = time.monotonic()
                    reach(self._url, ATTEMPT_S, refusal_counts=True)
                return False
            self._picture = self._stream.ask()
            return True
        self._picture = next(self._pictures)  # raises SourceError at the end, never StopIteration
        return True

    def retrieve(self) -> Rgb | ImageError:
        try:
            return decode_image(self._picture, max_pixels=self._max_pixels)
        except ImageError as error:
            return error

    def fire(self) -> None:
        self._fired.release()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


class CaptureGrabber:
    """A camera that OpenCV reads. ``connect`` opens the capture, or raises SourceError."""

    missed = 0

    def __init__(self, connect: Callable[[cv2.VideoCapture], None], raw: tuple[str, int] | None = None) -> None:
        """``raw``: pixel format and bits of what ``connect`` has the camera send."""
        self._connect, self._raw, self._capture = connect, raw, cv2.VideoCapture()

    def open(self) -> None:
        with quiet_opencv():
            self._connect(self._capture)

    def grab(self) -> bool:
        with quiet_opencv():
            grabbed = self._capture.grab()
        if not grabbed:
            raise SourceError("it sends no frames any more")
        return True

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

    def fire(self) -> None:
        """Runs free."""

    def close(self) -> None:
        self._capture.release()


class RtspGrabber:
    """RTSP through FFmpeg, over TCP. A frame that lost packets is an ImageError; the stream goes on.

    Raises:
        SetupError: the package that reads streams is missing.
    """

    missed = 0

    def __init__(self, url: str, open_timeout_s: float, stall_timeout_s: float) -> None:
        self._open_stream = stream_class()
        self._url, self._open_timeout_s, self._stall_timeout_s = url, open_timeout_s, stall_timeout_s
        self._stream: VideoStream | None = None
        self._frames: Iterator[DecodedFrame] = iter(())
        self._frame: DecodedFrame | None = None

    def open(self) -> None:
        reach(self._url, self._open_timeout_s)
        # FFmpeg would hold 20 frames back to guess their rate: a second of a camera, seconds of a slow one.
        options = {"rtsp_transport": "tcp", "fpsprobesize": "0"}
        try:
            self._stream = self._open_stream(
                self._url,
                options=options,
                open_timeout_s=self._open_timeout_s,
                read_timeout_s=self._stall_timeout_s,
                low_delay=True,
            )
        except SourceError as error:
            raise SourceError(f"no RTSP stream answers ({error})") from None
        self._frames = iter(self._stream)

    def grab(self) -> bool:
        began_s = time.monotonic()
        self._frame = next(self._frames, None)
        # What comes after so long a silence is a frame that the decoder held back, and as old.
        if self._frame is None or time.monotonic() - began_s >= self._stall_timeout_s:
            raise SourceError("it sends no frames any more")
        return True

    def retrieve(self) -> Rgb | ImageError:
        assert self._frame is not None, "grab() comes first"
        try:
            return self._frame.rgb()
        except ImageError as error:
            return error

    def fire(self) -> None:
        """Runs free."""

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
