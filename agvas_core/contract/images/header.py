"""Format and size of an image file, read from its first bytes without decoding a pixel.

OpenCV learns the size only while it allocates; a cap that is to hold before that has to read the header itself. Layouts follow
PNG (W3C, 11.2.2), JPEG (ITU T.81, B.2.2), BMP (BITMAPINFOHEADER), TIFF 6.0 and BigTIFF, WebP (RFC 9649), Netpbm (pnm, pam, pfm).
"""

import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

from agvas_core.contract.errors import ImageError
from agvas_core.contract.images.rare import pillow_size, unread_format
from agvas_core.contract.images.tiff import tiff_size

__all__ = ["IMAGE_FORMATS", "IMAGE_SUFFIXES", "ImageHeader", "read_header"]

IMAGE_FORMATS = "PNG, JPEG, BMP, TIFF, WebP, PNM, PAM, PFM, GIF, JPEG 2000, AVIF"
# What counts as an image in a folder; a file named by the user is tried whatever its suffix.
IMAGE_SUFFIXES = frozenset(
    (
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".webp",
        ".pgm",
        ".ppm",
        ".pbm",
        ".pnm",
        ".pam",
        ".pfm",
        ".gif",
        ".jp2",
        ".j2k",
        ".j2c",
        ".jpc",
        ".jpf",
        ".jpx",
        ".avif",
    )
)

PNM_HEADER_BYTES = 4096  # comments may precede the size; no camera writes more than a line or two
STRAY_BYTES_MOST = 64  # between the segments of a JPEG; see jpeg
JPEG_MARKERS_MOST = 1 << 16  # fill bytes count too; a file of nothing else would keep us busy for minutes


@dataclass(frozen=True)
class ImageHeader:
    """What the file's header says, before any rotation."""

    format: str
    """``png``, ``jpeg``, ``bmp``, ``tiff``, ``webp``, ``pnm``, ``pam``, ``pfm``, ``gif``, ``jp2`` or ``avif``."""
    width: int
    height: int
    sample_max: int | None = None
    """Full scale of a sample that OpenCV leaves unscaled (binary PNM with its own maximum); None: that of the data type."""
    pages: int = 1
    """Pictures in a TIFF, thumbnails and masks not counted."""


def read_header(file: BinaryIO) -> ImageHeader:
    """Header of an open, seekable ``file``. Raises ImageError where the file is none of IMAGE_FORMATS or ends too early."""
    start = file.read(34)
    if not start:
        raise ImageError("file is empty (0 bytes): it was not written completely; copy or record it again")
    try:
        header = _dispatch(file, start)
    except (struct.error, IndexError) as error:
        raise ImageError(f"file ends inside its header, after {file.tell()} bytes: it is cut short; copy it again") from error
    if header.width < 1 or header.height < 1:
        raise ImageError(f"header says {header.width}x{header.height} px; at least 1x1 is needed: the file is broken")
    return header


def _dispatch(file: BinaryIO, start: bytes) -> ImageHeader:
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack(">II", start[16:24])
        return ImageHeader("png", width, height)
    if start.startswith(b"\xff\xd8\xff"):
        return _jpeg(file)
    if start.startswith(b"BM"):
        return _bmp(start)
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(file)
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return _by_pillow(file, "gif")
    if start.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return _by_pillow(file, "jp2")
    if start[4:8] == b"ftyp":
        brands = {start[at : at + 4] for at in (8, *range(16, 32, 4))}
        if brands & {b"avif", b"avis"}:
            return _by_pillow(file, "avif")
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return _webp(start)
    if re.match(rb"P[1-7Ff]\s", start):
        file.seek(0)
        return _netpbm(file.read(PNM_HEADER_BYTES))
    if (known := unread_format(start)) is not None:
        raise ImageError(f"is {known}, which is not read; read are {IMAGE_FORMATS}: convert it to one of these")
    raise ImageError(f"file starts with {start[:8]!r}; read are {IMAGE_FORMATS}: convert it to one of these")


def _jpeg(file: BinaryIO) -> ImageHeader:
    position, stray = 2, 0
    for _ in range(JPEG_MARKERS_MOST):
        file.seek(position)
        marker, length = struct.unpack(">HH", file.read(4))
        code = marker & 0xFF
        if marker < 0xFF00:
            stray, position = stray + 1, position + 1
            if stray > STRAY_BYTES_MOST:
                raise ImageError(f"JPEG has no marker at byte {position - stray}: the file is broken")
            continue
        if code == 0xFF:  # fill byte
            position += 1
        elif code == 0x01 or 0xD0 <= code <= 0xD8:  # markers without a length
            position += 2
        elif 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):  # a frame header
            height, width = struct.unpack(">xHH", file.read(5))
            return ImageHeader("jpeg", width, height)
        elif code in (0xD9, 0xDA):
            raise ImageError("JPEG has no frame header before its pixels: the file is broken")
        else:
            position += 2 + length
    raise ImageError(f"JPEG has no frame header within its first {JPEG_MARKERS_MOST} markers: the file is broken")


def _bmp(start: bytes) -> ImageHeader:
    (info_bytes,) = struct.unpack("<I", start[14:18])
    if info_bytes == 12:  # OS/2 1.x
        width, height = struct.unpack("<HH", start[18:22])
    else:
        width, height = struct.unpack("<ii", start[18:26])
        if struct.unpack("<I", start[30:34])[0] in (1, 2):
            raise ImageError("BMP is run-length encoded, which may end early without telling: save it as PNG")
    return ImageHeader("bmp", width, abs(height))  # a negative height only says that rows run down


def _tiff(file: BinaryIO) -> ImageHeader:
    file.seek(0)
    width, height, pages = tiff_size(file)
    return ImageHeader("tiff", width, height, pages=pages)


def _by_pillow(file: BinaryIO, kind: str) -> ImageHeader:
    file.seek(0)
    width, height = pillow_size(file, kind)
    return ImageHeader(kind, width, height)


def _webp(start: bytes) -> ImageHeader:
    kind = start[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", start[26:30])
        return ImageHeader("webp", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", start[21:25])
        return ImageHeader("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8X":
        width, height = (int.from_bytes(start[at : at + 3], "little") for at in (24, 27))
        if len(start) < 30:
            raise IndexError
        return ImageHeader("webp", width + 1, height + 1)
    raise ImageError(f"WebP starts with the chunk {kind!r}; VP8, VP8L or VP8X was expected: the file is broken")


def _netpbm(start: bytes) -> ImageHeader:
    kind = start[:2]
    if kind == b"P7":
        head = start.partition(b"ENDHDR")[0]
        fields = dict(re.findall(rb"^(WIDTH|HEIGHT|MAXVAL)\s+(\d{1,9})\s*$", head, re.MULTILINE))
        if len(fields) < 3:
            raise ImageError("PAM header lacks WIDTH, HEIGHT or MAXVAL: the file is broken")
        return ImageHeader("pam", int(fields[b"WIDTH"]), int(fields[b"HEIGHT"]), _unscaled(int(fields[b"MAXVAL"])))
    wanted = 2 if kind in (b"P1", b"P4", b"PF", b"Pf") else 3
    gap = rb"(?:\s|#[^\n]*\n)+"
    match = re.match(kind + (gap + rb"(\d{1,9})") * wanted + rb"[\s#]", start)
    if match is None:
        raise ImageError(f"{kind.decode()} header gives no {wanted} whole numbers (width, height, ...): the file is broken")
    numbers = [int(number) for number in match.groups()]
    if kind in (b"PF", b"Pf"):
        return ImageHeader("pfm", numbers[0], numbers[1])
    # OpenCV stretches plain-text samples of up to 8 bits to 0..255 and leaves all others as they are.
    declared = _unscaled(numbers[2]) if wanted == 3 and not (kind in (b"P2", b"P3") and numbers[2] < 256) else None
    return ImageHeader("pnm", numbers[0], numbers[1], declared)


def _unscaled(maximum: int) -> int | None:
    if not 1 <= maximum <= 65535:
        raise ImageError(f"Netpbm maximum is {maximum}; 1 to 65535 is allowed: the file is broken")
    return None if maximum in (255, 65535) else maximum
