"""Regions tell the mask again: their areas add up, their boxes hold them, their polygons draw it."""

import cv2
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from agvas_runtime.masks.regions import find_regions
from agvas_runtime.masks.result import Region

Mask = NDArray[np.bool_]

masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24)))
blobs = st.lists(st.tuples(st.integers(0, 79), st.integers(0, 79), st.integers(1, 15), st.booleans()), min_size=1, max_size=8)


def drawn(regions: list[Region], shape: tuple[int, ...]) -> Mask:
    canvas = np.zeros(shape, np.uint8)
    for region in regions:
        one = np.zeros(shape, np.uint8)
        cv2.fillPoly(one, [np.array(outline, np.int32) for outline in (region.polygon, *region.holes)], 1)
        canvas |= one
    return canvas.astype(bool)


def within_a_pixel(a: Mask, b: Mask) -> bool:
    square = np.ones((3, 3), np.uint8)
    grown_a, grown_b = (cv2.dilate(mask.astype(np.uint8), square).astype(bool) for mask in (a, b))
    return not (a & ~grown_b).any() and not (b & ~grown_a).any()


def mask_of(blobs: list[tuple[int, int, int, bool]]) -> Mask:
    canvas = np.zeros((80, 80), np.uint8)
    for x, y, radius, filled in blobs:
        cv2.circle(canvas, (x, y), radius, 1, -1 if filled else 2)
    return canvas.astype(bool)


@settings(max_examples=150, deadline=None)
@given(masks)
def test_areas_add_up_and_boxes_hold_their_regions(mask: Mask) -> None:
    score = np.linspace(0, 1, mask.size, dtype=np.float32).reshape(mask.shape)
    regions = find_regions(mask, score)
    assert sum(region.area_px for region in regions) == mask.sum()
    for region in regions:
        x, y, width, height = region.box
        assert region.polygon
        assert all(x <= px < x + width and y <= py < y + height for px, py in region.polygon)
        assert x <= region.centroid[0] < x + width and y <= region.centroid[1] < y + height
        assert 0 <= region.mean_score <= region.max_score <= 1
    assert [region.area_px for region in regions] == sorted((region.area_px for region in regions), reverse=True)


@settings(max_examples=100, deadline=None)
@given(blobs)
def test_polygons_draw_the_mask_within_a_pixel(blobs: list[tuple[int, int, int, bool]]) -> None:
    mask = mask_of(blobs)
    regions = find_regions(mask, mask.astype(np.float32))
    assert within_a_pixel(drawn(regions, mask.shape), mask)


def test_a_ring_has_its_hole() -> None:
    mask = np.zeros((40, 60), bool)
    mask[5:35, 10:50] = True
    mask[12:28, 20:40] = False
    (ring,) = find_regions(mask, np.full(mask.shape, 0.8, np.float32))
    assert len(ring.holes) == 1
    assert ring.box == (10, 5, 40, 30)
    assert ring.area_px == 30 * 40 - 16 * 20
    assert abs(ring.mean_score - 0.8) < 1e-6


def test_a_region_inside_the_hole_of_another_is_its_own() -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:35, 5:35] = True
    mask[10:30, 10:30] = False
    mask[18:22, 18:22] = True
    regions = find_regions(mask, mask.astype(np.float32))
    assert [region.area_px for region in regions] == [500, 16]
    assert [len(region.holes) for region in regions] == [1, 0]


def test_corners_that_touch_belong_together() -> None:
    mask = np.eye(7, dtype=bool)
    (line,) = find_regions(mask, mask.astype(np.float32))
    assert line.area_px == 7
    assert sorted(line.polygon) == [[0, 0], [6, 6]]


def test_the_smallest_region_is_one_pixel() -> None:
    mask = np.zeros((1, 1), bool)
    assert find_regions(mask, np.zeros((1, 1), np.float32)) == []
    (dot,) = find_regions(~mask, np.ones((1, 1), np.float32))
    assert dot.polygon == [[0, 0]] and dot.box == (0, 0, 1, 1) and dot.centroid == (0.0, 0.0)
