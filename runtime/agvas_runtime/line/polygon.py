"""Polygons of a recipe: what they must be, and the pixels they hold."""

from collections.abc import Iterable
from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

__all__ = ["Polygon", "filled"]

MAX_POINTS = 1000
MAX_PX = 100_000

Point = tuple[float, float]


def _checked(points: tuple[Point, ...]) -> tuple[Point, ...]:
    if not 3 <= len(points) <= MAX_POINTS:
        raise ValueError(f"a polygon of {len(points)} points; 3 to {MAX_POINTS} are needed, [[x, y], ...]")
    for x, y in points:
        if not (0 <= x <= MAX_PX and 0 <= y <= MAX_PX):
            raise ValueError(f"the point [{x:g}, {y:g}] lies outside 0 to {MAX_PX} px")
    edges = [(np.array(a), np.array(b)) for a, b in zip(points, points[1:] + points[:1], strict=True)]
    if (crossing := _crossing(edges)) is not None:
        raise ValueError(f"edges {crossing[0] + 1} and {crossing[1] + 1} cross: give the points in their order along the outline")
    if abs(sum(_cross(a, b) for a, b in edges)) < 1.0:
        raise ValueError("a polygon with no area: its points lie on one line")
    return points


Polygon = Annotated[tuple[Point, ...], AfterValidator(_checked)]
"""[[x, y], ...] in pixels of the frame, along the outline, either way round."""


def filled(polygons: Iterable[tuple[Point, ...]], height: int, width: int) -> NDArray[np.bool_]:
    """The pixels inside any of the polygons, bool [height, width]; pixel centres on the outline are inside."""
    mask = np.zeros((height, width), np.uint8)
    for polygon in polygons:  # one by one: together, OpenCV would cut out where two overlap
        cv2.fillPoly(mask, [np.round(np.array(polygon)).astype(np.int32)], 1)
    return mask.astype(bool)


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(a[0] * b[1] - a[1] * b[0])


def _crossing(edges: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> tuple[int, int] | None:
    """The first two edges that cross properly, or None."""
    begin = np.array([a for a, _ in edges])  # [N, 2]
    end = np.array([b for _, b in edges])

    def side(p: NDArray[np.float64], q: NDArray[np.float64], r: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.sign(
            (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0])
        )
        return found

    for index, (a, b) in enumerate(edges):
        apart = (side(begin, end, a) * side(begin, end, b) < 0) & (side(a, b, begin) * side(a, b, end) < 0)
        if apart.any():
            return index, int(np.flatnonzero(apart)[0])
    return None
