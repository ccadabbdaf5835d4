"""Draws a mask on its frame, for display only."""

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["ANOMALY_RGB", "draw_overlay", "shrink"]

Rgb = NDArray[np.uint8]

# Orange from the Okabe-Ito palette, made brighter: distinct from grey, steel and skin with every kind of colour vision. The dark halo
# carries the line over bright and over orange surfaces.
ANOMALY_RGB = (255, 140, 0)
HALO_RGB = (20, 16, 28)
FILL_OPACITY = 0.22
MAX_SIDE_PX = 1600
MIN_TAG_SIDE_PX = 200  # below this a tag hides too much of the frame


def shrink(image: Rgb, max_side_px: int) -> Rgb:
    """The frame with its longer side at most ``max_side_px``, [h, w, 3]; never enlarged."""
    height, width = image.shape[:2]
    scale = max_side_px / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def draw_overlay(image: Rgb, mask: NDArray[np.bool_], *, tag: str | None = None, max_side_px: int = MAX_SIDE_PX) -> Rgb:
    """A copy of the frame with outline and light fill of the mask.

    Args:
        image: RGB uint8 [H, W, 3].
        mask: bool [H, W].
        tag: words for the top-left corner, such as ``FAIL 0.91``; left out on frames under 200 px.
        max_side_px: larger frames are drawn smaller.

    Returns:
        RGB uint8 [h, w, 3].
    """
    drawn = shrink(image, max_side_px)
    drawn = drawn.copy() if drawn is image else drawn
    height, width = drawn.shape[:2]
    line_px = max(1, min(3, round(max(height, width) / 400)))
    if mask.any():
        coverage = cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA)
        small = (coverage > 0).astype(np.uint8)  # a hairline thinner than a pixel of the drawing stays visible
        inside = small.astype(bool)
        fill = drawn[inside] * (1 - FILL_OPACITY) + np.array(ANOMALY_RGB) * FILL_OPACITY
        drawn[inside] = np.round(fill).astype(np.uint8)
        contours, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, contours, -1, HALO_RGB, line_px + 2, cv2.LINE_AA)
        # A line of one pixel has its full colour only without smoothing.
        cv2.drawContours(drawn, contours, -1, ANOMALY_RGB, line_px, cv2.LINE_AA if line_px > 1 else cv2.LINE_8)
    if tag and min(height, width) >= MIN_TAG_SIDE_PX:
        _draw_tag(drawn, tag)
    return drawn


def _draw_tag(image: Rgb, tag: str) -> None:
    scale = max(0.45, max(image.shape[:2]) / 1100)
    thickness = max(1, round(scale * 1.6))
    font = cv2.FONT_HERSHEY_SIMPLEX
    (width, height), base = cv2.getTextSize(tag, font, scale, thickness)
    pad = max(4, height // 2)
    cv2.rectangle(image, (0, 0), (width + 2 * pad, height + base + pad), HALO_RGB, cv2.FILLED)
    cv2.putText(image, tag, (pad, height + pad), font, scale, (255, 255, 255), thickness, cv2.LINE_AA)
