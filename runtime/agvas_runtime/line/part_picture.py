"""Pictures of parts for the eye: JPEG, with what was found drawn on it or without."""

import json
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_runtime.overlay import draw_overlay, shrink

__all__ = ["SIDE_PX", "THUMB_PX", "drawn", "mask_of_findings"]

Mask = NDArray[np.bool_]

SIDE_PX: Final = 1280
THUMB_PX: Final = 320
QUALITY: Final = 82


def drawn(image: NDArray[np.uint8], mask: Mask | None, *, side_px: int = SIDE_PX) -> bytes:
    """JPEG of an RGB frame [H, W, 3], at most ``side_px`` on its longer side, with the outline of ``mask`` where there is one."""
    shown = shrink(image, side_px) if mask is None else draw_overlay(image, mask, max_side_px=side_px)
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(shown[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done, f"OpenCV cannot encode {shown.shape} as JPEG"
    return data.tobytes()


def mask_of_findings(findings: str | list[dict[str, Any]], height: int, width: int) -> Mask:
    """The pixels of a ledger row's findings, bool [H, W]. Their outlines are polygons within 0.75 px of the mask, so this is, too."""
    table: list[dict[str, Any]] = json.loads(findings) if isinstance(findings, str) else findings
    mask = np.zeros((height, width), np.uint8)
    for finding in table:
        inside = np.zeros_like(mask)
        cv2.fillPoly(inside, [np.array(finding["polygon"], np.int32)], 1)
        for hole in finding.get("holes", ()):
            ring = np.array(hole, np.int32)  # its points are pixels of the region around it
            cv2.fillPoly(inside, [ring], 0)
            cv2.polylines(inside, [ring], True, 1)
        mask |= inside
    return mask.astype(bool)
