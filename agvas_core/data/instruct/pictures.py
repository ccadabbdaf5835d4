"""The pictures that are shown to the model (paper A.2) and to the reviewer: box, mask, and the encoding that travels."""

import base64
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["RECIPE", "Rgb", "data_url", "jpeg", "shrunk", "with_boxes", "with_mask"]

Rgb = NDArray[np.uint8]

GREEN: Final = (0, 255, 0)  # A.2: "a green bounding box"
RED: Final = (255, 0, 0)
FILL: Final = 0.35
MAX_BOXES: Final = 8  # more of them hide the part; then one box goes round all
JOIN: Final = 0.03  # of the longer side: regions closer than this share a box
JPEG_QUALITY: Final = 92

RECIPE: Final = f"boxes {GREEN} at most {MAX_BOXES} joined within {JOIN}; mask {RED} fill {FILL}; jpeg {JPEG_QUALITY}"
"""How pictures are drawn, for the prompt's hash."""


def shrunk(image: Rgb, side_px: int) -> Rgb:
    """A copy with its longer side at most ``side_px``."""
    height, width = image.shape[:2]
    scale = min(1.0, side_px / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8) if scale < 1 else image.copy()


def with_boxes(image: Rgb, mask: NDArray[np.bool_], side_px: int) -> Rgb:
    """The image with a green box round each anomaly, outside of it so that none is covered.

    Args:
        image: RGB uint8 [H, W, 3].
        mask: bool [H, W], not empty.
        side_px: longest side of the picture that comes out.
    """
    drawn = shrunk(image, side_px)
    (height, width), scale = drawn.shape[:2], drawn.shape[1] / image.shape[1]
    line_px = max(1, round(max(height, width) / 300))
    for left, top, right, bottom in _boxes(mask):
        first = (max(0, int(left * scale) - 2 * line_px), max(0, int(top * scale) - 2 * line_px))
        last = (min(width - 1, int(right * scale) + 2 * line_px), min(height - 1, int(bottom * scale) + 2 * line_px))
        cv2.rectangle(drawn, first, last, GREEN, line_px)
    return drawn


def with_mask(image: Rgb, mask: NDArray[np.bool_], side_px: int) -> Rgb:
    """The image with the mask's area tinted and outlined in red; arguments as :func:`with_boxes`."""
    drawn = shrunk(image, side_px)
    height, width = drawn.shape[:2]
    covered = cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA)
    small = (covered > 0).astype(np.uint8)  # a hairline thinner than a pixel of the drawing stays visible
    inside = small.astype(bool)
    drawn[inside] = np.round(drawn[inside] * (1 - FILL) + np.array(RED) * FILL).astype(np.uint8)
    contours, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, contours, -1, RED, 1, cv2.LINE_8)
    return drawn


def jpeg(image: Rgb) -> bytes:
    """The picture as a JPEG file."""
    return bytes(cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])


def data_url(image: Rgb) -> str:
    """The picture as chat-completions endpoints take it."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(image)).decode("ascii")


def _boxes(mask: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of the regions of ``mask``, last row and column included."""
    reach = max(1, round(JOIN * max(mask.shape)))
    near = cv2.dilate(mask.astype(np.uint8), np.ones((2 * (reach // 2) + 1,) * 2, np.uint8))
    count, labels = cv2.connectedComponents(near, connectivity=8)
    labels = np.where(mask, labels, 0)
    parts = [mask] if count - 1 > MAX_BOXES else [labels == label for label in range(1, count)]
    boxes = []
    for part in parts:
        rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
        boxes.append((int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])))
    return boxes
