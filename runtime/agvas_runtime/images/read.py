"""One image file to RGB.

    pixels = read_image("part.png")                 # uint8 RGB [H, W, 3], turned upright
    pixels = read_image("scan.tif", bits=12)        # 12-bit data in 16-bit samples

Size is capped before decoding, a file that is cut short is refused, and ``rgb`` gives the rules for 16-bit, float and alpha.
Animations and multi-page files give their first picture. Thread-safe.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.defaults import MAX_PIXELS
from agvas_core.contract.errors import ImageError
from agvas_runtime.images.header import IMAGE_SUFFIXES, ImageHeader, read_header
from agvas_runtime.images.rgb import looks_like_fewer_bits, to_rgb
from agvas_runtime.images.whole import check_whole, exif_orientation, jpeg_end

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "check_header", "decode_image", "quiet_opencv", "read_image", "writable_name"]

MAX_SIDE_PX = 1_000_000  # libpng's limit: a longer side could be judged, but its mask not be saved
BYTES_PER_PIXEL_MOST = 16  # four float32 channels, uncompressed
METADATA_BYTES_MOST = 64 << 20

Rgb = NDArray[np.uint8]


def read_image(
    path: str | Path,
    *,
    max_pixels: int = MAX_PIXELS,
    bits: int | None = None,
    note: Callable[[str], None] | None = None,
) -> Rgb:
    """RGB uint8 [H, W, 3] of the file at ``path``, EXIF rotation applied.

    ``bits``: how many of the 16 bits of a uint16 sample are used. ``note`` is told of what may be meant otherwise.
    Raises ImageError, its message starting with the path: missing, unreadable, a folder, not an image, cut short, too large.
    """
    try:
        # Not blocking on a pipe: with O_NONBLOCK it opens at once and the check below refuses it.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            return _read(file, max_pixels, bits, note)
    except ImageError as error:
        raise ImageError(f"{writable_name(path)}: {error}") from error.__cause__
    except IsADirectoryError as error:
        raise ImageError(f"{writable_name(path)}: is a folder; one image file is needed: name the file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise ImageError(
            f"{writable_name(path)}: cannot be opened ({_reason(error)}): check the path and its permissions"
        ) from error


def writable_name(path: str | Path) -> str:
    """``path`` as text for files, tables and messages: bytes that are no UTF-8, which Linux allows in names, as ``\\udc..``."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def check_header(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Format and size of the bytes of a file, without decoding a pixel.

    Raises:
        ImageError: not an image, or larger than ``max_pixels``.
    """
    header = read_header(BytesIO(data))
    _check_size(header, max_pixels)
    return header


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, bits: int | None = None, note: Callable[[str], None] | None = None
) -> Rgb:
    """As ``read_image``, of the bytes of a file."""
    header = check_header(data, max_pixels=max_pixels)
    return _decode(data, header, bits, note)


def _read(file: BinaryIO, max_pixels: int, bits: int | None, note: Callable[[str], None] | None) -> Rgb:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("is a device or a pipe; an image file is needed: copy its content to a file")
    header = read_header(file)
    _check_size(header, max_pixels)
    most = header.width * header.height * BYTES_PER_PIXEL_MOST + METADATA_BYTES_MOST
    if status.st_size > most:
        raise ImageError(f"has {status.st_size} bytes for {header.width}x{header.height} px; {most} is the most: save it anew")
    file.seek(0)
    return _decode(file.read(), header, bits, note)


def _check_size(header: ImageHeader, max_pixels: int) -> None:
    if max(header.width, header.height) > MAX_SIDE_PX:
        raise ImageError(f"is {header.width}x{header.height} px; a side has at most {MAX_SIDE_PX}: cut it into pieces")
    pixels = header.width * header.height
    if pixels > max_pixels:
        raise ImageError(
            f"is {header.width}x{header.height} px, {pixels / 1e6:.1f} megapixels; the cap is {max_pixels / 1e6:g}: "
            f"pass --max-pixels {pixels} (max_pixels in Python), or crop it"
        )


def _decode(data: bytes, header: ImageHeader, bits: int | None, note: Callable[[str], None] | None) -> Rgb:
    check_whole(data, header.format)
    pixels = _opencv_decode(data)
    if pixels is None:
        raise ImageError(
            f"{header.format.upper()} of {header.width}x{header.height} px cannot be decoded: it is cut short or broken"
        )
    if header.format == "jpeg" and _is_filled_up(data, pixels):
        raise ImageError("JPEG has fewer pixels than its header says; the rest would be grey: it is cut short; record it again")
    fewer = looks_like_fewer_bits(pixels) if bits is None and header.sample_max is None else None
    if note is not None and fewer is not None:
        note(f"16-bit samples use only the lowest {fewer} bits: if the camera gives {fewer} bits, pass --bits {fewer}")
    pixels = _rgb_order(pixels)
    if header.format == "bmp" and pixels.ndim == 3 and pixels.shape[2] == 4 and not pixels[..., 3].any():
        pixels = pixels[..., :3]  # the fourth byte of most 32-bit BMPs is unused and zero, not transparency
    # libtiff multiplies straight alpha in on the 8-bit path only; see image_header.
    premultiplied = header.premultiplied and pixels.dtype == np.uint8
    rgb = to_rgb(pixels, bits=bits, sample_max=header.sample_max, premultiplied=premultiplied)
    return _upright(rgb, exif_orientation(data, header.format))


def _rgb_order(pixels: NDArray[np.generic]) -> NDArray[np.generic]:
    if pixels.ndim == 2 or pixels.shape[2] < 3:
        return pixels
    if pixels.dtype in (np.uint8, np.uint16, np.float32):  # what cvtColor takes; six times as fast as NumPy
        code = cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB
        return cv2.cvtColor(cast(NDArray[np.uint8], pixels), code)
    return pixels[..., [2, 1, 0, 3]] if pixels.shape[2] == 4 else pixels[..., ::-1]


def _opencv_decode(data: bytes) -> NDArray[np.generic] | None:
    with quiet_opencv():
        try:
            # Unchanged: alpha and depth stay, and no rotation, which OpenCV versions do for different sets of formats.
            pixels: NDArray[np.generic] | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except (cv2.error, MemoryError) as error:
            raise ImageError(f"OpenCV cannot decode it ({str(error).strip()}): save it anew as PNG") from error
    return pixels


def _is_filled_up(data: bytes, pixels: NDArray[np.generic]) -> bool:
    """Whether libjpeg ran out of data before the last row, in a file whose end marker was set all the same.

    It then fills up with mid grey. Where the last corner is mid grey, noise is put before the end marker: a whole picture ignores
    it, a short one takes it for pixels.
    """
    if np.abs(pixels[-4:, -4:].astype(np.int16) - 128).max() > 2:
        return False
    end = jpeg_end(data)
    noise = bytes(range(1, 255)) * 4  # no FF in it
    other = _opencv_decode(data[:end] + noise + b"\xff\xd9")
    return other is None or not np.array_equal(other, pixels)


def _upright(rgb: Rgb, orientation: int) -> Rgb:
    """EXIF 2.32, tag 274: where row 0 and column 0 of the stored picture belong."""
    if orientation >= 5:
        rgb = rgb.transpose(1, 0, 2)  # [W, H, 3]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    return np.ascontiguousarray(rgb)


def _reason(error: OSError | ValueError) -> str:
    number = error.errno if isinstance(error, OSError) else errno.EINVAL
    return os.strerror(number) if number is not None else str(error)


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
