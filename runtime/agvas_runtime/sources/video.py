"""The frames of a video file, every one of them."""

import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agvas_core.contract.command_line import needs_packages
from agvas_core.contract.errors import ImageError, SetupError, SourceError
from agvas_runtime.images.frame import Frame
from agvas_runtime.images.read import MAX_PIXELS

if TYPE_CHECKING:
    from agvas_runtime.sources.ffmpeg import VideoStream

__all__ = ["VIDEO_SUFFIXES", "VideoSource", "stream_class"]

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv", ".3gp")
)


def stream_class() -> "type[VideoStream]":
    """``VideoStream``, whose package comes with an extra.

    Raises:
        SetupError: it is not installed; names the extra.
    """
    with needs_packages():
        from agvas_runtime.sources.ffmpeg import VideoStream
    return VideoStream


class VideoSource:
    """Frames named ``clip.mp4#000120``, each at its own size. A video that breaks off ends with one Frame whose ImageError says where.

    A frame that is damaged is a Frame with an ImageError. Frames that are missing altogether are found by their count (MPEG streams:
    by a gap in their time stamps, so not at the end). Frames behind a gap are numbered as if there were none.
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
        try:
            with self._open() as stream:
                count = stream.announced
        except (SourceError, SetupError):
            return 1
        return max(0, -(-(count - self._skip) // self._every)) if count is not None else None

    def __iter__(self) -> Iterator[Frame]:
        self.decoded = 0
        try:
            stream = self._open()
        except SetupError as error:
            yield self._error(0, str(error))
            return
        except SourceError as error:
            yield self._error(0, _why_not_open(self.path, error))
            return
        with stream:
            yield from self._frames(stream)

    def _frames(self, stream: "VideoStream") -> Iterator[Frame]:
        width, height = stream.size
        if width * height > self._max_pixels:
            yield self._error(0, self._too_large(width * height, f"{width}x{height}"))
            return
        index = 0
        frames = iter(stream)
        end = None
        while True:
            start = time.perf_counter()
            try:
                decoded = next(frames, None)
            except SourceError as error:
                decoded, end = None, error
            if decoded is None:
                break
            if self.decoded >= self._skip and (self.decoded - self._skip) % self._every == 0:
                if decoded.pixels > self._max_pixels:
                    yield self._error(index, self._too_large(decoded.pixels, decoded.size))
                    return
                try:
                    image = decoded.rgb()
                except ImageError as error:
                    yield self._error(index, str(error))
                else:
                    read_ms = (time.perf_counter() - start) * 1000
                    yield Frame(self._name(self.decoded), index, image=image, path=self.path, read_ms=read_ms)
                index += 1
            self.decoded += 1
        if self.decoded == 0 or end is not None or stream.missing:
            count = self.decoded + stream.missing if stream.missing else stream.announced
            yield self._error(
                index,
                f"the video gave {self.decoded} of {count or 'its'} frames: the rest is damaged or missing; copy or record it again",
            )

    def _open(self) -> "VideoStream":
        """Raises SetupError like ``stream_class``, SourceError where this is no video."""
        if not self.path.is_file():  # FFmpeg would wait for the other end of a pipe, for ever and deaf to Ctrl-C
            raise SourceError("no regular file")
        return stream_class()(self.path)

    def _too_large(self, pixels: int, size: str) -> str:
        return f"frames are {size} px; the cap is {self._max_pixels} pixels: pass --max-pixels {pixels}"

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


def _why_not_open(path: Path, error: SourceError) -> str:
    try:
        if not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
            return "is a device or a pipe; a video file is needed"
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as denied:
        return f"cannot be opened ({denied.strerror}): check the path and its permissions"
    if empty:
        return "the file is empty (0 bytes): copy or record it again"
    return f"not a video that can be read ({error}): check that a player shows it, or convert it to MP4"
