"""PNG for OpenCV, checked to the last byte.

libpng, which OpenCV brings, writes its complaints to stderr and cannot be told not to. So it gets nothing to complain of: the pixel
stream is inflated here, which also shows whether every row is there, and what OpenCV decodes is the same picture, stored, with the
few chunks it needs. (Pillow's own decoder is silent, and gives black for rows that a stream lacks.)
"""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_core.contract.images.rare import open_by_pillow

__all__ = ["PngParts", "decode_png", "palette_indices", "png_parts"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_FILTERS = 4  # the last one that there is
_STORED_BYTES = 65_535
_PROFILE_BYTES_MOST = 16 << 20
_CUT_SHORT = "it is cut short; copy or record it again"
_DAMAGED = "the file was damaged; copy it again"


class PngParts(NamedTuple):
    """A PNG taken apart; its checksums are right."""

    header: bytes
    """Content of IHDR, whose values are possible."""
    kept: dict[bytes, bytes]
    """PLTE and tRNS, where they are there."""
    stream: list[bytes]
    """The pixels, compressed."""
    others: tuple[tuple[bytes, bytes], ...]
    """(kind, content) of the other chunks."""

    @property
    def depth(self) -> int:
        """Bits of a sample."""
        return self.header[8]

    @property
    def colour(self) -> int:
        """0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGBA."""
        return self.header[9]

    @property
    def white(self) -> int | None:
        """The grey value that is transparent, as it is decoded; None where there is none."""
        clear = self.kept.get(b"tRNS", b"")
        if self.colour != 0 or len(clear) != 2:
            return None
        full = (1 << self.depth) - 1
        value = int.from_bytes(clear, "big") & full
        return value * 255 // full if self.depth < 8 else value

    @property
    def icc(self) -> bytes:
        """The colour profile; empty where there is none, or a broken one."""
        content = next((content for kind, content in self.others if kind == b"iCCP"), b"")
        try:
            return zlib.decompressobj().decompress(content.partition(b"\0")[2][1:], _PROFILE_BYTES_MOST)
        except zlib.error:
            return b""


def png_parts(data: bytes) -> PngParts:
    """Takes the bytes of a PNG apart. Raises ImageError where any byte that matters is missing or was changed."""
    kept: dict[bytes, bytes] = {}
    stream: list[bytes] = []
    others: list[tuple[bytes, bytes]] = []
    position = len(_SIGNATURE)
    while True:
        if position + 8 > len(data):
            raise ImageError(f"PNG ends after {len(data)} bytes without IEND: {_CUT_SHORT}")
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        end = position + 8 + length
        content, stored = data[position + 8 : end], data[end : end + 4]
        name = kind.decode("latin-1")
        if len(stored) < 4:
            raise ImageError(f"PNG ends after {len(data)} bytes inside {name}: {_CUT_SHORT}")
        whole = zlib.crc32(content, zlib.crc32(kind)) == int.from_bytes(stored, "big")
        # Upper case marks a chunk without which the picture cannot be shown; tRNS changes what is shown.
        if not whole and (kind[:1].isupper() or kind == b"tRNS"):
            raise ImageError(f"PNG has a wrong checksum in {name}: {_DAMAGED}")
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            stream.append(content)
        elif kind in (b"IHDR", b"PLTE", b"tRNS"):
            kept.setdefault(kind, content)
        elif whole:
            others.append((kind, content))
        position = end + 4
    header = kept.pop(b"IHDR", b"")
    if len(header) != 13:
        raise ImageError(f"PNG has an IHDR of {len(header)} bytes; it has 13: {_DAMAGED}")
    depth, colour, method, filtering, interlace = header[8:]
    if depth not in _DEPTHS.get(colour, ()) or method or filtering or interlace > 1:
        raise ImageError(f"PNG has colour type {colour} with {depth} bits, which is not possible: {_DAMAGED}")
    return PngParts(header, kept, stream, tuple(others))


def decode_png(parts: PngParts, by_opencv: Callable[[bytes], NDArray[np.generic]]) -> NDArray[np.generic]:
    """[H, W] or [H, W, C], C = 3, 4: RGB, RGBA; uint8 or uint16. Grey with alpha comes as RGBA.

    Args:
        by_opencv: decodes a PNG, its channels in this order.

    Raises:
        ImageError: pixels are missing or the stream is broken.
    """
    chunks = [(b"IHDR", parts.header)]
    clear = parts.kept.get(b"tRNS", b"")
    if parts.colour == 3:
        chunks.append((b"PLTE", _palette(parts.kept)))
    if (parts.colour == 2 and len(clear) == 6) or (parts.colour == 3 and 0 < len(clear) <= 256):
        chunks.append((b"tRNS", clear))
    chunks += [(b"IDAT", _store(_inflated(parts))), (b"IEND", b"")]
    return _white_out(by_opencv(_written(chunks)), parts.white)


def palette_indices(parts: PngParts) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(indices [H, W], colours [N, 3]) of a PNG with a palette. Raises ImageError as :func:`decode_png`."""
    palette = _palette(parts.kept)
    chunks = [(b"IHDR", parts.header), (b"PLTE", palette), (b"IDAT", _store(_inflated(parts))), (b"IEND", b"")]
    return _by_pillow(_written(chunks)), np.frombuffer(palette, np.uint8).reshape(-1, 3)


def _by_pillow(data: bytes) -> NDArray[np.uint8]:
    image = open_by_pillow(BytesIO(data), "png")
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"PNG cannot be decoded ({error}): {_CUT_SHORT}") from error
    return np.array(image)


def _white_out(pixels: NDArray[np.generic], white: int | None) -> NDArray[np.generic]:
    """Grey ``pixels`` [H, W] with the transparent value ``white`` laid over white."""
    if white is None or pixels.ndim != 2:
        return pixels
    full = np.iinfo(pixels.dtype).max  # type: ignore[type-var]
    return np.where(pixels == white, pixels.dtype.type(full), pixels)


def _inflated(parts: PngParts) -> bytes:
    """The filtered rows, as many as the header says."""
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", parts.header)
    bits = depth * _SAMPLES[colour]
    sizes = [(width, height)]
    if interlace:
        sizes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in _PASSES]
    sizes = [(1 + (columns * bits + 7) // 8, rows) for columns, rows in sizes if columns > 0 and rows > 0]
    needed = sum(stride * rows for stride, rows in sizes)
    inflate = zlib.decompressobj()
    try:
        pixels = inflate.decompress(b"".join(parts.stream), needed + 1)
        # The checksum at the end of the stream is looked at only where the end is asked for.
        if len(pixels) == needed and not inflate.eof:
            pixels += inflate.decompress(inflate.unconsumed_tail, 1)
    except zlib.error as error:
        raise ImageError(f"PNG cannot be decoded ({error}): {_DAMAGED}") from error
    if len(pixels) < needed:
        raise ImageError(f"PNG has {len(pixels)} of {needed} bytes of pixels: {_CUT_SHORT}")
    at = 0
    for stride, rows in sizes:
        filters = np.frombuffer(pixels, np.uint8, stride * rows, at)[::stride]
        if filters.max() > _FILTERS:
            raise ImageError(f"PNG has the filter {filters.max()}; {_FILTERS} is the last: {_DAMAGED}")
        at += stride * rows
    return pixels[:needed]


def _palette(found: dict[bytes, bytes]) -> bytes:
    palette = found.get(b"PLTE", b"")
    if not palette or len(palette) % 3 or len(palette) > 768:
        raise ImageError(f"PNG has a palette of {len(palette)} bytes; 3 a colour for 1 to 256 are needed: {_DAMAGED}")
    return palette


def _store(pixels: bytes) -> bytes:
    """A zlib stream that holds ``pixels`` as they are."""
    parts = [b"\x78\x01"]
    for start in range(0, len(pixels), _STORED_BYTES):
        block = pixels[start : start + _STORED_BYTES]
        last = start + _STORED_BYTES >= len(pixels)
        parts += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    parts.append(struct.pack(">I", zlib.adler32(pixels)))
    return b"".join(parts)


def _written(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return _SIGNATURE + b"".join(
        piece
        for kind, content in chunks
        for piece in (
            struct.pack(">I", len(content)) + kind,
            content,
            struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))),
        )
    )
