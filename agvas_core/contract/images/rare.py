"""GIF, JPEG 2000 and AVIF by Pillow, as far as its wheel can; and the names of picture formats that are not read."""

import struct
import warnings
from io import BytesIO
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from agvas_core.contract.errors import ImageError

__all__ = ["OTHER_PICTURES", "decode_by_pillow", "pillow_image", "pillow_size", "unread_format"]

Image.MAX_IMAGE_PIXELS = None  # the cap is ours, and is looked at before anything is decoded

_PLUGINS: Final = {"gif": "GIF", "jp2": "JPEG2000", "avif": "AVIF"}

OTHER_PICTURES: Final = {
    ".heic": "HEIC", ".heif": "HEIF", ".jxl": "JPEG XL", ".psd": "Photoshop", ".exr": "OpenEXR", ".hdr": "Radiance HDR",
    ".dng": "camera raw", ".nef": "camera raw", ".cr2": "camera raw", ".cr3": "camera raw", ".arw": "camera raw",
    ".raf": "camera raw", ".orf": "camera raw", ".rw2": "camera raw", ".tga": "Targa", ".pcx": "PCX", ".ico": "ICO",
    ".svg": "SVG", ".dcm": "DICOM",
}  # fmt: skip
"""Suffixes of pictures that are not read: counted and named, so that they are not mistaken for judged ones."""

_STARTS: Final = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "a Photoshop file",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"<svg": "SVG",
    b"%PDF": "PDF",
}


def unread_format(start: bytes) -> str | None:
    """Name of a known format that is not read, by the first bytes of a file; None if it is none."""
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
        return "HEIC"
    return next((name for head, name in _STARTS.items() if start.startswith(head)), None)


def pillow_size(file: BinaryIO, kind: str) -> tuple[int, int]:
    """(width, height) of an open file, before any rotation. Raises ImageError where Pillow cannot open it."""
    return _open_by_pillow(file, kind).size


def decode_by_pillow(data: bytes, kind: str) -> tuple[NDArray[np.generic], bytes]:
    """(pixels [H, W] or [H, W, C] turned upright, ICC profile or nothing) of the first picture of the file.

    Raises:
        ImageError: it is cut short or broken, or has a kind of samples that is not read.
    """
    image = _open_by_pillow(BytesIO(data), kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            upright, profile = _upright(image)
    except Exception as error:  # its plugins have no type of their own for a broken file
        raise ImageError(f"{kind.upper()} cannot be decoded ({error}): it is cut short or broken") from error
    if upright.mode not in ("L", "LA", "RGB", "RGBA", "I;16"):
        raise ImageError(f"{kind.upper()} has samples of the kind {upright.mode}, which is not read: save it as PNG")
    return np.array(upright), profile


def pillow_image(image: Image.Image) -> tuple[NDArray[np.generic], bytes]:
    """(pixels [H, W] or [H, W, C] turned upright, ICC profile or nothing) of an open image of Pillow, of any mode.

    Raises:
        ImageError: its file is cut short or broken, or its samples do not fit into 16 bits.
    """
    try:
        upright, profile = _upright(image)
        if upright.mode not in ("L", "LA", "RGB", "RGBA", "F", "I") and not upright.mode.startswith("I;16"):
            upright, profile = upright.convert("RGB"), b""  # the profile is of the colours before
    except Exception as error:  # its plugins have no type of their own for a broken file
        raise ImageError(f"the image cannot be decoded ({error}): its file is cut short or broken") from error
    pixels: NDArray[np.generic] = np.array(upright)
    if upright.mode.startswith("I"):
        lowest, highest = (int(pixels.min()), int(pixels.max())) if pixels.size else (0, 0)
        if lowest < 0 or highest > 0xFFFF:
            raise ImageError(f"samples run from {lowest} to {highest}; 0 to 65535 is needed: rescale them")
        pixels = pixels.astype(np.uint16)  # also of another byte order
    return pixels, profile


def _upright(image: Image.Image) -> tuple[Image.Image, bytes]:
    """The image decoded, without a palette, turned as EXIF says; and its ICC profile or nothing."""
    image.load()
    profile = bytes(image.info.get("icc_profile") or b"")
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode == "1":
        image = image.convert("L")
    return ImageOps.exif_transpose(image), profile


def _open_by_pillow(file: BinaryIO, kind: str) -> Image.Image:
    """The file, nothing of it decoded. Raises ImageError where Pillow cannot open it."""
    name = _PLUGINS[kind]
    Image.init()
    if name not in Image.OPEN:
        raise ImageError(f"{name} is not read by the Pillow that is installed: install a newer one (pip install -U pillow)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(file, formats=(name,))
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise ImageError(f"{kind.upper()} cannot be opened ({error}): it is cut short or broken") from error
