"""PNG for OpenCV: checksums first, and only the chunks that make the pixels.

OpenCV refuses a PNG that lacks rows, but not one whose bytes were changed, so every checksum is looked at here. Chunks that say
something beside the pixels are not passed on: a broken one would make libpng, which OpenCV brings, write to stderr.
"""

import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError

__all__ = ["PngParts", "decode_png", "palette_indices", "png_parts"]

Decode = Callable[[bytes], NDArray[np.generic]]
"""The bytes of a PNG to its pixels, channels in the order RGB; raises ImageError where rows are missing."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PROFILE_BYTES_MOST = 16 << 20
_CUT_SHORT = "it is cut short; copy or record it again"
_DAMAGED = "the file was damaged; copy it again"


class PngParts(NamedTuple):
    """A PNG taken apart; its checksums are right."""

    header: bytes
    """Content of IHDR, whose values are possible."""
    kept: dict[bytes, bytes]
    """PLTE and tRNS, where they are there."""
    stream: list[memoryview]
    """The chunks IDAT, whole."""
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
    stream: list[memoryview] = []
    others: list[tuple[bytes, bytes]] = []
    view = memoryview(data)
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
            stream.append(view[position : end + 4])
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


def decode_png(parts: PngParts, by_opencv: Decode) -> NDArray[np.generic]:
    """[H, W] or [H, W, C], C = 3, 4: RGB, RGBA; uint8 or uint16. Grey with alpha comes as RGBA.

    Raises:
        ImageError: pixels are missing or the stream is broken.
    """
    chunks = []
    clear = parts.kept.get(b"tRNS", b"")
    if parts.colour == 3:
        chunks.append((b"PLTE", _palette(parts.kept)))
    if (parts.colour == 2 and len(clear) == 6) or (parts.colour == 3 and 0 < len(clear) <= 256):
        chunks.append((b"tRNS", clear))
    return _white_out(by_opencv(_written(parts.header, chunks, parts.stream)), parts.white)


def palette_indices(parts: PngParts, by_opencv: Decode) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(indices [H, W], colours [N, 3]) of a PNG with a palette. Raises ImageError as :func:`decode_png`."""
    colours = np.frombuffer(_palette(parts.kept), np.uint8).reshape(-1, 3)
    # Indices are stored as grey values are. As grey they come scaled to 255.
    grey = parts.header[:9] + bytes([0]) + parts.header[10:]
    step = 255 // ((1 << parts.depth) - 1)
    return np.asarray(by_opencv(_written(grey, [], parts.stream)) // step, np.uint8), colours


def _white_out(pixels: NDArray[np.generic], white: int | None) -> NDArray[np.generic]:
    """Grey ``pixels`` [H, W] with the transparent value ``white`` laid over white."""
    if white is None or pixels.ndim != 2:
        return pixels
    full = np.iinfo(pixels.dtype).max  # type: ignore[type-var]
    return np.where(pixels == white, pixels.dtype.type(full), pixels)


def _palette(found: dict[bytes, bytes]) -> bytes:
    palette = found.get(b"PLTE", b"")
    if not palette or len(palette) % 3 or len(palette) > 768:
        raise ImageError(f"PNG has a palette of {len(palette)} bytes; 3 a colour for 1 to 256 are needed: {_DAMAGED}")
    return palette


def _written(header: bytes, chunks: list[tuple[bytes, bytes]], stream: list[memoryview]) -> bytes:
    before = b"".join(_chunk(kind, content) for kind, content in [(b"IHDR", header), *chunks])
    return b"".join([_SIGNATURE, before, *stream, _chunk(b"IEND", b"")])


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
