"""From pixels, of a file or as a camera sends them, to the views of all encoders, in one pass over the frame.

    views, image = camera_views(raw, "BayerRG8", (1200, 1600), [manifest.semantic_view, manifest.pixel_view])

The native core shrinks, to the bit as ``contract.preprocess`` does. It does not enlarge: what enlarges, and everything where it was not
built, is done there, by OpenCV.
"""

from collections.abc import Sequence
from functools import lru_cache
from time import perf_counter
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.contract.preprocess import View, ViewSpec, make_view, view_size
from agvas_runtime import native
from agvas_runtime.frame import Frame, Sent
from agvas_runtime.rgb import grey_table

__all__ = ["PIXEL_FORMATS", "camera_frame", "camera_image", "camera_views", "make_views", "normalised_view"]

Rgb = NDArray[np.uint8]

_OPENCV: Final = {
    # OpenCV names a pattern by its second row and column: BayerRG8 of GenICam begins red, green.
    "BayerRG8": cv2.COLOR_BayerBG2RGB,
    "BayerGB8": cv2.COLOR_BayerGR2RGB,
    "NV12": cv2.COLOR_YUV2RGB_NV12,
    "YUYV": cv2.COLOR_YUV2RGB_YUY2,
    "BGR8": cv2.COLOR_BGR2RGB,
    "Mono8": cv2.COLOR_GRAY2RGB,
}
PIXEL_FORMATS: Final = (*_OPENCV, "RGB8", "Mono16")
"""GenICam's names, and those of V4L2 where it has none."""
_BYTES_A_PIXEL: Final = {"RGB8": 3, "BGR8": 3, "YUYV": 2, "Mono16": 2}


def make_views(image: Rgb, specs: Sequence[ViewSpec], threads: int = 0) -> list[View]:
    """An RGB frame, uint8 [H, W, 3] or a crop of one, as each of ``specs`` says.

    Args:
        threads: of the native core; 0: one per core.
    """
    height, width, _ = image.shape
    if native.core is None or image.strides[1:] != (3, 1) or not all(_shrinks(spec, height, width) for spec in specs):
        return [make_view(spec, image) for spec in specs]
    rows = np.lib.stride_tricks.as_strided(image, (height, 3 * width), (image.strides[0], 1), writeable=False)
    return _native_views(rows, "RGB8", (height, width), specs, None, None, threads)


def camera_views(
    raw: NDArray[np.generic],
    pixel_format: str,
    size: tuple[int, int],
    specs: Sequence[ViewSpec],
    *,
    bits: int = 16,
    threads: int = 0,
) -> tuple[list[View], Rgb]:
    """Views of a frame as a camera sends it, and its RGB image [H, W, 3].

    Args:
        raw: the bytes, uint8 (uint16 for Mono16) of any shape whose elements lie in one piece, rows without padding.
        pixel_format: one of ``PIXEL_FORMATS``.
        size: (height, width) in px.
        bits: of each sample of Mono16, how many carry the value.

    Raises:
        UsageError: a format that is not known.
        ImageError: fewer or more bytes than the size needs, a size that the format does not allow, values beyond full scale.
    """
    height, width = size
    if native.core is None or not all(_shrinks(spec, height, width) for spec in specs):
        image = camera_image(raw, pixel_format, size, bits=bits)
        return make_views(image, specs, threads), image
    rows = _rows(raw, pixel_format, size)
    table = _table(raw, bits) if pixel_format == "Mono16" else None
    image = np.empty((height, width, 3), np.uint8)
    return _native_views(rows, pixel_format, size, specs, image, table, threads), image


def camera_frame(
    sent: Sent, specs: Sequence[ViewSpec], name: str, index: int = 0, *, threads: int = 0, read_ms: float = 0.0
) -> Frame:
    """What a camera sent as a frame with its views; a picture that cannot be used is a frame with the reason.

    Raises:
        UsageError: a format that is not known.
    """
    began = perf_counter()
    try:
        views, image = camera_views(sent.data, sent.pixel_format, sent.size, specs, bits=sent.bits, threads=threads)
    except ImageError as error:
        return Frame(name, index, error=ImageError(f"{name}: {error}"), read_ms=read_ms)
    ready = dict(zip(specs, views, strict=True))
    return Frame(name, index, image=image, views=ready, read_ms=read_ms + (perf_counter() - began) * 1000)


def camera_image(raw: NDArray[np.generic], pixel_format: str, size: tuple[int, int], *, bits: int = 16) -> Rgb:
    """The RGB image alone, by OpenCV; ``camera_views`` has the arguments."""
    rows, (height, width) = _rows(raw, pixel_format, size), size
    if pixel_format == "RGB8":
        return rows.reshape(height, width, 3)
    if pixel_format == "Mono16":
        return np.repeat(_table(raw, bits)[rows.view(np.uint16)][..., None], 3, axis=2)
    shape = {"BGR8": (height, width, 3), "YUYV": (height, width, 2)}.get(pixel_format, rows.shape)
    return np.asarray(cv2.cvtColor(rows.reshape(shape), _OPENCV[pixel_format]), np.uint8)


def normalised_view(view: View, spec: ViewSpec, dtype: type[np.float32] | type[np.float16] = np.float32) -> NDArray[Any]:
    """[3, H, W], (value / 255 - mean) / std, for engines that do not normalise by themselves."""
    values = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
    table = ((values - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)).astype(dtype)  # [256, 3]
    return np.stack([table[view.pixels[..., channel], channel] for channel in range(3)])


def _shrinks(spec: ViewSpec, height: int, width: int) -> bool:
    """Neither side is enlarged, and something is shrunk: OpenCV averages over areas there, and only there."""
    high, wide = view_size(spec, height, width)
    return high <= height and wide <= width and (high, wide) != (height, width)


def _native_views(
    rows: Rgb,
    pixel_format: str,
    size: tuple[int, int],
    specs: Sequence[ViewSpec],
    image: Rgb | None,
    table: Rgb | None,
    threads: int,
) -> list[View]:
    height, width = size
    views, plans = [], []
    for spec in specs:
        content = view_size(spec, height, width)
        whole = (spec.size_px, spec.size_px) if spec.fit == "letterbox" else content
        padding = tuple(int(value) for value in np.round(np.asarray(spec.mean) * 255).astype(np.uint8))
        views.append(View(np.empty((*whole, 3), np.uint8), content))
        plans.append((views[-1].pixels, *content, padding, spec.mean, spec.std))
    assert native.core is not None
    native.core.make_views(rows, pixel_format, height, width, (0, 0, height, width), plans, image, table, threads)
    return views


def _rows(raw: NDArray[np.generic], pixel_format: str, size: tuple[int, int]) -> Rgb:
    """The bytes of a frame, [rows, bytes of a row], checked."""
    if pixel_format not in PIXEL_FORMATS:
        raise UsageError(
            f"pixel format {pixel_format!r} is not known; {', '.join(sorted(PIXEL_FORMATS))} are: set the camera to one"
        )
    height, width = size
    name = f"a {pixel_format} frame of {width}x{height} px"
    if min(size) < (3 if pixel_format.startswith("Bayer") else 1):
        raise ImageError(f"{name} is too small: a Bayer pattern needs 3x3 px, any other format 1x1")
    if (pixel_format in ("NV12", "YUYV") and width % 2) or (pixel_format == "NV12" and height % 2):
        raise ImageError(f"{name} is not possible: NV12 holds 2x2 px together, YUYV 2x1; give even sides")
    count = height * 3 // 2 if pixel_format == "NV12" else height
    of_row = width * _BYTES_A_PIXEL.get(pixel_format, 1)
    needed, dtype = count * of_row, np.uint16 if pixel_format == "Mono16" else np.uint8
    if raw.dtype != dtype or not raw.flags.c_contiguous or raw.nbytes != needed:
        raise ImageError(f"{name} is {needed} bytes of {np.dtype(dtype)} in one piece; this has {raw.nbytes} of {raw.dtype}")
    return raw.reshape(-1).view(np.uint8).reshape(count, of_row)


def _table(raw: NDArray[np.generic], bits: int) -> Rgb:
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
