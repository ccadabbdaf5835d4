"""A live camera: V4L2 device, RTSP stream or MJPEG over HTTP.

    with CameraSource("rtsp://10.0.0.5/line1") as camera:
        for frame in camera:
            ...

A thread reads the camera as fast as it sends and keeps the newest frame alone. Each frame is given once; one that was replaced
before it was taken is counted in ``dropped`` (and leaves a gap in the numbers of the names). No frame is ever given twice.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, SourceError, UsageError
from agvas_core.contract.preprocess import ViewSpec
from agvas_runtime.frame import Frame, Sent
from agvas_runtime.image_file import MAX_PIXELS
from agvas_runtime.sources.grabber import V4L2_FORMATS, Grabber, HttpGrabber, device_grabber, rtsp_grabber
from agvas_runtime.views import camera_frame

__all__ = ["CameraSource", "without_secrets"]

CLOSE_GRACE_S = 1.0
GRABBER_GRACE_S = 0.25

Picture = NDArray[np.uint8] | Sent | ImageError


class CameraSource:
    """Frames named ``camera-0#000007``. The camera is opened when iteration begins; several iterations open it anew.

    The iterator raises SourceError when there is no camera within ``open_timeout_s``, and when no frame came for
    ``stall_timeout_s``, after the frames that did come.
    """

    live = True
    total = None

    def __init__(
        self,
        uri: str | int,
        *,
        name: str | None = None,
        every: int = 1,
        open_timeout_s: float = 10.0,
        stall_timeout_s: float = 5.0,
        max_pixels: int = MAX_PIXELS,
        pixel_format: str | None = None,
        bits: int = 16,
    ) -> None:
        """``uri``: index (0), device (/dev/video0), rtsp:// or http:// (MJPEG). ``every``: each n-th frame that the camera sends.
        ``pixel_format``: of a device: it sends in this one (Mono8, BayerRG8, YUYV, ...), and image and views are made in one pass over it;
        OpenCV chooses and converts where None. ``bits``: used bits of Mono16.

        Raises UsageError where ``uri`` is none of these, or a number is out of range.
        """
        if every < 1:
            raise UsageError(f"every is {every}; 1 is the least: 1 reads every frame")
        for option, seconds in (("open_timeout_s", open_timeout_s), ("stall_timeout_s", stall_timeout_s)):
            if not 0 < seconds < 3600:
                raise UsageError(f"{option} is {seconds}; it lies between 0 and 3600 seconds")
        self._uri, self._label, default_name = _understand(str(uri))
        if pixel_format is not None and pixel_format not in V4L2_FORMATS:
            raise UsageError(f"pixel format {pixel_format!r} is not known; it can be {', '.join(V4L2_FORMATS)}")
        if pixel_format is not None and not self._uri.startswith("/dev/"):
            raise UsageError(
                f"pixel format {pixel_format} is for cameras of this machine; {self._label} sends a coded stream: leave it out"
            )
        self._raw = (pixel_format, bits) if pixel_format is not None else None
        self.whole_views: Callable[[int, int], Sequence[ViewSpec]] = lambda height, width: ()
        """Which views of a frame of (height, width) px are made with its image; whoever segments says so before the first frame."""
        self.name = default_name if name is None else name
        self.notes: list[str] = []
        self.dropped = 0
        """Frames that the camera sent and nobody took; those that ``every`` leaves out are not counted."""
        self._every, self._max_pixels = every, max_pixels
        self._open_timeout_s, self._stall_timeout_s = open_timeout_s, stall_timeout_s
        self._reader: _Reader | None = None

    def __iter__(self) -> Iterator[Frame]:
        self.close()
        self.dropped = 0
        reader = _Reader(self._grabber(), self._every, self._open_timeout_s, self._stall_timeout_s)
        self._reader = reader
        index = 0
        try:
            while True:
                try:
                    item = reader.take()
                except SourceError as error:
                    raise SourceError(f"{self._label}: {error}") from error
                if item is None:  # closed from elsewhere
                    return
                number, image, read_ms, self.dropped = item
                name = f"{self.name}#{number:06d}"
                if isinstance(image, ImageError):
                    yield Frame(name, index, error=ImageError(f"{name}: {image}"), read_ms=read_ms)
                elif isinstance(image, Sent):
                    yield camera_frame(image, self.whole_views(*image.size), name, index, read_ms=read_ms)
                else:
                    yield Frame(name, index, image=image, read_ms=read_ms)
                index += 1
        finally:
            reader.stop()

    def _grabber(self) -> Grabber:
        if self._uri.startswith("http"):
            return HttpGrabber(self._uri, self._open_timeout_s, self._stall_timeout_s, self._max_pixels)
        if self._uri.startswith("rtsp"):
            return rtsp_grabber(self._uri, self._open_timeout_s, self._stall_timeout_s)
        return device_grabber(self._uri, self._raw)

    def close(self) -> None:
        """Ends the thread and frees the device; an iteration under way ends."""
        if self._reader is not None:
            self._reader.stop()
            self._reader = None

    def __enter__(self) -> "CameraSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def without_secrets(text: str) -> str:
    """``text`` with the user, password and query of an address in it as ``***``; many cameras take the password in the query.

    Everything up to the last ``@`` goes: a password may hold ``/``, ``@`` or a space that should have been escaped.
    """
    scheme, mark, rest = text.partition("://")
    if not mark:
        return text
    _, at, rest = rest.rpartition("@")
    place, question, _ = rest.partition("?")
    return f"{scheme}://{'***@' if at else ''}{place}{'?***' if question else ''}"


def _understand(uri: str) -> tuple[str, str, str]:
    """(what is opened, how it is called in messages, name of its frames)."""
    if re.fullmatch("[0-9]{1,3}", uri):
        return f"/dev/video{uri}", f"camera {uri}", f"camera-{uri}"
    if uri.startswith("/dev/"):
        return uri, f"camera {uri}", f"camera-{Path(uri).name.removeprefix('video')}"
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError(
            f"camera {without_secrets(uri)!r} is no address: check host and port, and write / and @ in a password as %2F and %40"
        ) from None  # its message may hold the password
    if parts.scheme not in ("rtsp", "rtsps", "http", "https") or not host:
        raise UsageError(
            f"camera {without_secrets(uri)!r} is not understood: give an index (0), a device (/dev/video0), rtsp://... or http://... (MJPEG)"
        )
    return uri, f"camera {without_secrets(uri)}", "camera-" + re.sub("[^A-Za-z0-9.]+", "-", host) + (f"-{port}" if port else "")


class _Reader:
    """The thread, and the one place for the newest frame."""

    def __init__(self, grabber: Grabber, every: int, open_timeout_s: float, stall_timeout_s: float) -> None:
        self._grabber, self._every = grabber, every
        self._open_timeout_s, self._stall_timeout_s = open_timeout_s, stall_timeout_s
        self._changed = threading.Condition()
        self._newest: tuple[int, Picture, float] | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._opened = False
        self._grabbed = self._dropped = 0
        self._heard_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="agvas-camera", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._grabber.open()
            with self._changed:
                self._opened, self._heard_s = True, time.monotonic()
                self._changed.notify_all()
            while not self._closed:
                self._grabber.grab()
                start = time.perf_counter()
                image = self._grabber.retrieve() if self._grabbed % self._every == 0 else None
                self._put(image, (time.perf_counter() - start) * 1000)
        except BaseException as caught:  # carried over to the consumer, which raises it
            error = caught
        finally:
            self._grabber.close()
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _put(self, image: Picture | None, read_ms: float) -> None:
        with self._changed:
            self._heard_s = time.monotonic()
            if image is not None:
                self._dropped += self._newest is not None
                self._newest = (self._grabbed, image, read_ms)
            self._grabbed += 1
            self._changed.notify_all()

    def take(self) -> tuple[int, Picture, float, int] | None:
        """The newest frame, waited for: (number, image or ImageError, milliseconds, dropped so far); None after ``stop``."""
        with self._changed:
            while self._newest is None and not self._closed:
                if self._error is not None:
                    self._raise_end(self._error)
                limit_s = self._stall_timeout_s if self._opened else self._open_timeout_s
                # The clock starts anew with each frame; a bit more than the grabber's own limit, whose reason says more.
                left_s = self._heard_s + limit_s + GRABBER_GRACE_S - time.monotonic()
                if left_s <= 0:
                    self._raise_end(SourceError("it is silent"))
                self._changed.wait(left_s)
            if self._newest is None or self._closed:
                return None
            number, image, read_ms = self._newest
            self._newest = None
            return number, image, read_ms, self._dropped

    def _raise_end(self, error: BaseException) -> None:
        if not isinstance(error, SourceError):
            raise error
        if not self._opened:
            raise SourceError(
                f"not there: {error} (waited at most {self._open_timeout_s:g} s): check power, cable and address, "
                "and that no other program holds it"
            ) from error
        raise SourceError(
            f"stopped after {self._grabbed} frames: {error} (waited at most {self._stall_timeout_s:g} s): check cable and power, "
            "then start the run again"
        ) from error

    def stop(self) -> None:
        """Ends the thread. A read under way ends by its own timeout; past that, the thread is left to end by itself."""
        with self._changed:
            again, self._closed = self._closed, True
            self._changed.notify_all()
        if again:  # it was waited for once; a camera that hangs is not worth twice the time
            return
        if self._thread is not threading.current_thread():
            self._thread.join(self._stall_timeout_s + CLOSE_GRACE_S)
