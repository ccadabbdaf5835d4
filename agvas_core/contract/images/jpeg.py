"""JPEG by libjpeg-turbo, strict: what it would only warn of is an error, because it then makes up pixels.

The one module that imports simplejpeg. What libjpeg accepts in silence is looked for here: progressive files that end before their
last scan, and pictures that are shifted from one block on (``shifted``).
"""

import re
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_core.contract.images.shifted import shifted_from

__all__ = ["JpegParts", "decode_jpeg", "decode_segment", "jpeg_parts"]

# A marker in entropy-coded data: FF and anything but a stuffed zero, a restart or a fill byte.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)
_NEXT = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
STRAY_BYTES_MOST = 64
"""Bytes between two segments that are passed over: some cameras pad there. More is a hole."""
_REMEDY = "it was damaged or cut short; copy or record it again"
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_PROGRESSIVE = 0xC2


class JpegParts(NamedTuple):
    """What stands before and beside the pixels of a JPEG."""

    data: bytes
    """The file without stray bytes between its segments and without what follows its end."""
    channels: int
    unit: tuple[int, int]
    """(height, width) in px of what is coded together."""
    exif: bytes
    """Without its ``Exif`` mark; empty if none."""
    icc: bytes
    """The colour profile; empty if none."""


def jpeg_parts(data: bytes) -> JpegParts:
    """Walks the segments of a JPEG. Raises ImageError where it has no end, or a progressive one lacks scans."""
    kept: list[bytes] = []
    start = 0  # of what is not kept yet
    position, stray = 2, 0
    channels, exif, unit = 0, b"", (8, 8)
    profile: dict[int, bytes] = {}
    left: dict[tuple[int, int], int] | None = None
    while True:
        if position + 2 > len(data):
            raise ImageError(f"JPEG ends after {len(data)} bytes without its end marker (FF D9): {_REMEDY}")
        if data[position] != 0xFF:
            match = _NEXT.search(data, position)
            skipped = (match.start() if match else len(data)) - position
            stray += skipped
            if match is None or stray > STRAY_BYTES_MOST:
                raise ImageError(f"JPEG has no marker at byte {position}, nor in {STRAY_BYTES_MOST} bytes after it: {_REMEDY}")
            kept.append(data[start:position])
            start = position = match.start()
            continue
        code = data[position + 1]
        if code == 0xFF:
            position += 1
            continue
        if code == 0xD9:
            break
        if code == 0x01 or 0xD0 <= code <= 0xD8:
            position += 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        content = data[position + 4 : position + 2 + length]
        position += 2 + length
        if code in _FRAMES and len(content) > 5:
            channels = content[5]
            factors = content[7 : 6 + 3 * channels : 3]
            unit = (
                8 * max([factor & 15 for factor in factors], default=1),
                8 * max([factor >> 4 for factor in factors], default=1),
            )
            if code == _PROGRESSIVE:
                left = {
                    (content[at], band): 15 for at in range(6, 6 + 3 * channels, 3) if at < len(content) for band in range(64)
                }
        elif code == 0xE1 and content[:4] == b"Exif" and not exif:
            exif = content
        elif code == 0xE2 and content.startswith(b"ICC_PROFILE\0") and len(content) > 14:
            profile[content[12]] = content[14:]
        elif code == 0xDA:
            if left is not None:
                _scan_seen(content, left)
            match = _MARKER.search(data, position)
            if match is None:
                raise ImageError(f"JPEG ends after {len(data)} bytes without its end marker (FF D9): {_REMEDY}")
            position = match.start()
    if left is not None and any(left.values()):
        missing = sum(value > 0 for value in left.values())
        raise ImageError(f"JPEG is progressive and lacks scans ({missing} of {len(left)} coefficients are coarse): {_REMEDY}")
    kept.append(data[start : position + 2])
    icc = b"".join(profile[number] for number in sorted(profile))
    return JpegParts(kept[0] if len(kept) == 1 else b"".join(kept), channels, unit, exif, icc)


def _scan_seen(content: bytes, left: dict[tuple[int, int], int]) -> None:
    """Notes how many low bits of each coefficient are still to come after the scan with this header."""
    count = content[0] if content else 0
    if len(content) < 4 + 2 * count:
        return
    first, last, low = content[1 + 2 * count], content[2 + 2 * count], content[3 + 2 * count] & 15
    for at in range(1, 1 + 2 * count, 2):
        for band in range(first, min(last, 63) + 1):
            left[content[at], band] = low


def decode_jpeg(parts: JpegParts) -> NDArray[np.uint8] | None:
    """Grey uint8 [H, W] or RGB [H, W, 3]; None for CMYK, which is whole but is not for simplejpeg to convert.

    Raises:
        ImageError: libjpeg finds anything wrong with the data.
    """
    space = {1: "GRAY", 3: "RGB", 4: "CMYK"}.get(parts.channels)
    if space is None:
        raise ImageError(f"JPEG has {parts.channels} colour channels; 1, 3 and 4 are read: save it as PNG")
    try:
        pixels = decode_segment(parts.data, space)
    except ImageError:
        padded = parts.data[:-2].rstrip(b"\0")
        if len(padded) == len(parts.data) - 2:
            raise
        # Zeros before the end marker: padding of some cameras. Pixels cannot be among them, or too few would be left.
        pixels = decode_segment(padded + b"\xff\xd9", space)
    if space != "CMYK" and (start := shifted_from(pixels, parts.unit)) is not None:
        raise ImageError(
            f"JPEG is brighter, darker or of another colour from row {start[0]}, column {start[1]} on, as after a changed byte: {_REMEDY}"
            ", or save it as PNG where it is right"
        )
    if space == "GRAY":
        return pixels[..., 0]
    return None if space == "CMYK" else pixels


def decode_segment(data: bytes, space: str) -> NDArray[np.uint8]:
    """uint8 [H, W, channels of ``space``] of a whole JPEG stream. Raises ImageError as :func:`decode_jpeg`."""
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, space, strict=True), np.uint8)
    except (ValueError, MemoryError) as error:
        raise ImageError(f"JPEG cannot be decoded ({str(error).strip()}): {_REMEDY}") from error
