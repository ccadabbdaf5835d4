"""Whole JPEG pictures out of an ``http://`` MJPEG stream (multipart/x-mixed-replace).

Not left to FFmpeg, which hands out the last picture half grey when the connection breaks inside it.
"""

import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit, urlunsplit

from agvas_core.contract.errors import SourceError

__all__ = ["MjpegStream"]

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
