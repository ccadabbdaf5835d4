"""Video streams through FFmpeg (PyAV): the frames of a file or of a network camera, each at its own size.

with VideoStream(Path("clip.mp4")) as stream:
    for decoded in stream:
        image = decoded.rgb()                # uint8 RGB [H, W, 3]
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

import av
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, SourceError
from agvas_core.contract.images.decode import decode_image
from agvas_core.contract.images.header import read_header

__all__ = ["DecodedFrame", "VideoStream"]

COUNTING: Final = ("mov", "avi")  # their headers count the frames
STREAMS: Final = ("mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc")  # their length is a guess; time stamps show gaps
DAMAGED: Final = "the frame is damaged: parts of it, or of a frame that it is built on, were lost, and the decoder guesses them"
IRREGULAR: Final = 0.05  # share of steps longer than 1.5 usual ones, beyond which the frame rate varies

av.logging.set_level(None)  # FFmpeg prints each damaged block; what matters is in our own errors


class DecodedFrame:
    """One frame, converted when it is asked for."""

    def __init__(self, width: int, height: int, convert: Callable[[], NDArray[np.uint8]]) -> None:
        self.pixels = width * height
        self.size = f"{width}x{height}"
        self._convert = convert

    def rgb(self) -> NDArray[np.uint8]:
        """uint8 RGB [H, W, 3], turned upright as the stream says.

        Raises:
            ImageError: it is damaged, or built on a frame that is.
        """
        return self._convert()


class VideoStream:
    """The first video stream of a file or an address. For one thread."""

    def __init__(
        self,
        address: str | Path,
        *,
        options: Mapping[str, str] | None = None,
        open_timeout_s: float | None = None,
        read_timeout_s: float | None = None,
        low_delay: bool = False,
    ) -> None:
        """Args:
            options: of FFmpeg's demuxer.
            low_delay: no frame is held back for the sake of speed.

        Raises:
            SourceError: it cannot be opened, holds no video, or its codec cannot be decoded here.
        """
        # Absolute, so that no file name can be taken for a protocol.
        target = str(address.absolute()) if isinstance(address, Path) else address
        timeout = None if open_timeout_s is None else (open_timeout_s, read_timeout_s)
        try:
            self._container = av.open(target, options=dict(options or {}), timeout=timeout)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise SourceError(_reason(error)) from error
        if not self._container.streams.video:
            self.close()
            raise SourceError("it holds no video")
        self._stream = self._container.streams.video[0]
        codec = self._stream.codec_context
        if codec is None:
            self.close()
            raise SourceError("its codec is not one that the installed FFmpeg decodes: convert it to H.264")
        if low_delay:
            codec.thread_count = 1
            codec.flags |= av.codec.context.Flags.low_delay
        else:
            codec.thread_type = "SLICE"  # a thread for each frame would hold frames back behind a packet that is damaged
        self._low_delay = low_delay
        self.decoded = 0
        """Frames given so far."""
        self.lost = 0
        """Packets that could not be decoded at all."""
        self._stamps_s: list[float] = []
        self._steps: deque[int] = deque(maxlen=8)
        self._last_dts: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the first frame, as the header says."""
        return self._stream.codec_context.width, self._stream.codec_context.height

    def __iter__(self) -> Iterator[DecodedFrame]:
        """Frames in the order in which they are shown.

        Raises:
            SourceError: the stream broke off, or gives nothing within its time.
        """
        strict_jpeg = self._stream.codec_context.name == "mjpeg"
        broken = False  # something was lost since the last whole key frame, on which all up to the next one are built
        try:
            for packet, gap_before, gap_behind in self._packets():
                broken = broken or gap_behind or (gap_before and not packet.is_keyframe)
                if strict_jpeg:
                    if packet.size:
                        yield self._given(_seconds(packet), _of_jpeg(bytes(packet), self.size))
                    continue
                try:
                    frames = packet.decode()
                except av.InvalidDataError:
                    self.lost += 1
                    broken = True
                    continue
                for frame in frames:
                    # Where MPEG streams are joined, a whole packet counts as cut, too; whether it is, its decoder knows.
                    cut = frame.is_corrupt or (packet.is_corrupt and not self._is_stream)
                    broken = cut or (broken and not frame.key_frame)
                    yield self._given(frame.time, _of_frame(frame, broken))
        except av.FFmpegError as error:
            raise SourceError(_reason(error)) from error

    def _packets(self) -> "Iterator[tuple[av.Packet[Any], bool, bool]]":
        """Each packet, and whether others are missing before and behind it. A camera's is not held back for what is behind it."""
        held: tuple[av.Packet[Any], bool] | None = None
        for packet in self._container.demux(self._stream):
            gap = self._skips(packet)
            if self._low_delay:
                yield packet, gap, False
                continue
            if held is not None:
                yield *held, gap
            held = packet, gap
        if held is not None:
            yield *held, False

    def _given(self, time_s: float | None, decoded: DecodedFrame) -> DecodedFrame:
        self.decoded += 1
        if time_s is not None:
            self._stamps_s.append(time_s)
        return decoded

    def _skips(self, packet: "av.Packet[Any]") -> bool:
        """Whether frames are missing before this one, by a step in the time stamps that were even so far. Containers with an index
        lose none in silence, and a camera's time stamps are never even: what it loses its decoder notices."""
        if packet.dts is None or self._counts or self._low_delay:
            return False
        steps = self._steps
        step, self._last_dts = packet.dts - (self._last_dts or packet.dts), packet.dts
        usual = median(steps) if len(steps) == steps.maxlen else 0
        skips = bool(usual) and step > 1.5 * usual and max(steps) < 1.5 * usual
        if step > 0:
            steps.append(step)
        return skips

    @property
    def announced(self) -> int | None:
        """How many frames the header promises, less those that an edit list leaves out; None where it does not say."""
        stream = self._stream
        if stream.frames > 0:
            index = stream.index_entries if "mov" in self._container.format.name else ()
            return sum(not entry.is_discard for entry in index) or stream.frames
        if self._is_stream or self._duration_s is None or not stream.average_rate:
            return None
        return round(self._duration_s * float(stream.average_rate))

    @property
    def missing(self) -> int:
        """After the last frame: how many were promised and did not come. A file whose frame rate varies is judged by its end alone."""
        if self._is_stream:
            return max(0, _count_by_time(self._stamps_s) - self.decoded)
        announced = self.announced
        if announced is None:
            return self.lost
        allowed = 0 if self._counts else 1 + announced // 100
        if not self._counts and _varies(self._stamps_s):
            usual_s = max(np.diff(sorted(self._stamps_s)).max(), 0.5)
            ended_early = self._duration_s is not None and max(self._stamps_s) + 2 * usual_s < self._duration_s
            return max(1, announced - self.decoded) if ended_early else self.lost
        return announced - self.decoded if self.decoded < announced - allowed else 0

    @property
    def _counts(self) -> bool:
        return any(name in self._container.format.name.split(",") for name in COUNTING)

    @property
    def _is_stream(self) -> bool:
        return self._container.format.name in STREAMS

    @property
    def _duration_s(self) -> float | None:
        duration = self._container.duration
        return duration / av.time_base if duration else None

    def close(self) -> None:
        """Frees the file or the connection."""
        self._container.close()

    def __enter__(self) -> "VideoStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _of_frame(frame: av.VideoFrame, broken: bool) -> DecodedFrame:
    def convert() -> NDArray[np.uint8]:
        if broken:
            raise ImageError(DAMAGED)
        quarters = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarters)).astype(np.uint8, copy=False)

    return DecodedFrame(frame.width, frame.height, convert)


def _of_jpeg(data: bytes, size: tuple[int, int]) -> DecodedFrame:
    """Motion JPEG by the decoder of pictures: FFmpeg's hands out what is damaged without a word."""
    with suppress(ImageError):  # told when the frame is converted
        header = read_header(BytesIO(data))
        size = header.width, header.height
    return DecodedFrame(*size, lambda: decode_image(data))


def _seconds(packet: "av.Packet[Any]") -> float | None:
    return float(packet.pts * packet.time_base) if packet.pts is not None and packet.time_base is not None else None


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.ExitError):
        return "it sends no frames any more"
    if isinstance(error, av.EOFError):
        return "the stream ended"
    return str(getattr(error, "strerror", None) or error)


def _count_by_time(stamps_s: list[float]) -> int:
    """How many frames fit between the first and the last time stamp, at the usual distance between two."""
    steps = [round(later - earlier, 4) for earlier, later in pairwise(stamps_s) if later > earlier]
    if not steps:
        return 0
    return round((max(stamps_s) - min(stamps_s)) / median(steps)) + 1


def _varies(stamps_s: list[float]) -> bool:
    steps = [later - earlier for earlier, later in pairwise(stamps_s)]
    usual_s = median(steps) if steps else math.inf
    return sum(step > 1.5 * usual_s for step in steps) > IRREGULAR * len(steps)
