"""A live camera: V4L2 device, RTSP stream, MJPEG or snapshots over HTTP, or GenICam.

    with CameraSource("rtsp://10.0.0.5/line1") as camera:
        for frame in camera:
            ...

A thread reads the camera as fast as it sends and keeps the newest frame alone, or as many as it is set to. Each frame is given once;
one that was replaced before it was taken is counted in ``dropped`` (and leaves a gap in the numbers of the names). No frame is ever
given twice.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, SourceError, UsageError
from agvas_core.contract.preprocess import ViewSpec
from agvas_runtime.images.frame import Frame, Sent
from agvas_runtime.images.read import MAX_PIXELS
from agvas_runtime.images.views import camera_frame
from agvas_runtime.sources.camera_address import camera_address, without_secrets
from agvas_runtime.sources.device import V4L2_FORMATS, device_grabber
from agvas_runtime.sources.genicam import GenicamGrabber
from agvas_runtime.sources.grabber import Grabber, HttpGrabber, RtspGrabber

__all__ = ["CameraReader", "CameraSource", "Shot", "without_secrets"]


# The thread that reads a camera, and the place for frames that are not taken yet.


CLOSE_GRACE_S = 1.0
GRABBER_GRACE_S = 0.25
SILENT_GRACE_S = 0.05
WAIT_S = 0.1  # for room; so often it is looked whether the reader was stopped


class Shot(NamedTuple):
    """A frame as it came."""

    number: int
    """Counts what the camera sent."""
    picture: NDArray[np.uint8] | Sent | ImageError
    read_ms: float
    taken_s: float
    """``time.monotonic`` of its arrival."""


class CameraReader:
    """Reads until it is stopped or the camera is lost."""

    def __init__(
        self, grabber: Grabber, *, every: int, keep: int, block: bool, open_timeout_s: float, stall_timeout_s: float
    ) -> None:
        """Args:
        keep: so many frames wait at most; beyond that the oldest is dropped.
        block: nothing is dropped, and the camera is not read while ``keep`` frames wait.
        """
        self.dropped = 0
        """Frames that came, or should have, and that will not be taken."""
        self._grabber, self._every, self._keep, self._block = grabber, every, keep, block
        self._open_timeout_s, self._stall_timeout_s = open_timeout_s, stall_timeout_s
        self._changed = threading.Condition()
        self._frames: deque[Shot] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._opened = self._silent = False
        self._grabbed = 0
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
            while self._has_room():
                there = self._grabber.grab()
                if there is None:
                    continue
                taken_s = time.monotonic()
                start = time.perf_counter()
                picture = self._grabber.retrieve() if there and self._grabbed % self._every == 0 else None
                self._put(there, picture, (time.perf_counter() - start) * 1000, taken_s)
        except BaseException as caught:  # carried over to the consumer, which raises it
            error = caught
        finally:
            self._grabber.close()
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _has_room(self) -> bool:
        """Waits for room where it must; False once the reader is stopped."""
        with self._changed:
            while self._block and len(self._frames) >= self._keep and not self._closed:
                self._changed.wait(WAIT_S)
                self._heard_s = time.monotonic()  # its silence is ours
            return not self._closed

    def _put(self, there: bool, picture: NDArray[np.uint8] | Sent | ImageError | None, read_ms: float, taken_s: float) -> None:
        missed, self._grabber.missed = self._grabber.missed, 0
        with self._changed:
            self._heard_s = time.monotonic()
            self.dropped += missed
            if picture is not None:
                while len(self._frames) >= self._keep:
                    self._frames.popleft()
                    self.dropped += 1
                self._frames.append(Shot(self._grabbed, picture, read_ms, taken_s))
            self._grabbed += there
            self._changed.notify_all()

    def take(self) -> Shot | None:
        """The oldest frame that waits, waited for; None after ``stop``.

        Raises:
            SourceError: there is no camera, or it stopped and its frames are all taken.
        """
        with self._changed:
            while not self._frames and not self._closed:
                if self._error is not None:
                    self._raise_end(self._error)
                limit_s = self._stall_timeout_s if self._opened else self._open_timeout_s
                # The clock starts again with each frame; a bit more than the grabber's own limit, whose reason says more.
                left_s = self._heard_s + limit_s + GRABBER_GRACE_S - time.monotonic()
                if left_s <= 0:
                    self._silent = True
                    self._raise_end(SourceError("it is silent"))
                self._changed.wait(left_s)
            if self._closed:
                return None
            shot = self._frames.popleft()
            self._changed.notify_all()
            return shot

    def fire(self) -> None:
        """Asks for a frame, where the camera waits to be asked."""
        self._grabber.fire()

    @property
    def format(self) -> str | None:
        """What the camera says of its pixels; None where it says nothing."""
        return getattr(self._grabber, "format", None) or None

    def _raise_end(self, error: BaseException) -> None:
        if not isinstance(error, SourceError):
            raise error
        if not self._opened:
            raise SourceError(
                f"not there: {error} (waited at most {self._open_timeout_s:g} s): check power, cable and address, "
                "and that no other program holds it"
            ) from error
        raise SourceError(
            f"stopped after {self._grabbed} frames: {error} (waited at most {self._stall_timeout_s:g} s): check cable and power; "
            "a station goes on by itself, a run is to be started again"
        ) from error

    def stop(self) -> None:
        """Ends the thread. A read under way ends by its own timeout; past that, the thread is left to end by itself, and so is one that
        hangs in a camera that fell silent: the camera may be back by then."""
        with self._changed:
            again, self._closed = self._closed, True
            self._changed.notify_all()
        if again:  # it was waited for once; a camera that hangs is not worth twice the time
            return
        if self._thread is not threading.current_thread():
            self._thread.join(SILENT_GRACE_S if self._silent else self._stall_timeout_s + CLOSE_GRACE_S)


class CameraSource:
    """Frames named ``camera-0#000007``. The camera is opened when iteration begins; several iterations open it again.

    The iterator raises SourceError when there is no camera within ``open_timeout_s``, and when no frame came for
    ``stall_timeout_s``, after the frames that did come. A camera that waits for a trigger is asked whether it is there instead.
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
        keep: int = 1,
        block: bool = False,
        asked: bool = False,
    ) -> None:
        """Args:
            uri: see ``camera_address``.
            every: each n-th frame that the camera sends.
            pixel_format: of a device: it sends in this one (Mono8, BayerRG8, YUYV, ...), and image and views are made in one pass over it;
                OpenCV chooses and converts where None.
            bits: used bits of Mono16.
            keep: so many frames wait to be taken; beyond that the oldest is dropped.
            block: drop nothing: the camera is not read while ``keep`` frames wait.
            asked: ``fire`` asks for each picture, where the camera gives one a request (a snapshot over HTTP).

        Raises:
            UsageError: ``uri`` is none of these, or a number is out of range.
        """
        for option, count in (("every", every), ("keep", keep)):
            if count < 1:
                raise UsageError(f"{option} is {count}; 1 is the least")
        for option, seconds in (("open_timeout_s", open_timeout_s), ("stall_timeout_s", stall_timeout_s)):
            if not 0 < seconds < 3600:
                raise UsageError(f"{option} is {seconds}; it lies between 0 and 3600 seconds")
        self.address = camera_address(str(uri))
        if pixel_format is not None and pixel_format not in V4L2_FORMATS:
            raise UsageError(f"pixel format {pixel_format!r} is not known; it can be {', '.join(V4L2_FORMATS)}")
        if pixel_format is not None and self.address.kind != "device":
            raise UsageError(
                f"pixel format {pixel_format} is for cameras of this machine; {self.address.label} says its own, or sends a coded stream: leave it out"
            )
        self._raw = (pixel_format, bits) if pixel_format is not None else None
        self.whole_views: Callable[[int, int], Sequence[ViewSpec]] = lambda height, width: ()
        """Which views of a frame of (height, width) px are made with its image; the segmenter says so before the first frame."""
        self.name = self.address.name if name is None else name
        self.notes: list[str] = []
        self.dropped = 0
        """Frames of the camera that were not taken; those that ``every`` leaves out are not counted."""
        self.format: str | None = None
        """What the camera says of its pixels, where it does."""
        self._every, self._max_pixels, self._keep, self._block, self._asked = every, max_pixels, keep, block, asked
        self._open_timeout_s, self._stall_timeout_s = open_timeout_s, stall_timeout_s
        self._reader: CameraReader | None = None

    def __iter__(self) -> Iterator[Frame]:
        self.close()
        self.dropped = 0
        reader = CameraReader(
            self._grabber(),
            every=self._every,
            keep=self._keep,
            block=self._block,
            open_timeout_s=self._open_timeout_s,
            stall_timeout_s=self._stall_timeout_s,
        )
        self._reader = reader
        index = 0
        try:
            while True:
                try:
                    shot = reader.take()
                except SourceError as error:
                    raise SourceError(f"{self.address.label}: {error}") from error
                if shot is None:  # closed from elsewhere
                    return
                self.dropped, self.format = reader.dropped, reader.format
                name = f"{self.name}#{shot.number:06d}"
                if isinstance(shot.picture, ImageError):
                    broken = ImageError(f"{name}: {shot.picture}")
                    yield Frame(name, index, error=broken, read_ms=shot.read_ms, taken_s=shot.taken_s)
                elif isinstance(shot.picture, Sent):
                    views = self.whole_views(*shot.picture.size)
                    yield replace(camera_frame(shot.picture, views, name, index, read_ms=shot.read_ms), taken_s=shot.taken_s)
                else:
                    yield Frame(name, index, image=shot.picture, read_ms=shot.read_ms, taken_s=shot.taken_s)
                index += 1
        finally:
            reader.stop()

    def _grabber(self) -> Grabber:
        address = self.address
        if address.kind == "http":
            return HttpGrabber(address.target, self._open_timeout_s, self._stall_timeout_s, self._max_pixels, asked=self._asked)
        if address.kind == "rtsp":
            return RtspGrabber(address.target, self._open_timeout_s, self._stall_timeout_s)
        if address.kind == "genicam":
            return GenicamGrabber(address.target, address.settings)
        return device_grabber(address.target, address.settings, self._raw)

    def fire(self) -> None:
        """Asks for a frame, where the camera gives one only when asked; one that runs free gives its frames in any case."""
        if (reader := self._reader) is not None:
            reader.fire()

    def close(self) -> None:
        """Ends the thread and frees the device; an iteration under way ends."""
        if self._reader is not None:
            self._reader.stop()
            self._reader = None

    def __enter__(self) -> "CameraSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
