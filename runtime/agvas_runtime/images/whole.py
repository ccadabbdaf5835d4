"""Is the file all there? And which way up is it?

Decoders fill what is missing with grey and say so on stderr at most. A part half of which was never seen must not get a verdict,
so completeness is checked on the bytes: PNG by its checksums, JPEG by its markers, WebP by its length. The other formats are left
to OpenCV, which refuses them when they are cut short (tested for each).
"""

import re
import struct
import zlib
from collections.abc import Iterator

from agvas_core.contract.errors import ImageError

__all__ = ["check_whole", "exif_orientation", "jpeg_end"]

# A marker in entropy-coded data: FF and anything but a stuffed zero, a restart or a fill byte.
JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)
CUT_SHORT = "it is cut short; copy or record it again"


def check_whole(data: bytes, kind: str) -> None:
    """Raises ImageError where the bytes of a ``png``, ``jpeg`` or ``webp`` file end early or, for PNG, were changed."""
    if kind == "png":
        _check_png(data)
    elif kind == "jpeg":
        jpeg_end(data)
    elif kind == "webp":
        needed = struct.unpack("<I", data[4:8])[0] + 8
        if len(data) < needed:
            raise ImageError(f"WebP has {len(data)} of {needed} bytes: {CUT_SHORT}")


def jpeg_end(data: bytes) -> int:
    """Position of the end-of-image marker of the first picture in ``data``. Raises ImageError where there is none.

    A thumbnail in the EXIF block has its own marker, so segments are walked by length and only pixel data is searched.
    """
    for code, start, _ in _jpeg_segments(data):
        if code == 0xD9:
            return start
    raise ImageError(f"JPEG ends after {len(data)} bytes without its end marker (FF D9): {CUT_SHORT}")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(marker code, position, content) of each segment; stops where the data do."""
    position = 2
    while position + 2 <= len(data):
        if data[position] != 0xFF:
            raise ImageError(f"JPEG has no marker at byte {position}: the file is broken")
        code = data[position + 1]
        if code == 0xFF:
            position += 1
            continue
        length = 0 if code in (0x01, *range(0xD0, 0xDA)) else int.from_bytes(data[position + 2 : position + 4], "big")
        yield code, position, data[position + 4 : position + 2 + length] if code != 0xDA else b""
        if code == 0xD9:
            return
        position += 2 + length
        if code == 0xDA:
            match = JPEG_MARKER.search(data, position)
            if match is None:
                return
            position = match.start()


def _check_png(data: bytes) -> None:
    for kind, content, stored in _png_chunks(data):
        if len(stored) < 4:
            raise ImageError(f"PNG ends after {len(data)} bytes inside {kind.decode('latin-1')}: {CUT_SHORT}")
        # Upper case marks a chunk without which the picture cannot be shown.
        if kind[:1].isupper() and zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(stored, "big"):
            raise ImageError(f"PNG has a wrong checksum in {kind.decode('latin-1')}: the file was damaged; copy it again")
        if kind == b"IEND":
            return
    raise ImageError(f"PNG ends after {len(data)} bytes without IEND: {CUT_SHORT}")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(kind, content, stored checksum)."""
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        end = position + 8 + length
        yield kind, data[position + 8 : end], data[end : end + 4]
        position = end + 4


def exif_orientation(data: bytes, kind: str) -> int:
    """EXIF orientation 1 to 8 of a whole file; 1 (upright) where there is none.

    TIFF is always 1: OpenCV turns it while decoding, whatever the flags.
    """
    block = b""
    if kind == "jpeg":
        block = next((content for code, _, content in _jpeg_segments(data) if code == 0xE1 and content[:4] == b"Exif"), b"")
    elif kind == "png":
        block = next((content for name, content, _ in _png_chunks(data) if name == b"eXIf"), b"")
    elif kind == "webp":
        block = next((content for name, content in _riff_chunks(data) if name == b"EXIF"), b"")
    block = block.removeprefix(b"Exif\0\0")
    try:
        return _orientation_tag(block)
    except struct.error:  # a broken EXIF block does not make the picture unusable
        return 1


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack("<4sI", data[position : position + 8])
        yield kind, data[position + 8 : position + 8 + length]
        position += 8 + length + (length & 1)


def _orientation_tag(block: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    (offset,) = struct.unpack(order + "I", block[4:8])
    (entries,) = struct.unpack(order + "H", block[offset : offset + 2])
    for at in range(offset + 2, offset + 2 + 12 * entries, 12):
        tag, _, _, value = struct.unpack(order + "HHIH", block[at : at + 10])
        if tag == 274:
            return value if 1 <= value <= 8 else 1
    return 1
