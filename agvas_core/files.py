"""Folders and picture files, as both training and evaluation read them: images with their masks by name, and their pixels."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, UsageError

__all__ = [
    "GOOD",
    "IMAGE_SUFFIXES",
    "MaskLevel",
    "binary",
    "check_end",
    "decoded",
    "folders",
    "images",
    "inside",
    "pair",
    "read_rgb",
]


GOOD = "good"
"""What MVTec-AD, and all who follow it, call the folder of defect-free parts."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def folders(parent: Path) -> list[Path]:
    """Folders in ``parent`` that are not hidden, by name."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))


def images(folder: Path) -> list[Path]:
    """Image files directly in ``folder``, by name."""
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in files if path.is_file())


def inside(root: Path, path: Path) -> str:
    """``path`` relative to ``root``, with ``/``."""
    return path.relative_to(root).as_posix()


def pair(pictures: Iterable[Path], masks: Iterable[Path], suffixes: tuple[str, ...]) -> Iterator[tuple[Path, Path | None]]:
    """Each picture with the mask of its name.

    Args:
        suffixes: what a mask's stem has more than its picture's, ``_mask`` or nothing.

    Raises:
        UsageError: two pictures of one name, or two masks for one picture: whichever were taken would be a guess.
    """
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for mask in masks:
        by_stem[mask.stem].append(mask)
    seen: dict[str, Path] = {}
    for picture in pictures:
        if picture.stem in seen:
            raise UsageError(f"{seen[picture.stem]} and {picture.name} have one name, so their masks cannot be told: rename one")
        seen[picture.stem] = picture
        found = [mask for suffix in dict.fromkeys(suffixes) for mask in by_stem.get(picture.stem + suffix, [])]
        if len(found) > 1:
            raise UsageError(f"{picture} has two masks, {found[0]} and {found[1].name}: remove one")
        yield picture, found[0] if found else None


# Picture files as pixels: photographs, and masks of which each pixel is anomalous or is not.


MaskLevel = Literal["any", "half"]
"""Which mask values are anomalous: ``any`` above 0 (VisA numbers its kinds from 1), or more than ``half`` of 255, for masks that
went through lossy compression and carry its noise."""

HALF = 127
_TAIL_BYTES = 65_536  # cameras and editors append their own data behind the end marker


def binary(raw: NDArray[Any], level: MaskLevel) -> NDArray[np.bool_]:
    """Which pixels of a mask file are anomalous, bool [H, W]; ``raw`` is [H, W] or [H, W, channels], 8 or 16 bits."""
    if raw.ndim == 3:  # the fourth channel is opacity, which says nothing about anomalies
        raw = raw[..., : 3 if raw.shape[2] in (3, 4) else 1].max(axis=2)
    limit = 0 if level == "any" else HALF if raw.dtype == np.uint8 else HALF * 257
    return np.asarray(raw > limit)


def decoded(path: Path, how: int, name: str, *, whole: bool = False) -> NDArray[Any]:
    """Pixels of a picture file, as OpenCV orders them (BGR), turned upright where ``how`` is cv2.IMREAD_COLOR.

    Args:
        name: what the message calls it.
        whole: refuse a file that was cut short, whose missing part OpenCV would fill with grey.

    Raises:
        ImageError: missing, no picture, or cut short.
    """
    pixels: NDArray[Any] | None = None
    with suppress(OSError, cv2.error):  # the same sentence says why, whichever it was
        data = np.fromfile(path, np.uint8)
        pixels = cv2.imdecode(data, how)
    if pixels is None:
        raise ImageError(f"{name}: {path} is missing or cannot be decoded")
    if whole:
        check_end(data, name)
    return pixels


def check_end(data: NDArray[np.uint8], name: str) -> None:
    """Raises ImageError where JPEG or PNG bytes lack their end: a download or copy that stopped half way.

    The runtime looks closer (``agvas_runtime.images.whole``), because there a part's verdict depends on it.
    """
    head, tail = data[:4].tobytes(), data[-_TAIL_BYTES:].tobytes()
    end = b"\xff\xd9" if head[:2] == b"\xff\xd8" else b"IEND" if head == b"\x89PNG" else b""
    if end not in tail:
        raise ImageError(f"{name} is cut short ({len(data):,} bytes, no end marker): copy or download it again")


def read_rgb(path: Path, name: str) -> NDArray[np.uint8]:
    """A photograph as RGB uint8 [H, W, 3], upright by its EXIF orientation. Raises ImageError as :func:`decoded`."""
    return np.ascontiguousarray(decoded(path, cv2.IMREAD_COLOR, name, whole=True)[..., ::-1], np.uint8)
