"""Connected anomalies of a mask: where each one lies, how large it is, how sure the model was."""

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_runtime.result import Region

__all__ = ["find_regions"]

SIMPLIFY_PX = 0.75  # a polygon strays from the outline by no more than this


def find_regions(mask: NDArray[np.bool_], score_map: NDArray[np.float32]) -> list[Region]:
    """Regions of a mask, largest first.

    Args:
        mask: bool [H, W]; ``contract.decision`` has the rule that makes it.
        score_map: float32 [H, W], read for the mean and highest score of each region.

    Pixels that touch at a corner belong together (8-connectivity). Coordinates are those of pixel centres: a region of one pixel
    is a polygon of one point, a straight line one pixel wide has two.
    """
    x0, y0, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if width == 0:
        return []
    part = np.s_[y0 : y0 + height, x0 : x0 + width]  # anomalies are small: labelling all of a large frame is the slow part
    count, found, stats, centroids = cv2.connectedComponentsWithStats(
        mask[part].astype(np.uint8), connectivity=8, ltype=cv2.CV_32S
    )
    labels = np.asarray(found, np.int32)  # [h, w]
    regions = [
        _region(labels, label, stats[label], centroids[label], score_map[part], (x0, y0))
        for label in range(1, count)  # label 0 is what lies outside the mask
    ]
    return sorted(regions, key=lambda region: (-region.area_px, region.box))


def _region(
    labels: NDArray[np.int32],
    label: int,
    stats: NDArray[np.int32],
    centroid: NDArray[np.float64],
    score_map: NDArray[np.float32],
    origin: tuple[int, int],
) -> Region:
    """One region of a part of the frame whose first pixel is ``origin`` = (x, y)."""
    x, y, width, height, area = (int(value) for value in stats)
    window = np.s_[y : y + height, x : x + width]
    inside = labels[window] == label
    scores = score_map[window][inside]
    x, y = x + origin[0], y + origin[1]
    contours, hierarchy = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y))
    outlines = [cv2.approxPolyDP(contour, SIMPLIFY_PX, closed=True).reshape(-1, 2).tolist() for contour in contours]
    parents = np.asarray(hierarchy).reshape(-1, 4)[:, 3]  # -1: an outer contour, of which one component has exactly one
    return Region(
        polygon=next(outline for outline, parent in zip(outlines, parents, strict=True) if parent < 0),
        holes=[outline for outline, parent in zip(outlines, parents, strict=True) if parent >= 0],
        box=(x, y, width, height),
        area_px=area,
        centroid=(float(centroid[0]) + origin[0], float(centroid[1]) + origin[1]),
        mean_score=float(scores.mean(dtype=np.float64)),
        max_score=float(scores.max()),
    )
