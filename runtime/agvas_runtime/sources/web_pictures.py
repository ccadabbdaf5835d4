"""Pictures behind web addresses: each is downloaded once, in bounds of time and size, and read as a file would be.

Only ``http`` and ``https`` are opened, also where a server redirects. What cannot be had or read is a frame with an error, and the
next one is taken.
"""

import base64
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPException, HTTPMessage
from pathlib import PurePosixPath
from typing import IO, Any, Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from agvas_core import __version__
from agvas_core.contract.command_line import printable
from agvas_core.contract.errors import ImageError, UsageError
from agvas_runtime.images.frame import Frame
from agvas_runtime.images.read import IMAGE_SUFFIXES, MAX_PIXELS, NotedOnce, decode_image
from agvas_runtime.sources.camera_address import without_secrets

__all__ = ["WebSource", "is_web_picture"]

MAX_BYTES: Final = 128 << 20
CONNECT_S: Final = 10.0
"""Without a byte for this long, a download has failed."""
DOWNLOAD_S: Final = 60.0
"""For all of one picture."""
MOST_REDIRECTS: Final = 5
CHUNK: Final = 1 << 16

_SCHEMES: Final = ("http", "https")
_NO_PICTURE: Final = ("text/", "application/json", "application/xml", "application/xhtml", "video/", "audio/", "multipart/")
"""Content types that are refused before they are read; some servers call every file application/octet-stream."""


def is_web_picture(text: str) -> bool:
    """Whether it is an address with the name of a picture: ``https://host/a/part.jpg?size=2``. Others on the web are cameras."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme.lower() in _SCHEMES and PurePosixPath(unquote(parts.path)).suffix.lower() in IMAGE_SUFFIXES


class WebSource:
    """Pictures of ``http`` and ``https`` addresses, in the order given; frames have the address as name, without password and query.

    Args:
        every: each n-th; what lies between is not downloaded.
        max_bytes, connect_s, download_s: a download stops beyond them, and its frame has the error.

    Raises:
        UsageError: an address with another scheme or without a host.
    """

    live = False

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        every: int = 1,
        max_pixels: int = MAX_PIXELS,
        bits: int | None = None,
        max_bytes: int = MAX_BYTES,
        connect_s: float = CONNECT_S,
        download_s: float = DOWNLOAD_S,
    ) -> None:
        if every < 1:
            raise UsageError(f"every is {every}; 1 is the least: 1 reads every frame")
        self._requests = [_request(address) for address in addresses][::every]
        self._max_pixels, self._bits = max_pixels, bits
        self._max_bytes, self._connect_s, self._download_s = max_bytes, connect_s, download_s
        self.notes: list[str] = []
        self._noted = NotedOnce(self.notes)

    @property
    def total(self) -> int:
        """As many as there are addresses."""
        return len(self._requests)

    def __iter__(self) -> Iterator[Frame]:
        for index, (name, request) in enumerate(self._requests):
            start = time.perf_counter()
            try:
                data = self._download(request)
                image = decode_image(data, max_pixels=self._max_pixels, bits=self._bits, note=self._noted.of(name))
            except ImageError as error:
                error = ImageError(f"{name}: {error}")
                yield Frame(name, index, error=error, read_ms=(time.perf_counter() - start) * 1000)
                continue
            yield Frame(name, index, image=image, read_ms=(time.perf_counter() - start) * 1000)

    def _download(self, request: urllib.request.Request) -> bytes:
        """The body of the answer.

        Raises:
            ImageError: it cannot be had, is none of a picture, or takes too long or too many bytes.
        """
        end = time.monotonic() + self._download_s
        try:
            with _opener().open(request, timeout=self._connect_s) as answer:
                self._check(answer.headers)
                data = bytearray()
                while chunk := answer.read1(CHUNK):
                    data += chunk
                    if len(data) > self._max_bytes:
                        raise self._too_large(f"more than {self._max_bytes}")
                    if time.monotonic() > end:
                        raise ImageError(
                            f"the download took more than {self._download_s:g} s and had {len(data)} bytes by then: check the network, or "
                            "download the file first"
                        )
                if answer.length:
                    raise ImageError(f"the download ended {answer.length} bytes early: try again")
        except urllib.error.HTTPError as error:
            with error:
                raise ImageError(f"the server says {error.code} ({printable(error.reason)}): check the address") from error
        except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError; ValueError: a redirect to no address
            reason = getattr(error, "reason", None) or error
            raise ImageError(f"cannot be downloaded ({printable(str(reason))}): check the address and the network") from error
        return bytes(data)

    def _check(self, headers: HTTPMessage) -> None:
        kind = headers.get_content_type() if "content-type" in headers else ""
        if kind.startswith(_NO_PICTURE):
            raise ImageError(f"the content type is {printable(kind)}; a picture is needed: check the address")
        said = headers.get("content-length", "")
        if said.isdecimal() and int(said) > self._max_bytes:
            raise self._too_large(said)

    def _too_large(self, size: str) -> ImageError:
        return ImageError(f"the file has {size} bytes; {self._max_bytes} is the most: download it yourself and give the file")

    def close(self) -> None:
        """Nothing to do: a connection is open only while it is read."""

    def __enter__(self) -> "WebSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _request(address: str) -> tuple[str, urllib.request.Request]:
    """(name of the frame, what is asked for). A user and password in the address go into a header, and to no other host."""
    shown = without_secrets(address)
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError(f"address {shown!r} is none: check host and port") from None  # its message may hold the password
    if parts.scheme.lower() not in _SCHEMES or not host:
        raise UsageError(f"address {shown!r} is not understood: http://HOST/... and https://HOST/... are opened")
    place = f"[{host}]" if ":" in host else host
    place = f"{place}:{port}" if port is not None else place
    # Spaces and letters beyond ASCII are written as a browser does; what is escaped already stays.
    path, query = quote(parts.path, safe="/%:@!$&'()*+,;=~-._"), quote(parts.query, safe="/?%:@!$&'()*+,;=~-._")
    request = urllib.request.Request(urlunsplit((parts.scheme, place, path, query, "")))
    request.add_header("User-Agent", f"agvas/{__version__}")
    request.add_header("Accept", "image/*, application/octet-stream;q=0.5")
    if parts.username is not None:
        known = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(known).decode())
    return shown, request


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Few of them, to http and https only, and never from https to http."""

    max_redirections = MOST_REDIRECTS

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme.lower()
        if scheme not in _SCHEMES or (req.type == "https" and scheme == "http"):
            raise urllib.error.URLError(f"redirected to {scheme or 'nothing'}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> Any:
    """An opener that knows http and https and nothing else: no files, no FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener
