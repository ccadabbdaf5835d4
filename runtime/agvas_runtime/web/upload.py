"""From what a client sends to the bytes of images: base64 or ``data:`` URLs. Nothing is fetched, and no path is opened.

An image's format and size are read from its header before anything waits for it, so a bomb never takes a place in the queue.
"""

import base64
import binascii
import re
from typing import NamedTuple

from agvas_core.contract.errors import ImageError
from agvas_runtime.images.read import check_header
from agvas_runtime.web.refusal import Refusal

__all__ = ["Upload", "check_upload", "from_text", "shown_name"]

MAX_NAME_CHARS = 120
_DATA_URL = re.compile(r"data:(?P<kind>[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*(?P<coded>;base64)?,", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{1,20}:", re.IGNORECASE)


class Upload(NamedTuple):
    """An image file as it came."""

    name: str
    data: bytes


def from_text(text: str, name: str) -> Upload:
    """An image that came inside JSON, as base64 or as a ``data:`` URL.

    Raises:
        Refusal: an address of any other kind, or text that is no base64.
    """
    found = _DATA_URL.match(text)
    if found is None and _SCHEME.match(text):
        raise Refusal(
            400, "usage", f"{name}: {text[:40]!r} is an address; images are sent as data: URL, base64 or upload; none is fetched"
        )
    if found is not None and not found["coded"]:
        raise Refusal(400, "usage", f"{name}: the data: URL is not base64: write data:image/png;base64,...")
    try:
        data = base64.b64decode(text[found.end() :] if found else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, "usage", f"{name}: no valid base64 ({error}); send the bytes of an image file") from error
    return Upload(name, data)


def check_upload(upload: Upload, max_pixels: int) -> None:
    """Refuses by the header alone.

    Raises:
        Refusal: 413 where it has too many pixels, 422 where it is no image.
    """
    try:
        check_header(upload.data, max_pixels=1 << 62)
    except ImageError as error:
        raise Refusal(422, "image", f"{upload.name}: {error}") from error
    try:
        check_header(upload.data, max_pixels=max_pixels)
    except ImageError as error:
        raise Refusal(413, "too_large", f"{upload.name}: {error}") from error


def shown_name(name: str | None, index: int) -> str:
    """A client's file name, for the reply only: its last part, printable and short; never used as a path."""
    last = re.split(r"[/\\]", name or "")[-1]
    clean = "".join(letter for letter in last if letter.isprintable())[:MAX_NAME_CHARS].strip()
    return clean or f"image-{index}"
