"""Pictures and curves of the page, as inline SVG."""

import base64
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.evaluation.image_score import ImageRecord
from agvas_core.evaluation.outlines import UNITS

__all__ = ["curve_figure", "overlaid", "picture"]

THUMBNAIL_PX = 260
JPEG_QUALITY = 78
CURVE_PX = 220


def picture(record: ImageRecord) -> str:
    """The image, small, with the outlines of truth and prediction over it."""
    image = cv2.imdecode(np.fromfile(record.image_path, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None, f"{record.image_path} was scored a moment ago, and is gone"
    # The image fills the box: under a protocol that resizes to a square it is as distorted as what was scored.
    return overlaid(image, [("truth", record.truth_outline), ("mask", record.mask_outline)], record.size)


def overlaid(image: NDArray[Any], outlines: Sequence[tuple[str, str]], size: tuple[int, int] | None = None) -> str:
    """An image, small, with outlines over it.

    Args:
        image: uint8 BGR [H, W, 3].
        outlines: class and path of each; empty ones are left out.
        size: height and width that the paths were made at; the image's own by default.
    """
    height, width = image.shape[:2] if size is None else size
    scale = UNITS / max(height, width)
    box = f"0 0 {width * scale:.0f} {height * scale:.0f}"
    lines = "".join(f'<path class="{name}" d="{path}"/>' for name, path in outlines if path)
    shown = f'<image href="{_thumbnail(image)}" width="100%" height="100%" preserveAspectRatio="none"/>'
    return f'<svg viewBox="{box}">{shown}{lines}</svg>'


def curve_figure(curve: Sequence[tuple[float, float]], ap: float | None) -> str:
    """Precision over recall; nothing where there is no curve."""
    if not curve or ap is None:
        return ""
    px, edge = CURVE_PX, 24
    points = [(0.0, curve[0][1]), *curve]
    line = " ".join(f"{edge + recall * px:.1f},{4 + (1 - precision) * px:.1f}" for recall, precision in points)
    grid = "".join(
        f'<path class="grid" d="M{edge} {4 + share * px:.0f}h{px}M{edge + share * px:.0f} 4v{px}"/>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    words = (
        f'<text x="{edge + px / 2}" y="{px + 22}" text-anchor="middle">recall</text>'
        f'<text transform="translate(12 {4 + px / 2}) rotate(-90)" text-anchor="middle">precision</text>'
        f'<text x="{edge + px - 6}" y="20" text-anchor="end">AP {100 * ap:.1f}</text>'
    )
    size = f'viewBox="0 0 {px + edge + 6} {px + 28}" width="{px + edge + 6}"'
    return f'<svg class="curve" {size} role="img">{grid}<polyline points="{line}"/>{words}</svg>'


def _thumbnail(image: NDArray[Any]) -> str:
    scale = min(1.0, THUMBNAIL_PX / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")
