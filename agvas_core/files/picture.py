"""Picture files as pixels: photographs, and masks of which each pixel is anomalous or is not."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError

__all__ = ["MaskLevel", "binary", "check_end", "decoded", "read_rgb"]

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
