"""Connected regions of a mask: position, size and score of each."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.decision import OperatingPoint, anomaly_mask, image_score, outline_threshold
from agvas_runtime import native
from agvas_runtime.masks.result import Region

__all__ = ["find_regions", "judge_map", "native_regions", "native_rule"]

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
    return sorted(regions, key=_by_size)


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
    polygon, holes = _outlines(inside.astype(np.uint8), (x, y))
    return Region(
        polygon=polygon,
        holes=holes,
        box=(x, y, width, height),
        area_px=area,
        centroid=(float(centroid[0]) + origin[0], float(centroid[1]) + origin[1]),
        mean_score=float(scores.mean(dtype=np.float64)),
        max_score=float(scores.max()),
    )


def _outlines(inside: NDArray[np.uint8], origin: tuple[int, int]) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Outer contour and holes of one region, from its pixels within its box [h, w] that begins at ``origin`` = (x, y)."""
    contours, hierarchy = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=origin)
    outlines: list[list[list[int]]] = [
        np.asarray(cv2.approxPolyDP(contour, SIMPLIFY_PX, closed=True), np.int32).reshape(-1, 2).tolist() for contour in contours
    ]
    parents = np.asarray(hierarchy).reshape(-1, 4)[:, 3]  # -1: an outer contour, of which one component has exactly one
    outer = next(outline for outline, parent in zip(outlines, parents, strict=True) if parent < 0)
    return outer, [outline for outline, parent in zip(outlines, parents, strict=True) if parent >= 0]


def _by_size(region: Region) -> tuple[int, tuple[int, int, int, int]]:
    return -region.area_px, region.box


def judge_map(
    score_map: NDArray[np.float32], point: OperatingPoint, accept: float = 1.0
) -> tuple[NDArray[np.bool_], list[Region]]:
    """Mask, bool [H, W], and regions of a score map, float32 [H, W], by the rule of ``contract.decision``."""
    if native.core is None:
        mask = anomaly_mask(score_map, point, accept)
        return mask, find_regions(mask, score_map)
    if point.image_share:
        score = image_score(score_map, point)
        if score <= point.seed_threshold:
            return np.zeros(score_map.shape, np.bool_), []
        point = point.model_copy(update={"threshold": outline_threshold(point, score), "image_share": 0.0})
    mask = np.empty(score_map.shape, np.bool_)
    rule = native_rule(point, accept, score_map.size)
    _, found = native.core.judge_map(np.ascontiguousarray(score_map), rule, mask.view(np.uint8))
    return mask, native_regions(found)


def native_rule(point: OperatingPoint, accept: float, pixels: int) -> tuple[float, float, float, bool]:
    """An operating point as the native core takes it, for a frame of so many pixels."""
    return point.threshold, point.seed_threshold, point.min_area_fraction * pixels, accept >= point.gate


def native_regions(found: list[Any]) -> list[Region]:
    """Regions, largest first, of what the native core found."""
    regions = []
    for box, area_px, centroid, mean_score, max_score, _, inside in found:
        polygon, holes = _outlines(inside, box[:2])
        regions.append(Region(polygon, holes, box, area_px, centroid, mean_score, max_score))
    return sorted(regions, key=_by_size)
