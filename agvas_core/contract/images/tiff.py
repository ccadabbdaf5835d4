"""TIFF: directories and codecs by tifffile, and what the samples mean by the tags of TIFF 6.0.

The one module that imports tifffile. Compressions that need imagecodecs (the extra ``images``) are named where it is missing; LZW,
which most programs write, goes through OpenCV, so that the base install reads it. Each strip and tile has to have all its bytes:
the picture is never larger than what was written into it.
"""

import logging
import math
import re
import struct
import threading
from collections.abc import Callable
from io import BytesIO
from typing import Any, BinaryIO, Final, NamedTuple

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_core.contract.images.jpeg import decode_segment

__all__ = ["TiffPicture", "decode_tiff", "tiff_pages", "tiff_size"]


class _Complaints(logging.Handler):
    """What tifffile logs and then leaves out, such as a tag that is broken; kept by thread, and off stderr."""

    def __init__(self) -> None:
        super().__init__()
        self.of_thread = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        self.of_thread.said = [*getattr(self.of_thread, "said", []), record.getMessage()]


_complaints = _Complaints()
logging.getLogger("tifffile").addHandler(_complaints)
logging.getLogger("tifffile").propagate = False
_BROKEN_TAG: Final = re.compile(r"TiffTag (\d+)")
_NEEDED_TAGS: Final = frozenset(
    (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347)
)
"""Without one of these a picture would be read as something that it is not."""
_SINGLE: Final = (
    "imagewidth", "imagelength", "samplesperpixel", "compression", "photometric", "planarconfig", "rowsperstrip", "tilewidth",
    "tilelength", "predictor", "fillorder", "subfiletype",
)  # fmt: skip

PAGES_MOST: Final = 10_000
_SIDE_MOST: Final = 1 << 20
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_COLOURS: Final = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _YCBCR: 3}
_NONE, _LZW, _JPEG = 1, 5, 7
_FAX = (2, 3, 4)
_TILE_TAG, _JPEG_TABLES_TAG, _ICC_TAG, _ORIENTATION_TAG = 322, 347, 34675, 274
_FORMATS: Final = {1: "u", 2: "i", 3: "f"}
_ASSOCIATED, _STRAIGHT = 1, 2
_REMEDY = "it is cut short or broken; copy or record it again"


class TiffPicture(NamedTuple):
    """One page, decoded."""

    pixels: NDArray[np.generic]
    """[H, W] or [H, W, C], C = 2, 3, 4: grey + alpha, RGB, RGBA; black is zero."""
    sample_max: int | None
    """Full scale of a sample where it is not that of the data type."""
    premultiplied: bool
    """Colours were stored multiplied by alpha."""
    orientation: int
    icc: bytes


def tiff_size(file: BinaryIO) -> tuple[int, int, int]:
    """(width, height, pages) of an open file: size of the largest page. Raises ImageError where it is broken."""
    pages = _open(file)
    return max(page.imagewidth for page in pages), max(page.imagelength for page in pages), len(pages)


def tiff_pages(data: bytes) -> int:
    """How many pictures the file holds. Raises ImageError where it is broken."""
    return len(_open(BytesIO(data)))


def _open(file: BinaryIO) -> list[Any]:
    """Pages that are pictures: no thumbnails, no masks of other pages."""
    pages: list[Any] = []
    _complaints.of_thread.said = []
    try:
        with tifffile.TiffFile(file) as tiff:
            for number, page in enumerate(tiff.pages):
                if number == PAGES_MOST:
                    raise ImageError(f"TIFF has more than {PAGES_MOST} pages: split it")
                page = page.aspage()
                page.tags.valueof(_ICC_TAG)  # read now: the file is closed later
                pages.append(page)
    except ImageError:
        raise
    except Exception as error:  # tifffile lets what a broken file causes through as it comes, of any type
        raise ImageError(f"TIFF cannot be read ({_said(error)}): {_REMEDY}") from error
    for said in _complaints.of_thread.said:
        if (broken := _BROKEN_TAG.search(said)) and int(broken[1]) in _NEEDED_TAGS:
            raise ImageError(f"TIFF has a broken tag {broken[1]}: {_REMEDY}")
    for page in pages:
        for name in _SINGLE:
            value = getattr(page, name, None)
            if value is not None and not isinstance(value, int):
                raise ImageError(f"TIFF has {value!r} as {name}, which is one whole number: {_REMEDY}")
    pictures = [page for page in pages if not int(page.subfiletype or 0) & 0b101] or pages[:1]
    if not pictures or any(page.imagewidth < 1 or page.imagelength < 1 for page in pictures):
        raise ImageError(f"TIFF gives no width or height: {_REMEDY}")
    return pictures


def decode_tiff(
    data: bytes, page: int, whole_file: Callable[[], NDArray[np.generic]], note: Callable[[str], None] | None
) -> TiffPicture:
    """The picture number ``page`` of the file, from 0.

    Args:
        whole_file: decodes the first page by OpenCV, BGR turned upright, for the few kinds that are left to it.
        note: called with a message for each sample that is skipped.

    Raises:
        ImageError: it is broken, cut short, or of a kind that is not read; the message says which.
    """
    pages = _open(BytesIO(data))
    if page >= len(pages):
        raise ImageError(f"page {page} was asked for and the TIFF has {len(pages)}, counted from 0: name another")
    try:
        return _Page(pages[page], data).picture(page == 0, whole_file, note)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise ImageError(f"TIFF has tags that do not fit each other ({_said(error)}): {_REMEDY}") from error


class _Page:
    def __init__(self, page: Any, data: bytes) -> None:
        self.page, self.data = page, data
        self.width, self.height = int(page.imagewidth), int(page.imagelength)
        self.samples = int(page.samplesperpixel)
        self.compression = int(page.compression)
        self.photometric = int(page.photometric) if page.photometric is not None else _BLACK_IS_ZERO
        depths = page.bitspersample if isinstance(page.bitspersample, tuple) else (page.bitspersample,)
        formats = page.sampleformat if isinstance(page.sampleformat, tuple) else (page.sampleformat,)
        if len(set(depths)) > 1 or len(set(formats)) > 1:
            raise ImageError(f"TIFF has samples of {depths} bits; one depth for all is needed: save it again")
        self.bits, self.kind = int(depths[0]), _FORMATS.get(int(formats[0] or 1), "")
        if not self.kind:
            raise ImageError(f"TIFF has samples of format {int(formats[0])}; whole numbers and floats are read: save it again")
        self.planar = int(page.planarconfig or 1) == 2 and self.samples > 1
        self.tiled = _TILE_TAG in page.tags
        self.order: str = page.parent.byteorder

    def picture(
        self, first: bool, whole_file: Callable[[], NDArray[np.generic]], note: Callable[[str], None] | None
    ) -> TiffPicture:
        icc = self.page.tags.valueof(_ICC_TAG)
        icc = bytes(icc) if isinstance(icc, bytes) else b""
        if self._is_for_opencv():
            if not first:
                raise ImageError(f"TIFF page has {self._named()}, which is read of a first page only: save it as RGB")
            self._segments()  # all there?
            return TiffPicture(whole_file(), None, False, 1, icc)
        colours = _COLOURS.get(self.photometric)
        if colours is None or self.samples < colours:
            raise ImageError(f"TIFF has {self.samples} samples as {self._named()}, which is not read: save it as RGB or grey")
        pixels = self._samples()
        extra = [int(value) for value in self.page.extrasamples]
        pixels, premultiplied = self._without_extra(pixels, colours, extra, note)
        sample_max = None
        if self.kind == "u" and self.bits not in (8, 16, 32, 64):
            sample_max = (1 << self.bits) - 1
        if self.photometric == _PALETTE:
            pixels, sample_max = self._looked_up(pixels), None
        elif self.photometric == _WHITE_IS_ZERO:
            if self.kind != "u":
                raise ImageError("TIFF has white as zero and samples that are no whole numbers: save it with black as zero")
            highest = np.array((1 << self.bits) - 1, pixels.dtype)
            inverted = highest - (pixels if pixels.ndim == 2 else pixels[..., :1])
            pixels = inverted if pixels.ndim == 2 else np.concatenate([inverted, pixels[..., 1:]], axis=2)
        orientation = self.page.tags.valueof(_ORIENTATION_TAG, 1)
        turned = int(orientation) if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
        return TiffPicture(pixels, sample_max, premultiplied, turned, icc)

    def _named(self) -> str:
        return str(getattr(self.page.photometric, "name", self.photometric)).lower().replace("minis", "min is ")

    def _is_for_opencv(self) -> bool:
        """Fax compressions, and colours that libtiff converts: YCbCr that is not JPEG, CMYK."""
        if self.planar or self.kind != "u":
            return False
        if self.compression in _FAX:
            return self.bits == 1 and self.samples == 1
        return self.bits == 8 and (
            (self.photometric == _YCBCR and self.compression != _JPEG) or (self.photometric == 5 and self.samples == 4)
        )

    def _segments(self) -> list[memoryview]:
        """The stored bytes of each strip or tile."""
        offsets, counts = self.page.dataoffsets, self.page.databytecounts
        across, down = self._grid()
        needed = across * down * (self.samples if self.planar else 1)
        if len(offsets) < needed or len(counts) < needed:
            raise ImageError(f"TIFF lists {min(len(offsets), len(counts))} of {needed} pieces of its picture: {_REMEDY}")
        view = memoryview(self.data)
        found = []
        for offset, count in zip(offsets[:needed], counts[:needed], strict=True):
            if offset <= 0 or count <= 0 or offset + count > len(self.data):
                raise ImageError(f"TIFF has a piece of {count} bytes at {offset}; the file has {len(self.data)} bytes: {_REMEDY}")
            found.append(view[offset : offset + count])
        return found

    def _shape(self) -> tuple[int, int]:
        """(rows, columns) of a whole strip or tile."""
        if self.tiled:
            return int(self.page.tilelength), int(self.page.tilewidth)
        rows = int(self.page.rowsperstrip or self.height)
        return min(rows if rows > 0 else self.height, self.height), self.width

    def _grid(self) -> tuple[int, int]:
        rows, columns = self._shape()
        if rows < 1 or columns < 1 or max(rows, columns) > _SIDE_MOST:
            raise ImageError(f"TIFF has tiles of {columns}x{rows} px: {_REMEDY}")
        return math.ceil(self.width / columns), math.ceil(self.height / rows)

    def _samples(self) -> NDArray[np.generic]:
        """[H, W, samples], native byte order."""
        usual = not self.planar and self.kind == "u" and self.bits in (8, 16) and self.samples in (1, 3)
        if self.compression == _LZW and usual:
            return self._lzw_page()
        planes, each = (self.samples, 1) if self.planar else (1, self.samples)
        rows, columns = self._shape()
        across, down = self._grid()
        dtype = self._dtype()
        out: NDArray[np.generic] = np.zeros((self.height, self.width, self.samples), dtype)
        pieces = iter(self._segments())
        decode = self._decoder()
        for plane in range(planes):
            for top in range(0, down * rows, rows):
                for left in range(0, across * columns, columns):
                    height = rows if self.tiled else min(rows, self.height - top)
                    piece = decode(next(pieces), (height, columns, each))
                    into = out[top : top + height, left : left + columns, plane : plane + each]
                    into[...] = piece[: into.shape[0], : into.shape[1]]
        return out

    def _lzw_page(self) -> NDArray[np.generic]:
        """[H, W, samples] of the usual kinds, all pieces at once: as a plain TIFF for OpenCV, twice as fast as each."""
        rows, columns = self._shape()
        tags = {
            256: self.width,
            257: self.height,
            258: self.bits,
            259: _LZW,
            262: 1 if self.samples == 1 else 2,
            277: self.samples,
        }
        tags |= {284: 1, 317: int(self.page.predictor or 1), 266: int(self.page.fillorder or 1)}
        tags |= {322: columns, 323: rows} if self.tiled else {278: rows}
        pixels = _by_libtiff(tags, self._segments(), self.tiled, self.order)
        if pixels.shape[:2] != (self.height, self.width) or pixels.size != self.width * self.height * self.samples:
            raise ImageError(f"TIFF (LZW) cannot be decoded: {_REMEDY}")
        if self.samples == 1:
            return pixels[..., None]
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))

    def _dtype(self) -> np.dtype[Any]:
        if self.kind == "u" and self.bits not in (32, 64):
            if not 1 <= self.bits <= 16:
                raise ImageError(f"TIFF has samples of {self.bits} bits; 1 to 16 are read, or float: save it again")
            return np.dtype(np.uint8 if self.bits == 8 else np.uint16)
        if self.bits not in ((8, 16, 32, 64) if self.kind != "f" else (16, 32, 64)):
            raise ImageError(f"TIFF has samples of {self.bits} bits ({self.kind}), which are not read: save it as 16 bits")
        return np.dtype(f"{self.kind}{self.bits // 8}")

    def _decoder(self) -> Callable[[memoryview, tuple[int, int, int]], NDArray[np.generic]]:
        if self.compression == _JPEG:
            return self._jpeg
        if self.compression == _NONE:
            return lambda stored, shape: self._unpacked(bytes(stored), shape)
        if self.compression == _LZW:
            return lambda stored, shape: self._unpacked(_lzw(self._in_order(stored), *self._stored_shape(shape)), shape)
        name = str(getattr(self.page.compression, "name", self.compression))
        try:
            decompress = tifffile.TIFF.DECOMPRESSORS[self.compression]
        except (KeyError, AttributeError, ImportError) as error:
            raise _missing(name) from error

        def decode(stored: memoryview, shape: tuple[int, int, int]) -> NDArray[np.generic]:
            try:
                raw = decompress(self._in_order(stored))
            except (ImportError, AttributeError) as error:
                raise _missing(name) from error
            except Exception as error:  # each codec has its own kinds
                if "imagecodecs" in str(error):
                    raise _missing(name) from error
                raise ImageError(f"TIFF ({name}) cannot be decoded ({_said(error)}): {_REMEDY}") from error
            if isinstance(raw, np.ndarray) and raw.ndim > 1:  # a codec of pictures, which gives samples
                return self._of_codec(raw, shape)
            return self._unpacked(bytes(raw), shape)

        return decode

    def _in_order(self, stored: memoryview) -> bytes:
        data = bytes(stored)
        if int(self.page.fillorder or 1) == 2:
            data = data.translate(_REVERSED)
        return data

    def _stored_shape(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """(rows, bytes of a row) of a piece without compression."""
        return shape[0], (shape[1] * shape[2] * self.bits + 7) // 8

    def _unpacked(self, raw: bytes, shape: tuple[int, int, int]) -> NDArray[np.generic]:
        rows, of_row = self._stored_shape(shape)
        if len(raw) < rows * of_row:
            raise ImageError(f"TIFF has {len(raw)} of {rows * of_row} bytes in one of its pieces: {_REMEDY}")
        if self.compression == _NONE:
            raw = self._in_order(memoryview(raw))
        flat = np.frombuffer(raw, np.uint8, rows * of_row).reshape(rows, of_row)
        predictor = int(self.page.predictor or 1)
        if predictor == 3 and self.kind == "f":
            return self._float_predicted(flat, shape)
        if self.bits in (8, 16, 32, 64):
            values = flat.view(np.dtype(f"{self.order}{self.kind}{self.bits // 8}")).reshape(shape)
            values = values.astype(values.dtype.newbyteorder("="), copy=False)
            if predictor == 2 and self.kind != "f":
                return np.cumsum(values, axis=1, dtype=values.dtype)
        else:
            values = _bits_to_numbers(flat, shape, self.bits)
        if predictor != 1:
            raise ImageError(f"TIFF has the predictor {predictor} for {self.bits} bits, which is not read: save it without")
        return values

    def _float_predicted(self, flat: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.generic]:
        """TIFF technical note 3: bytes of a row sorted by significance, differences of neighbouring samples' bytes."""
        rows, columns, each = shape
        size = self.bits // 8
        steps = flat.reshape(rows, -1, each)  # [rows, size * columns, each]
        whole = np.cumsum(steps, axis=1, dtype=np.uint8).reshape(rows, size, columns * each)
        big_endian = np.ascontiguousarray(whole.transpose(0, 2, 1)).view(f">f{size}")
        return big_endian.reshape(shape).astype(f"f{size}")

    def _jpeg(self, stored: memoryview, shape: tuple[int, int, int]) -> NDArray[np.generic]:
        space = {1: "GRAY", 3: "RGB"}.get(shape[2])
        if self.bits != 8 or space is None or (space == "RGB" and self.photometric != _YCBCR):
            return self._jpeg_by_codec(stored, shape)
        data = bytes(stored)
        tables = self.page.tags.valueof(_JPEG_TABLES_TAG)
        if isinstance(tables, bytes) and len(tables) > 4:
            data = data[:2] + tables[2:-2] + data[2:]
        return self._of_codec(decode_segment(data, space), shape)

    def _jpeg_by_codec(self, stored: memoryview, shape: tuple[int, int, int]) -> NDArray[np.generic]:
        try:
            import imagecodecs

            raw = imagecodecs.jpeg_decode(
                bytes(stored),
                bitspersample=self.bits,
                tables=self.page.tags.valueof(_JPEG_TABLES_TAG),
                colorspace=self.photometric,
                outcolorspace=self.photometric,
            )
        except ImportError as error:
            raise _missing(f"JPEG of {self.bits} bits, {self._named()}") from error
        except Exception as error:  # its own kinds
            raise ImageError(f"TIFF (JPEG) cannot be decoded ({_said(error)}): {_REMEDY}") from error
        return self._of_codec(raw, shape)

    def _of_codec(self, pixels: NDArray[np.generic], shape: tuple[int, int, int]) -> NDArray[np.generic]:
        """What a codec of pictures gave, which may be more rows than the last strip needs."""
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        if pixels.shape[0] < shape[0] or pixels.shape[1] != shape[1] or pixels.shape[2] != shape[2]:
            raise ImageError(f"TIFF has a piece of {list(pixels.shape)} samples; it should have {list(shape)}: {_REMEDY}")
        return pixels[: shape[0]]

    def _without_extra(
        self, pixels: NDArray[np.generic], colours: int, extra: list[int], note: Callable[[str], None] | None
    ) -> tuple[NDArray[np.generic], bool]:
        """([H, W] or [H, W, C] with at most one alpha, whether colours are multiplied by it)."""
        more = self.samples - colours
        # No word of a fourth sample beside RGB: alpha, which is what the programs write that leave the word out.
        extra = (extra or ([_STRAIGHT] if (colours, more) == (3, 1) else []))[:more]
        at = next((index for index, meaning in enumerate(extra) if meaning in (_ASSOCIATED, _STRAIGHT)), None)
        passed_over = more - (at is not None)
        if passed_over and note is not None:
            note(f"TIFF has {self.samples} samples a pixel, {passed_over} beyond colour and alpha: not looked at")
        colour = pixels[..., :colours]
        if at is None or self.photometric == _PALETTE:
            return (colour[..., 0] if colours == 1 else colour), False
        alpha = pixels[..., colours + at : colours + at + 1]
        return np.concatenate([colour, alpha], axis=2), extra[at] == _ASSOCIATED

    def _looked_up(self, indices: NDArray[np.generic]) -> NDArray[np.generic]:
        table = self.page.colormap
        if table is None or table.shape[-1] < 1 << self.bits:
            raise ImageError(f"TIFF has a palette of too few colours for {self.bits} bits: {_REMEDY}")
        table = np.asarray(table, np.uint16)  # [3, colours]
        if table.max() < 256:  # written by programs that took the table for bytes
            table = table.astype(np.uint8)
        return np.asarray(np.ascontiguousarray(table.T)[indices])


_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def _bits_to_numbers(flat: NDArray[np.uint8], shape: tuple[int, int, int], bits: int) -> NDArray[np.uint16]:
    """Packed samples, the highest bit first and each row from a whole byte."""
    rows, columns, each = shape
    single = np.unpackbits(flat, axis=1, count=columns * each * bits).reshape(rows, columns, each, bits)
    numbers = np.zeros(shape, np.uint16)
    for bit in range(bits):
        numbers |= single[..., bit].astype(np.uint16) << np.uint16(bits - 1 - bit)
    return numbers


def _lzw(stored: bytes, rows: int, of_row: int) -> bytes:
    """LZW by libtiff, the one that OpenCV brings: the bytes as a grey picture of one strip."""
    if rows * of_row == 0 or of_row > _SIDE_MOST:
        raise ImageError(f"TIFF has rows of {of_row} bytes; {_SIDE_MOST} are the most with LZW: save it in tiles")
    tags = {256: of_row, 257: rows, 258: 8, 259: _LZW, 262: 1, 277: 1, 278: rows}
    pixels = _by_libtiff(tags, [memoryview(stored)], False, "<")
    if pixels.shape != (rows, of_row):
        raise ImageError(f"TIFF (LZW) cannot be decoded: {_REMEDY}")
    return pixels.tobytes()


def _by_libtiff(tags: dict[int, int], pieces: list[memoryview], tiled: bool, order: str) -> NDArray[Any]:
    """Pixels of a TIFF made of ``tags`` and ``pieces``, by the libtiff that OpenCV brings; BGR."""
    offsets, counts = (324, 325) if tiled else (273, 279)
    number = len(pieces)
    after = 8 + 2 + 12 * (len(tags) + 2) + 4
    starts = np.cumsum([after + (8 * number if number > 1 else 0), *map(len, pieces)])
    if starts[-1] >= 1 << 32:
        raise ImageError("TIFF (LZW) of more than 4 GB is not read: split it")
    values = {**{tag: (1, value) for tag, value in tags.items()}}
    values[offsets] = (number, int(starts[0]) if number == 1 else after)
    values[counts] = (number, len(pieces[0]) if number == 1 else after + 4 * number)
    entries = b"".join(struct.pack(order + "HHII", tag, 4, *value) for tag, value in sorted(values.items()))
    lists = b"" if number == 1 else np.array([*starts[:-1], *map(len, pieces)], order + "u4").tobytes()
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(values)) + entries + bytes(4) + lists
    try:
        pixels = cv2.imdecode(np.frombuffer(b"".join((head, *pieces)), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"TIFF (LZW) cannot be decoded: {_REMEDY}") from error
    if pixels is None:
        raise ImageError(f"TIFF (LZW) cannot be decoded: {_REMEDY}")
    return pixels


def _missing(name: str) -> ImageError:
    return ImageError(
        f"TIFF is compressed with {name}, for which imagecodecs is needed: pip install 'agvas[images]', or save it again"
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().rstrip(":")[:200]
