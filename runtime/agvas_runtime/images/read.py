"""One image file to RGB.

    pixels = read_image("part.png")                 # uint8 RGB [H, W, 3], turned upright
    pixels = read_image("scan.tif", bits=12)        # 12-bit data in 16-bit samples
    for page in range(count_pages("scan.tif")):     # each page of a TIFF is a picture of its own
        pixels = read_image("scan.tif", page=page)

Size is capped before decoding. How bytes become pixels, and what is refused, is said in ``agvas_core.contract.images``, because
training reads the same. Thread-safe.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_core.contract.images.decode import MAX_PIXELS, check_header, check_size, decode_image, quiet_opencv
from agvas_core.contract.images.header import IMAGE_SUFFIXES, read_header
from agvas_core.contract.images.rare import OTHER_PICTURES

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "OTHER_PICTURES",
    "NotedOnce",
    "check_header",
    "count_pages",
    "decode_image",
    "quiet_opencv",
    "read_image",
    "writable_name",
]

BYTES_PER_PIXEL_MOST = 16  # four float32 channels, uncompressed
METADATA_BYTES_MOST = 64 << 20

Rgb = NDArray[np.uint8]


def read_image(
    path: str | Path,
    *,
    max_pixels: int = MAX_PIXELS,
    bits: int | None = None,
    page: int | None = None,
    note: Callable[[str], None] | None = None,
) -> Rgb:
    """RGB uint8 [H, W, 3] of the file at ``path``; ``decode_image`` says what the others are.

    Raises ImageError, its message starting with the path: missing, unreadable, a folder, not an image, cut short, damaged, too large.
    """
    with _named(path), _opened(path) as file:
        return _read(file, max_pixels, bits, page, note)


class NotedOnce:
    """Collects what readers note of files, each kind of note once a run: it is about the camera, and not about one picture."""

    def __init__(self, notes: list[str]) -> None:
        """``notes`` grows; each entry begins with the name of the first file that it was noted of."""
        self.notes = notes
        self.told: Callable[[str], None] | None = None
        """Called with each entry as it is found; None collects only."""
        self._kinds: set[str] = set()

    def of(self, name: str) -> Callable[[str], None]:
        """What to pass as ``note`` for the file called ``name``."""

        def note(text: str) -> None:
            if self.is_new(text):
                self.notes.append(f"{name}: {text}")
                if self.told is not None:
                    self.told(self.notes[-1])

        return note

    def is_new(self, text: str) -> bool:
        """Whether no note of this kind came before; notes that differ in figures only are one kind."""
        kind = "".join(letter for letter in text if not letter.isdigit())
        new = kind not in self._kinds
        self._kinds.add(kind)
        return new


def count_pages(path: str | Path) -> int:
    """Pictures in the file at ``path``: the pages of a TIFF, thumbnails and masks not counted; 1 for any other format.

    1 also where the file cannot be read: reading it then says why.
    """
    try:
        with _named(path), _opened(path) as file:
            return read_header(file).pages if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else 1
    except ImageError:
        return 1


def _opened(path: str | Path) -> BinaryIO:
    # Not blocking on a pipe: with O_NONBLOCK it opens at once and is refused when it is read.
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Errors within become ImageErrors that begin with the path."""
    try:
        yield
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


def _read(file: BinaryIO, max_pixels: int, bits: int | None, page: int | None, note: Callable[[str], None] | None) -> Rgb:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("is a device or a pipe; an image file is needed: copy its content to a file")
    header = read_header(file)
    check_size(header, max_pixels)
    most = header.pages * header.width * header.height * BYTES_PER_PIXEL_MOST + METADATA_BYTES_MOST
    if status.st_size > most:
        raise ImageError(f"has {status.st_size} bytes for {header.width}x{header.height} px; {most} is the most: save it again")
    file.seek(0)
    return decode_image(file.read(), bits=bits, page=page, note=note, header=header)


def _reason(error: OSError | ValueError) -> str:
    number = error.errno if isinstance(error, OSError) else errno.EINVAL
    return os.strerror(number) if number is not None else str(error)
