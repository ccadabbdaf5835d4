"""Bytes of an image file to RGB, strictly: pixels that were not recorded are never made up.

    pixels = decode_image(data)                 # uint8 RGB [H, W, 3], turned upright, in sRGB
    pixels = decode_image(data, bits=12)        # 12-bit data in 16-bit samples

Decoders: libjpeg-turbo (``jpeg``), tifffile (``tiff``), Pillow (``rare``), and OpenCV for PNG, BMP, WebP and Netpbm. ``rgb`` gives the
rules for 16-bit, float and alpha. Thread-safe.
"""

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.defaults import MAX_PIXELS
from agvas_core.contract.errors import ImageError
from agvas_core.contract.images.header import ImageHeader, read_header
from agvas_core.contract.images.jpeg import decode_jpeg, jpeg_parts
from agvas_core.contract.images.metadata import orientation_of, png_exif, riff_chunks, to_srgb, turn_upright
from agvas_core.contract.images.png import decode_png, palette_indices, png_parts
from agvas_core.contract.images.rare import decode_by_pillow
from agvas_core.contract.images.rgb import looks_like_fewer_bits, to_rgb
from agvas_core.contract.images.tiff import decode_tiff

__all__ = [
    "MAX_PIXELS",
    "Samples",
    "check_header",
    "check_size",
    "decode_image",
    "decode_palette",
    "decode_samples",
    "quiet_opencv",
]

MAX_SIDE_PX = 1_000_000  # libpng's limit: a longer side could be judged, but its mask not be saved

Rgb = NDArray[np.uint8]
Note = Callable[[str], None]


class Samples:
    """What a file holds, before it becomes RGB: masks and label files need its own values.

    Attributes:
        pixels: [H, W] or [H, W, C], C = 2, 3, 4: grey + alpha, RGB, RGBA; as stored, not turned.
        sample_max: full scale of a sample where it is not that of the data type.
        premultiplied: colours are multiplied by alpha.
        orientation: 1 to 8 (EXIF).
        icc: the colour profile, empty if none.
    """

    def __init__(
        self,
        pixels: NDArray[np.generic],
        *,
        sample_max: int | None = None,
        premultiplied: bool = False,
        orientation: int = 1,
        icc: bytes = b"",
    ) -> None:
        self.pixels, self.sample_max, self.premultiplied = pixels, sample_max, premultiplied
        self.orientation, self.icc = orientation, icc


def check_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Format and size of the bytes of a file, without decoding a pixel.

    Raises:
        ImageError: not an image, or larger than ``max_pixels``.
    """
    header = read_header(BytesIO(data))
    check_size(header, max_pixels)
    return header


def check_size(header: ImageHeader, max_pixels: int) -> None:
    """Raises ImageError where the picture is larger than is read."""
    if max(header.width, header.height) > MAX_SIDE_PX:
        raise ImageError(f"is {header.width}x{header.height} px; a side has at most {MAX_SIDE_PX}: cut it into pieces")
    pixels = header.width * header.height
    if pixels > max_pixels:
        raise ImageError(
            f"is {header.width}x{header.height} px, {pixels / 1e6:.1f} megapixels; the cap is {max_pixels / 1e6:g}: "
            f"pass --max-pixels {pixels} (max_pixels in Python), or crop it"
        )


def decode_image(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    bits: int | None = None,
    page: int | None = None,
    note: Note | None = None,
    header: ImageHeader | None = None,
) -> Rgb:
    """RGB uint8 [H, W, 3] of the bytes of a file, EXIF rotation applied, colours in sRGB.

    Args:
        max_pixels: more are refused before anything is decoded.
        bits: how many of the 16 bits of a uint16 sample are used.
        page: of a TIFF, counted from 0; None takes the first and tells ``note`` if there are more.
        note: called with a message for each ambiguity.
        header: what ``check_header`` gave, where it was called.

    Raises:
        ImageError: not an image, cut short, damaged, too large, or of a kind that is not read; the message says which.
    """
    header = header or check_header(data, max_pixels=max_pixels)
    if page is None and header.pages > 1 and note is not None:
        note(f"the file has {header.pages} pages and the first is taken: agvas run --pages judges each (pages in Python)")
    samples = decode_samples(data, header, page=page or 0, note=note)
    pixels = samples.pixels
    fewer = looks_like_fewer_bits(pixels) if bits is None and samples.sample_max is None else None
    if note is not None and fewer is not None:
        note(f"16-bit samples use only the lowest {fewer} bits: if the camera gives {fewer} bits, pass --bits {fewer}")
    rgb = to_rgb(pixels, bits=bits, sample_max=samples.sample_max, premultiplied=samples.premultiplied)
    if samples.icc:
        rgb = to_srgb(rgb, samples.icc, note)
    return turn_upright(rgb, samples.orientation)


def decode_samples(data: bytes, header: ImageHeader, *, page: int = 0, note: Note | None = None) -> Samples:
    """The samples of a file as they are stored. Raises ImageError as :func:`decode_image`."""
    if page and header.format != "tiff":
        raise ImageError(f"page {page} was asked for and only a TIFF has pages: leave it out")
    if header.format == "jpeg":
        parts = jpeg_parts(data)
        jpeg = decode_jpeg(parts)
        pixels = jpeg if jpeg is not None else _rgb_order(_by_opencv(parts.data, header))
        return Samples(pixels, orientation=orientation_of(parts.exif), icc=parts.icc)
    if header.format == "tiff":
        with quiet_opencv():
            tiff = decode_tiff(data, page, lambda: _rgb_order(_by_opencv(data, header)), note)
        return Samples(
            tiff.pixels,
            sample_max=tiff.sample_max,
            premultiplied=tiff.premultiplied,
            orientation=tiff.orientation,
            icc=tiff.icc,
        )
    if header.format in ("gif", "jp2", "avif"):
        pixels, icc = decode_by_pillow(data, header.format)
        return Samples(pixels, icc=icc)
    if header.format == "png":
        png = png_parts(data)
        pixels = decode_png(png, lambda plain: _rgb_order(_by_opencv(plain, header)))
        return Samples(pixels, orientation=orientation_of(png_exif(iter(png.others))), icc=png.icc)
    if header.format == "webp":
        return _webp(data, header)
    pixels = _rgb_order(_by_opencv(data, header))
    if header.format == "bmp" and pixels.ndim == 3 and pixels.shape[2] == 4 and not pixels[..., 3].any():
        pixels = pixels[..., :3]  # the fourth byte of most 32-bit BMPs is unused and zero, not transparency
    return Samples(pixels, sample_max=header.sample_max)


def decode_palette(data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """(indices [H, W], colours [N, 3]) of a PNG; None where it has no palette. Raises ImageError as :func:`decode_image`."""
    header, parts = check_header(data), png_parts(data)
    return palette_indices(parts, lambda plain: _by_opencv(plain, header)) if parts.colour == 3 else None


def _webp(data: bytes, header: ImageHeader) -> Samples:
    needed = struct.unpack("<I", data[4:8])[0] + 8
    if len(data) < needed:
        raise ImageError(f"WebP has {len(data)} of {needed} bytes: it is cut short; copy or record it again")
    chunks = dict(reversed(list(riff_chunks(data))))
    pixels = _rgb_order(_by_opencv(data, header))
    return Samples(pixels, orientation=orientation_of(chunks.get(b"EXIF", b"")), icc=chunks.get(b"ICCP", b""))


def _rgb_order(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    if pixels.ndim == 2 or pixels.shape[2] < 3:
        return pixels
    if pixels.dtype in (np.uint8, np.uint16, np.float32):  # what cvtColor takes; six times as fast as NumPy
        code = cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
        return cv2.cvtColor(cast(NDArray[np.uint8], pixels), code)
    return pixels[..., [2, 1, 0, 3]] if pixels.shape[2] == 4 else pixels[..., ::-1]


def _by_opencv(data: bytes, header: ImageHeader) -> NDArray[np.generic]:
    with quiet_opencv():
        try:
            # Unchanged: alpha and depth stay, and no rotation, which OpenCV versions do for different sets of formats.
            pixels: NDArray[np.generic] | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except (cv2.error, MemoryError) as error:
            raise ImageError(f"OpenCV cannot decode it ({str(error).strip()}): save it again as PNG") from error
    if pixels is None:
        raise ImageError(
            f"{header.format.upper()} of {header.width}x{header.height} px cannot be decoded: it is cut short or broken"
        )
    return pixels


_quiet_lock = threading.Lock()
_quiet_depth = 0
_loud_level = 0


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keeps OpenCV's log off stderr; what went wrong is in our own error. May be entered by many threads at once."""
    global _quiet_depth, _loud_level
    with _quiet_lock:
        if _quiet_depth == 0:
            _loud_level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                cv2.utils.logging.setLogLevel(_loud_level)
