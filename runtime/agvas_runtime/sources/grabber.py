"""How frames are got out of each kind of camera, one at a time; ``camera`` runs one of these in its thread."""

import http.client
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, SourceError
from agvas_runtime.images.frame import Sent
from agvas_runtime.images.read import decode_image, quiet_opencv
from agvas_runtime.sources.ffmpeg import DecodedFrame, VideoStream

__all__ = ["CaptureGrabber", "Grabber", "HttpGrabber", "MjpegStream", "RtspGrabber", "reach"]


# Whole JPEG pictures out of an ``http://`` MJPEG stream (multipart/x-mixed-replace).
#
# Not left to FFmpeg, which hands out the last picture half grey when the connection breaks inside it.


CHUNK_BYTES = 1 << 16
PICTURE_BYTES_MOST = 256 << 20  # no camera comes near it; a stream that does is no MJPEG
HEAD_BYTES_MOST = 1 << 16


class MjpegStream:
    """Opens on construction; iterating gives the bytes of one JPEG after the other, each received to its end.

    Raises SourceError where there is no such stream, or it ends, breaks off or is silent for ``timeout_s``.
    """

    def __init__(self, url: str, timeout_s: float, read_timeout_s: float) -> None:
        parts = urlsplit(url)
        # Cameras stand in the same network: never through the proxy that the environment may name.
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path or "/", parts.query, ""))
        if parts.username is not None:
            passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
            passwords.add_password(None, bare, unquote(parts.username), unquote(parts.password or ""))
            handlers += [urllib.request.HTTPBasicAuthHandler(passwords), urllib.request.HTTPDigestAuthHandler(passwords)]
        try:
            self._response: http.client.HTTPResponse = urllib.request.build_opener(*handlers).open(bare, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise SourceError(f"the camera answers {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)  # URLError wraps the error of the socket
            raise SourceError(getattr(reason, "strerror", None) or str(reason) or type(error).__name__) from error
        kind = self._response.headers.get_content_type()
        boundary = self._response.headers.get_param("boundary")
        if not kind.startswith("multipart/") or not isinstance(boundary, str):
            self.close()
            raise SourceError(f"it answers with {kind}, not with multipart/x-mixed-replace (MJPEG)")
        # Some cameras count the leading dashes in, some do not.
        self._boundary = b"--" + boundary.strip().lstrip("-").encode("latin-1")
        self._buffer = b""
        self._set_read_timeout(read_timeout_s)

    def _set_read_timeout(self, seconds: float) -> None:
        raw = getattr(self._response.fp, "raw", None)
        sock = getattr(raw, "_sock", None)  # http.client has no public way to the socket of an open answer
        if sock is not None:
            sock.settimeout(seconds)

    def __iter__(self) -> Iterator[bytes]:
        self._buffer = self._until(self._boundary, HEAD_BYTES_MOST)[1]
        while True:
            head, self._buffer = self._until(re.compile(rb"\r?\n\r?\n"), HEAD_BYTES_MOST)
            stated = re.search(rb"^content-length:\s*(\d{1,12})\s*$", head, re.IGNORECASE | re.MULTILINE)
            if stated is not None:
                # Given out before the next boundary is waited for, which cameras send with the next picture.
                yield self._exactly(int(stated.group(1)))
                self._buffer = self._until(self._boundary, HEAD_BYTES_MOST)[1]
            else:
                picture, self._buffer = self._until(self._boundary, PICTURE_BYTES_MOST)
                yield picture

    def _until(self, sign: bytes | re.Pattern[bytes], most: int) -> tuple[bytes, bytes]:
        """What comes before ``sign``, and what has been received behind it."""
        pattern = re.compile(re.escape(sign)) if isinstance(sign, bytes) else sign
        received = bytearray(self._buffer)
        start = 0
        while (match := pattern.search(received, start)) is None:
            if len(received) > most:
                raise SourceError(f"it sent {len(received)} bytes without {pattern.pattern!r}: it is no MJPEG")
            start = max(0, len(received) - 128)  # the sign may be cut by a chunk
            received += self._chunk()
        return bytes(received[: match.start()]), bytes(received[match.end() :])

    def _exactly(self, count: int) -> bytes:
        if count > PICTURE_BYTES_MOST:
            raise SourceError(f"it announces a picture of {count} bytes; {PICTURE_BYTES_MOST} is the most")
        received = bytearray(self._buffer)
        while len(received) < count:
            received += self._chunk()
        self._buffer = bytes(received[count:])
        return bytes(received[:count])

    def _chunk(self) -> bytes:
        try:
            chunk = self._response.read1(CHUNK_BYTES)
        except TimeoutError as error:
            raise SourceError("it sends nothing any more") from error
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"the connection broke ({error})") from error
        if not chunk:
            raise SourceError("the camera closed the connection")
        return chunk

    def close(self) -> None:
        self._response.close()


# Whether the host of a network camera takes connections.


ATTEMPT_S: Final = 0.5
PORTS: Final = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322}


def reach(url: str, timeout_s: float) -> None:
    """Returns once a connection is taken, or refused with words, which whoever opens the stream will hear.

    A cable that is out swallows packets. TCP waits 1, 2, 4 s until it sends the first one again, so that an attempt that began then would
    find a camera late that has long been back; short attempts find it at once.

    Raises:
        SourceError: nothing for ``timeout_s``.
    """
    parts = urlsplit(url)
    end_s = time.monotonic() + timeout_s
    while (left_s := end_s - time.monotonic()) > 0:
        try:
            socket.create_connection((parts.hostname, parts.port or PORTS[parts.scheme]), min(ATTEMPT_S, left_s)).close()
            return
        except TimeoutError:
            continue
        except OSError:
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
    """MJPEG over HTTP. A picture that arrived broken is an ImageError; the stream goes on."""

    missed = 0

    def __init__(self, url: str, open_timeout_s: float, stall_timeout_s: float, max_pixels: int) -> None:
        self._url, self._max_pixels = url, max_pixels
        self._open_timeout_s, self._stall_timeout_s = open_timeout_s, stall_timeout_s
        self._stream: MjpegStream | None = None
        self._pictures: Iterator[bytes] = iter(())
        self._picture = b""

    def open(self) -> None:
        reach(self._url, self._open_timeout_s)
        self._stream = MjpegStream(self._url, self._open_timeout_s, self._stall_timeout_s)
        self._pictures = iter(self._stream)

    def grab(self) -> bool:
        self._picture = next(self._pictures)  # raises SourceError at the end, never StopIteration
        return True

    def retrieve(self) -> Rgb | ImageError:
        try:
            return decode_image(self._picture, max_pixels=self._max_pixels)
        except ImageError as error:
            return error

    def fire(self) -> None:
        """Runs free."""

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
    """RTSP through FFmpeg, over TCP. A frame that lost packets is an ImageError; the stream goes on."""

    missed = 0

    def __init__(self, url: str, open_timeout_s: float, stall_timeout_s: float) -> None:
        self._url, self._open_timeout_s, self._stall_timeout_s = url, open_timeout_s, stall_timeout_s
        self._stream: VideoStream | None = None
        self._frames: Iterator[DecodedFrame] = iter(())
        self._frame: DecodedFrame | None = None

    def open(self) -> None:
        reach(self._url, self._open_timeout_s)
        # FFmpeg would hold 20 frames back to guess their rate: a second of a camera, seconds of a slow one.
        options = {"rtsp_transport": "tcp", "fpsprobesize": "0"}
        try:
            self._stream = VideoStream(
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
