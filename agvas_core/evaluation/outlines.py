"""The outline of a mask as an SVG path, small enough to keep one for every image."""

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["UNITS", "outline"]

UNITS = 1000  # the longer side of the image, in units of the path
MAX_CONTOURS = 60  # the longest ones; a mask of noise has thousands
STEP_UNITS = 2.0  # corners closer than this to the line are left out


def outline(mask: NDArray[np.bool_]) -> str:
    """``M1 2L3 4Z...`` for a mask bool [H, W]; empty for an empty one."""
    if not mask.any():
        return ""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    scale = UNITS / max(mask.shape)
    parts = []
    for contour in sorted(contours, key=len, reverse=True)[:MAX_CONTOURS]:
        points = (contour.reshape(-1, 2).astype(np.float32) + 0.5) * scale
        if len(points) > 3:
            points = np.asarray(cv2.approxPolyDP(points, STEP_UNITS, True), np.float32).reshape(-1, 2)
        parts.append("M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in points) + "Z")
    return "".join(parts)
