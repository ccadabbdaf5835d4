"""What a file says about its pixels beside them: which way is up (EXIF), and in which colours it is (ICC)."""

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

__all__ = ["orientation_of", "png_exif", "riff_chunks", "to_srgb", "turn_upright"]

Rgb = NDArray[np.uint8]

ORIENTATION_TAG = 274
_VALUE_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q"}
_ICC_BYTES_MOST = 16 << 20
_RAW_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")  # of ImageMagick, hexadecimal


def orientation_of(block: bytes) -> int:
    """EXIF 2.32, tag 274, of an EXIF block, 1 to 8; 1 (upright) where there is none or it is broken.

    The tag may have any whole-number type and either byte order; the standard's SHORT is not what all cameras write.
    """
    block = block.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\xff")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    with suppress(struct.error):  # a broken EXIF block does not make the pixels unusable
        (offset,) = struct.unpack(order + "I", block[4:8])
        (entries,) = struct.unpack(order + "H", block[offset : offset + 2])
        for at in range(offset + 2, offset + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack(order + "HHI", block[at : at + 8])
            if tag == ORIENTATION_TAG:
                return _whole_number(block, at + 8, kind, count, order)
    return 1


def _whole_number(block: bytes, at: int, kind: int, count: int, order: str) -> int:
    size = {2: 1, 5: 8, 10: 8, 11: 4, 12: 8}.get(kind) or struct.calcsize(_VALUE_CODES.get(kind, "B"))
    if size * count > 4:  # the value lies elsewhere
        (at,) = struct.unpack(order + "I", block[at : at + 4])
    value = 0
    if kind in _VALUE_CODES:
        (value,) = struct.unpack(order + _VALUE_CODES[kind], block[at : at + size])
    elif kind == 2:  # text
        text = block[at : at + count].strip(b"\0 ")
        value = int(text) if text.isdigit() else 0
    elif kind in (5, 10):  # a fraction
        above, below = struct.unpack(order + ("II" if kind == 5 else "ii"), block[at : at + 8])
        value = above // below if below and above % below == 0 else 0
    elif kind in (11, 12):
        (real,) = struct.unpack(order + ("f" if kind == 11 else "d"), block[at : at + size])
        value = int(real) if real in range(1, 9) else 0
    return value if 1 <= value <= 8 else 1


def turn_upright(rgb: Rgb, orientation: int) -> Rgb:
    """``rgb`` [H, W, 3] turned so that row 0 and column 0 lie where ``orientation`` says."""
    if orientation >= 5:
        rgb = rgb.transpose(1, 0, 2)  # [W, H, 3]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    return np.ascontiguousarray(rgb)


def png_exif(chunks: Iterator[tuple[bytes, bytes]]) -> bytes:
    """The EXIF block among a PNG's (kind, content): its own chunk, or the text that older tools write. Empty if none."""
    for kind, content in chunks:
        if kind == b"eXIf":
            return content
        if kind in (b"zTXt", b"tEXt") and content.startswith(_RAW_PROFILES):
            text = content.partition(b"\0")[2]
            with suppress(zlib.error, ValueError):
                if kind == b"zTXt":
                    text = zlib.decompressobj().decompress(text[1:], _ICC_BYTES_MOST)
                lines = text.split(b"\n")  # an empty line, the name, the length, then the digits
                return bytes.fromhex(b"".join(lines[3:]).decode("ascii", "strict"))
    return b""


def riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of each chunk of a WebP file."""
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack("<4sI", data[position : position + 8])
        yield kind, data[position + 8 : position + 8 + length]
        position += 8 + length + (length & 1)


def to_srgb(rgb: Rgb, profile: bytes, note: Callable[[str], None] | None) -> Rgb:
    """``rgb`` [H, W, 3] in sRGB, by the ICC ``profile`` of its file; as it is where that says sRGB or cannot be used.

    ``note`` is called with what was done, so that colours that differ from a viewer's have an explanation.
    """
    name, transform = _transform(profile)
    if transform is None:
        if name and note is not None:
            note(f"ICC profile {name}: the colours are taken as they are stored")
        return rgb
    if note is not None:
        note(f"ICC profile {name!r}: colours are converted to sRGB")
    grey = getattr(transform, "input_mode", "RGB") == "L"
    image = Image.fromarray(np.ascontiguousarray(rgb[..., 0]) if grey else rgb)
    return np.asarray(ImageCms.applyTransform(image, transform), np.uint8)


@lru_cache(maxsize=16)
def _transform(profile: bytes) -> tuple[str, Any]:
    """(name, transform); no transform where none is needed (no name) or none is possible (the name says why)."""
    try:
        opened = ImageCms.ImageCmsProfile(BytesIO(profile))
        name = (ImageCms.getProfileDescription(opened) or "without a name").strip()
        space = str(opened.profile.xcolor_space).strip()
        if "srgb" in name.lower().replace(" ", ""):
            return "", None
        mode = {"RGB": "RGB", "GRAY": "L"}.get(space)
        if mode is None:
            return f"{name!r} is for {space} samples", None
        transform = ImageCms.buildTransform(
            opened, _srgb(), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        )
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        return f"cannot be used ({str(error).strip()})", None
    return name, transform


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
