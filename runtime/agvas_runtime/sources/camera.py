"""A live camera: V4L2 device, RTSP stream, MJPEG over HTTP, or GenICam.

    with CameraSource("rtsp://10.0.0.5/line1") as camera:
        for frame in camera:
            ...

A thread reads the camera as fast as it sends and keeps the newest frame alone, or as many as it is told. Each frame is given once;
one that was replaced before it was taken is counted in ``dropped`` (and leaves a gap in the numbers of the names). No frame is ever
given twice.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from agvas_core.contract.errors import ImageError, SourceError, UsageError
from agvas_core.contract.preprocess import ViewSpec
from agvas_runtime.images.frame import Frame, Sent
from agvas_runtime.images.read import MAX_PIXELS
from agvas_runtime.images.views import camera_frame
from agvas_runtime.sources.camera_address import camera_address, without_secrets
from agvas_runtime.sources.camera_reader import CameraReader
from agvas_runtime.sources.device import V4L2_FORMATS, device_grabber
from agvas_runtime.sources.genicam import GenicamGrabber
from agvas_runtime.sources.grabber import Grabber, HttpGrabber, rtsp_grabber

__all__ = ["CameraSource", "without_secrets"]


class CameraSource:
    """Frames named ``camera-0#000007``. The camera is opened when iteration begins; several iterations open it anew.

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
    ) -> None:
        """Args:
            uri: see ``camera_address``.
            every: each n-th frame that the camera sends.
            pixel_format: of a device: it sends in this one (Mono8, BayerRG8, YUYV, ...), and image and views are made in one pass over it;
                OpenCV chooses and converts where None.
            bits: used bits of Mono16.
            keep: so many frames wait to be taken; beyond that the oldest is dropped.
            block: drop nothing: the camera is not read while ``keep`` frames wait.

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
        """Which views of a frame of (height, width) px are made with its image; whoever segments says so before the first frame."""
        self.name = self.address.name if name is None else name
        self.notes: list[str] = []
        self.dropped = 0
        """Frames that the camera sent and nobody took; those that ``every`` leaves out are not counted."""
        self.format: str | None = None
        """What the camera says of its pixels, where it does."""
        self._every, self._max_pixels, self._keep, self._block = every, max_pixels, keep, block
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
            return HttpGrabber(address.target, self._open_timeout_s, self._stall_timeout_s, self._max_pixels)
        if address.kind == "rtsp":
            return rtsp_grabber(address.target, self._open_timeout_s, self._stall_timeout_s)
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
