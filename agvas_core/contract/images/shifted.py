"""Whether the rest of a JPEG is brighter or darker from one block on: the damage that no decoder can notice.

A JPEG stores the mean of a block as a difference to the block before it (ITU T.81, F.1.1.5.1). One changed bit in such a difference
leaves the stream valid, and shifts every later block by the same amount. In the picture that is a step along a staircase: between
two rows of blocks from some column on, and one row lower before that column. It is looked for here; a straight step from edge to
edge is none, because parts and backgrounds have such edges.
"""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["shifted_from"]

_STEP_LEAST: Final = 2.5
"""Grey levels."""
_SURE: Final = 7.0
"""Step over its standard error."""
_AGREE_LEAST: Final = 0.85
"""Share of blocks along the staircase that step the same way."""
_SAME_WAY_LEAST: Final = 0.95
_LUMA: Final = np.array([0.25, 0.5, 0.25], np.float32)
_AWAY: Final = 0.25
"""The step on the other side of the staircase, as a share of it, at most."""
_ENDS: Final = 1 / 6
"""Share of the width at either end within which a staircase cannot be distinguished from a straight edge."""
_BLOCKS_LEAST: Final = 12
_CLIPPED: Final = 4
"""Levels from black and white within which a shift may have been cut off."""


def shifted_from(pixels: NDArray[np.uint8], unit: tuple[int, int]) -> tuple[int, int] | None:
    """(row, column) in px of the block from which on the picture is shifted; None where it is not.

    Args:
        pixels: [H, W] or RGB [H, W, 3], as decoded.
        unit: (height, width) in px of what is coded together, 8 or 16 each.
    """
    high, wide = unit
    rows, columns = pixels.shape[0] // high, pixels.shape[1] // wide
    if rows < 3 or columns < _BLOCKS_LEAST:
        return None
    lines = _block_lines(pixels, high, wide, rows, columns)  # [rows, 8, columns, C]
    above, below = lines[:-1, 4:], lines[1:, :4]  # 4 lines on either side of each edge
    if lines.shape[3] == 1:
        return _first([_step(above[..., 0], below[..., 0], soft=False)], above[..., 0], below[..., 0], unit)
    luma_above, luma_below = (side @ _LUMA for side in (above, below))
    steps = [_step(luma_above, luma_below, soft=False)]
    for other in (0, 2):
        steps.append(_step(above[..., other] - above[..., 1], below[..., other] - below[..., 1], soft=high == 16))
    return _first(steps, luma_above, luma_below, unit)


def _first(
    steps: list[NDArray[np.float32]], above: NDArray[np.float32], below: NDArray[np.float32], unit: tuple[int, int]
) -> tuple[int, int] | None:
    for step in steps:
        found = _staircase(step, above[:, 3], below[:, 0])
        if found is not None:
            return found[0] * unit[0], found[1] * unit[1]
    return None


def _block_lines(pixels: NDArray[np.uint8], high: int, wide: int, rows: int, columns: int) -> NDArray[np.float32]:
    """The first and last 4 lines of each row of blocks, each line averaged over a block's width, [rows, 8, columns, C]."""
    whole = pixels[: rows * high, : columns * wide].reshape(rows, high, columns * wide, -1)
    if high > 8:
        whole = np.concatenate([whole[:, :4], whole[:, -4:]], axis=1)
    channels = whole.shape[3]
    small = cv2.resize(whole.reshape(rows * 8, columns * wide, channels), (columns, rows * 8), interpolation=cv2.INTER_AREA)
    return small.reshape(rows, 8, columns, channels).astype(np.float32)


def _step(above: NDArray[np.float32], below: NDArray[np.float32], *, soft: bool) -> NDArray[np.float32]:
    """Step between line 3 of ``above`` and line 0 of ``below``, less the slope on either side of it, [edges, columns].

    ``soft``: of colours that were stored at half the size and enlarged, by pairs of lines.
    """
    if not soft:
        slope = (below[:, 1] - below[:, 0]) + (above[:, 3] - above[:, 2])
        return np.asarray((below[:, 0] - above[:, 3]) - 0.5 * slope, np.float32)
    (far, near), (first, second) = (((side[:, 0] + side[:, 1]) / 2, (side[:, 2] + side[:, 3]) / 2) for side in (above, below))
    # 1 for a step of 1, after enlarging.
    return np.asarray(((first - near) - 0.5 * ((second - first) + (near - far))) / 0.625, np.float32)


def _staircase(blocks: NDArray[np.float32], above: NDArray[np.float32], below: NDArray[np.float32]) -> tuple[int, int] | None:
    """(row, column) of the block where the surest staircase begins, in blocks; steps and values are [edges, columns]."""
    edges, columns = blocks.shape
    dark, bright = (above < _CLIPPED, below < _CLIPPED), (above > 255 - _CLIPPED, below > 255 - _CLIPPED)
    usable = ~(dark[0] & dark[1]) & ~(bright[0] & bright[1])
    clipped = dark[0] | dark[1] | bright[0] | bright[1]
    # Outliers are real edges; a shift is the same everywhere.
    limit = 4 * max(1.0, float(np.median(np.abs(blocks))) * 1.4826)
    kept = np.clip(blocks, -16 * limit, 16 * limit) * usable
    left = np.concatenate([np.zeros((edges, 1), kept.dtype), np.cumsum(kept, axis=1)], axis=1)
    count = np.concatenate([np.zeros((edges, 1), int), np.cumsum(usable, axis=1)], axis=1)
    # From column c on at edge r, before it at edge r + 1; the last edge may have nothing below it.
    total = left[:-1, -1:] - left[:-1] + left[1:]
    number = np.maximum(count[:-1, -1:] - count[:-1] + count[1:], 1)
    means = np.abs(total / number)
    ends = max(3, round(columns * _ENDS))
    means[:, :ends] = 0
    means[:, columns - ends + 1 :] = 0
    means[number < max(_BLOCKS_LEAST, 2 * columns // 3)] = 0
    for flat in np.argsort(means, axis=None)[::-1][:12]:
        row, column = divmod(int(flat), columns + 1)
        if means[row, column] < _STEP_LEAST:
            return None
        if _is_shift(blocks, usable, clipped, row, column):
            return row + 1, column
    return None


def _is_shift(blocks: NDArray[np.float32], usable: NDArray[np.bool_], clipped: NDArray[np.bool_], row: int, column: int) -> bool:
    before, after = (row + 1, slice(None, column)), (row, slice(column, None))
    along = np.concatenate([blocks[part][usable[part]] for part in (after, before)])
    cut = np.concatenate([clipped[part][usable[part]] for part in (after, before)])
    whole = along[~cut] if (~cut).sum() >= _BLOCKS_LEAST else along
    step = float(np.median(whole))
    spread = float(np.median(np.abs(whole - step))) * 1.4826
    if abs(step) < _STEP_LEAST or abs(step) < _SURE * max(spread, 0.7) / np.sqrt(len(along)):
        return False
    agrees = (np.abs(along - step) < 0.5 * abs(step) + spread) | (cut & (along * step > 0))
    if agrees.mean() < _AGREE_LEAST or (along * step > 0).mean() < _SAME_WAY_LEAST:
        return False
    for part in ((row, slice(None, column)), (row + 1, slice(column + 1, None))):
        if len(blocks[part]) and abs(float(np.median(blocks[part]))) > _AWAY * abs(step):
            return False
    return True
