"""Any pixels to RGB uint8, by rules that do not depend on the image.

A per-image stretch would make the same part look different next to a bright neighbour, so full scale comes from the data type,
from the file, or from the caller's ``bits``, and from nowhere else:

* uint8: as it is; bool: black and white.
* uint16: 65535 is white (value / 257, rounded). Files that hold 10, 12 or 14 bits unscaled need ``bits``.
* float: 0.0 is black, 1.0 is white; anything outside, and NaN, is refused.
* alpha: laid over white. Colours under full transparency are arbitrary, often black or leftover; white is what viewers and web
  pages show, and is the background of cut-out product pictures.
"""

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError

__all__ = ["grey_table", "looks_like_fewer_bits", "to_rgb"]

Rgb = NDArray[np.uint8]


def to_rgb(
    pixels: NDArray[np.generic], *, bits: int | None = None, sample_max: int | None = None, premultiplied: bool = False
) -> Rgb:
    """RGB uint8 [H, W, 3] of ``pixels`` [H, W] or [H, W, C]: grey, grey+alpha, RGB, RGBA for C = 1, 2, 3, 4.

    ``bits``: of each uint16 sample, how many carry the value (10, 12, 14 or 16). ``sample_max``: full scale where the file states
    it; ``bits`` wins. Raises ImageError for other shapes and types, and for values beyond full scale.
    """
    shape = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or pixels.size == 0:
        raise ImageError(f"array has shape {list(shape)}; [H, W] or [H, W, C] with C = 1 to 4 is needed: reshape it")
    eight = _to_eight_bits(pixels, bits, sample_max)
    colour, alpha = (eight[..., :-1], eight[..., -1:]) if eight.shape[2] in (2, 4) else (eight, None)
    if alpha is not None and alpha.min() < 255:
        colour = _over_white(colour, alpha, premultiplied)
    if colour.shape[2] == 1:
        colour = np.repeat(colour, 3, axis=2)  # [H, W, 3]
    return np.ascontiguousarray(colour)


def _to_eight_bits(pixels: NDArray[np.generic], bits: int | None, sample_max: int | None) -> Rgb:
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.uint8 or pixels.dtype == np.uint16:
        white = sample_max or (255 if pixels.dtype == np.uint8 else 65535)
        if bits is not None and pixels.dtype == np.uint16:
            white = (1 << bits) - 1
        highest = int(pixels.max())
        if highest > white:
            raise ImageError(f"highest value is {highest}; {white} is full scale here: pass more bits (--bits)")
        if pixels.dtype == np.uint8 and white == 255:
            return pixels.astype(np.uint8, copy=False)
        eight: Rgb = grey_table(white)[pixels]
        return eight
    if np.issubdtype(pixels.dtype, np.floating):
        lowest, highest_float = float(pixels.min()), float(pixels.max())  # NaN if any value is
        if not (lowest >= 0.0 and highest_float <= 1.0):
            raise ImageError(
                f"float values run from {lowest:g} to {highest_float:g}; 0 to 1 is needed: rescale, or save as uint16"
            )
        rounded: Rgb = np.rint(pixels.astype(np.float32) * np.float32(255)).astype(np.uint8)
        return rounded
    raise ImageError(f"samples are {pixels.dtype}; uint8, uint16 and float are read: convert them")


def grey_table(white: int) -> Rgb:
    """From a sample of 0 to ``white`` to a byte, rounded, [white + 1]."""
    return ((np.arange(white + 1, dtype=np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def _over_white(colour: Rgb, alpha: Rgb, premultiplied: bool) -> Rgb:
    rest = 255 - alpha.astype(np.uint16)
    # At most 255 * 255 + 127, which still fits.
    wide = np.minimum(colour + rest, 255) if premultiplied else (colour * alpha.astype(np.uint16) + 255 * rest + 127) // 255
    over: Rgb = wide.astype(np.uint8)
    return over


def looks_like_fewer_bits(pixels: NDArray[np.generic]) -> int | None:
    """10, 12 or 14 where uint16 ``pixels`` use no more than that many bits, else None. A hint to print, never acted upon."""
    if pixels.dtype != np.uint16:
        return None
    highest = int(pixels.max())
    return next((bits for bits in (10, 12, 14) if highest < 1 << bits), None)
