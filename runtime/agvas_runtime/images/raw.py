"""Pixels as a camera sends them to an RGB image, by OpenCV; ``views`` does the same and more in one pass where the native core is."""

from functools import lru_cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.contract.images.rgb import grey_table

__all__ = ["RAW_FORMATS", "SAMPLE_BITS", "camera_image", "checked_rows", "sample_table"]

Rgb = NDArray[np.uint8]

_OPENCV: Final = {
    # OpenCV names a pattern by its second row and column: BayerRG8 of GenICam begins red, green.
    "BayerRG8": cv2.COLOR_BayerBG2RGB,
    "BayerGB8": cv2.COLOR_BayerGR2RGB,
    "BayerGR8": cv2.COLOR_BayerGB2RGB,
    "BayerBG8": cv2.COLOR_BayerRG2RGB,
    "NV12": cv2.COLOR_YUV2RGB_NV12,
    "YUYV": cv2.COLOR_YUV2RGB_YUY2,
    "BGR8": cv2.COLOR_BGR2RGB,
    "Mono8": cv2.COLOR_GRAY2RGB,
}
SAMPLE_BITS: Final = {"Mono10": 10, "Mono12": 12, "Mono14": 14, "Mono16": 16}
"""Grey in uint16, and how many bits of it GenICam says carry the value."""
_BYTES_A_PIXEL: Final = {"RGB8": 3, "BGR8": 3, "YUYV": 2, **dict.fromkeys(SAMPLE_BITS, 2)}
RAW_FORMATS: Final = (*_OPENCV, "RGB8", *SAMPLE_BITS)


def camera_image(raw: NDArray[np.generic], pixel_format: str, size: tuple[int, int], *, bits: int | None = None) -> Rgb:
    """The RGB image [H, W, 3], in memory of its own.

    Args:
        raw: the bytes, uint8 (uint16 for Mono10 to Mono16) of any shape whose elements lie in one piece, rows without padding.
        pixel_format: GenICam's name, or V4L2's where it has none.
        size: (height, width) in px.
        bits: of each uint16 sample, how many carry the value, where it is not as the format says.

    Raises:
        UsageError: a format that is not known.
        ImageError: fewer or more bytes than the size needs, a size that the format does not allow, values beyond full scale.
    """
    rows, (height, width) = checked_rows(raw, pixel_format, size), size
    if pixel_format == "RGB8":
        return rows.reshape(height, width, 3).copy()
    if pixel_format in SAMPLE_BITS:
        table = sample_table(raw, bits or SAMPLE_BITS[pixel_format])
        return np.repeat(table[rows.view(np.uint16)][..., None], 3, axis=2)
    shape = {"BGR8": (height, width, 3), "YUYV": (height, width, 2)}.get(pixel_format, rows.shape)
    return np.asarray(cv2.cvtColor(rows.reshape(shape), _OPENCV[pixel_format]), np.uint8)


def checked_rows(raw: NDArray[np.generic], pixel_format: str, size: tuple[int, int]) -> Rgb:
    """The bytes of a frame, [rows, bytes of a row], checked."""
    if pixel_format not in RAW_FORMATS:
        raise UsageError(
            f"pixel format {pixel_format!r} is not known; {', '.join(sorted(RAW_FORMATS))} are: set the camera to one"
        )
    height, width = size
    name = f"a {pixel_format} frame of {width}x{height} px"
    if min(size) < (3 if pixel_format.startswith("Bayer") else 1):
        raise ImageError(f"{name} is too small: a Bayer pattern needs 3x3 px, any other format 1x1")
    if (pixel_format in ("NV12", "YUYV") and width % 2) or (pixel_format == "NV12" and height % 2):
        raise ImageError(f"{name} is not possible: NV12 holds 2x2 px together, YUYV 2x1; give even sides")
    count = height * 3 // 2 if pixel_format == "NV12" else height
    of_row = width * _BYTES_A_PIXEL.get(pixel_format, 1)
    needed, dtype = count * of_row, np.uint16 if pixel_format in SAMPLE_BITS else np.uint8
    if raw.dtype != dtype or not raw.flags.c_contiguous or raw.nbytes != needed:
        raise ImageError(f"{name} is {needed} bytes of {np.dtype(dtype)} in one piece; this has {raw.nbytes} of {raw.dtype}")
    return raw.reshape(-1).view(np.uint8).reshape(count, of_row)


def sample_table(raw: NDArray[np.generic], bits: int) -> Rgb:
    """Sample to grey, [65536], by the rule of ``rgb``; values beyond full scale are refused as they are there."""
    highest, white = int(raw.max()), (1 << bits) - 1
    if highest > white:
        raise ImageError(f"highest value is {highest}; {white} is full scale here: pass more bits")
    return _whole_table(bits)


@lru_cache(maxsize=8)
def _whole_table(bits: int) -> Rgb:
    table = np.full(65536, 255, np.uint8)
    table[: 1 << bits] = grey_table((1 << bits) - 1)
    return table
