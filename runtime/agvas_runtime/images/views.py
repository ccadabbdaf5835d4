"""From pixels, of a file or as a camera sends them, to the views of all encoders, in one pass over the frame.

    views, image = camera_views(raw, "BayerRG8", (1200, 1600), [manifest.semantic_view, manifest.pixel_view])

The native core shrinks, to the bit as ``contract.preprocess`` does. It does not enlarge: what enlarges, and everything where it was not
built, is done there, by OpenCV.
"""

from collections.abc import Sequence
from time import perf_counter
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_core.contract.preprocess import View, ViewSpec, make_view, view_size
from agvas_runtime import native
from agvas_runtime.images.frame import Frame, Sent
from agvas_runtime.images.raw import camera_image, checked_rows, sample_table

__all__ = [
    "PIXEL_FORMATS",
    "PIXEL_FORMAT_PLACES",
    "ViewLayout",
    "camera_frame",
    "camera_image",
    "camera_views",
    "make_views",
    "shrinks",
    "view_layout",
]

Rgb = NDArray[np.uint8]

PIXEL_FORMATS: Final = ("BayerRG8", "BayerGB8", "NV12", "YUYV", "BGR8", "Mono8", "RGB8", "Mono16")
"""Those that the native core reads; ``raw_image`` knows more."""

PIXEL_FORMAT_PLACES: Final = {
    name: place for place, name in enumerate(("Mono8", "Mono16", "BayerRG8", "BayerGB8", "NV12", "YUYV", "RGB8", "BGR8"))
}
"""As csrc/camera_rows.h counts them."""


class ViewLayout(NamedTuple):
    """Where the frame lies in a view, and what is around it."""

    content: tuple[int, int]
    """(h, w) px that the frame fills, from the top left corner."""
    whole: tuple[int, int]
    """(h, w) px of the view."""
    padding: tuple[int, int, int]
    """RGB of the rest."""


def view_layout(spec: ViewSpec, height: int, width: int) -> ViewLayout:
    """Of a frame of ``height`` x ``width`` px under ``spec``."""
    content = view_size(spec, height, width)
    red, green, blue = (int(value) for value in np.round(np.asarray(spec.mean) * 255).astype(np.uint8))
    return ViewLayout(content, (spec.size_px, spec.size_px) if spec.fit == "letterbox" else content, (red, green, blue))


def make_views(image: Rgb, specs: Sequence[ViewSpec], threads: int = 0) -> list[View]:
    """An RGB frame, uint8 [H, W, 3] or a crop of one, as each of ``specs`` says.

    Args:
        threads: of the native core; 0: one per core.
    """
    height, width, _ = image.shape
    if native.core is None or image.strides[1:] != (3, 1) or not all(shrinks(spec, height, width) for spec in specs):
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
        pixel_format: one of ``PIXEL_FORMATS``, or of those that ``raw_image`` knows beside them.
        size: (height, width) in px.
        bits: of each sample of Mono16, how many carry the value.

    Raises:
        UsageError: a format that is not known.
        ImageError: fewer or more bytes than the size needs, a size that the format does not allow, values beyond full scale.
    """
    height, width = size
    if native.core is None or pixel_format not in PIXEL_FORMATS or not all(shrinks(spec, height, width) for spec in specs):
        image = camera_image(raw, pixel_format, size, bits=bits)
        return make_views(image, specs, threads), image
    rows = checked_rows(raw, pixel_format, size)
    table = sample_table(raw, bits) if pixel_format == "Mono16" else None
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


def shrinks(spec: ViewSpec, height: int, width: int) -> bool:
    """Whether OpenCV averages over areas: neither side is enlarged, something is shrunk, and no kernel of Pillow's is asked for."""
    high, wide = view_size(spec, height, width)
    return spec.resample == "opencv" and high <= height and wide <= width and (high, wide) != (height, width)


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
        content, whole, padding = view_layout(spec, height, width)
        views.append(View(np.empty((*whole, 3), np.uint8), content))
        plans.append((views[-1].pixels, *content, padding))
    assert native.core is not None
    native.core.make_views(rows, pixel_format, height, width, (0, 0, height, width), plans, image, table, threads)
    return views
