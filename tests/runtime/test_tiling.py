"""Tiles cover a frame exactly, and putting them together changes nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agvas_core.contract.manifest import TilingSpec
from agvas_core.contract.preprocess import ViewSpec, scaled_views, view_size
from agvas_runtime.images.tiling import Blend, Tiles, plan_scales, plan_tiles

VIEW = ViewSpec(fit="area", size_px=64, multiple_px=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

sides = st.integers(1, 900)
overlaps = st.floats(0.01, 0.49)


def plan(height: int, width: int, overlap: float = 0.25) -> Tiles:
    return plan_tiles(height, width, VIEW, TilingSpec(max_downscale=3.0, overlap=overlap))


def weight_sum(tiles: Tiles) -> np.ndarray:
    blend = Blend(tiles.height, tiles.width, 1)
    for tile in tiles:
        blend.add(tile, [np.ones(tiles.size, np.float32)])
    return blend.maps[0]


@settings(max_examples=80, deadline=None)
@given(sides, sides, overlaps)
def test_a_constant_map_stays_constant_and_no_pixel_is_left_out(height: int, width: int, overlap: float) -> None:
    assert np.abs(weight_sum(plan(height, width, overlap)) - 1).max() < 1e-6


@settings(max_examples=80, deadline=None)
@given(sides, sides, overlaps)
def test_tiles_are_equal_and_lie_inside_the_frame(height: int, width: int, overlap: float) -> None:
    tiles = plan(height, width, overlap)
    for tile in tiles:
        assert tile.rows.start >= 0 and tile.rows.stop <= height
        assert tile.columns.start >= 0 and tile.columns.stop <= width
        assert (tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start) == tiles.size
        assert tile.row_weight.min() >= -1e-6 and tile.column_weight.min() >= -1e-6


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 700), st.integers(2, 700))
def test_blended_crops_of_a_map_are_the_map(height: int, width: int) -> None:
    rows, columns = np.mgrid[:height, :width]
    whole = (5 * np.sin(rows / 17) + 3 * np.cos(columns / 23) - rows * columns / 1e5).astype(np.float32)
    tiles = plan(height, width)
    blend = Blend(tiles.height, tiles.width, 2)
    for tile in tiles:
        crop = whole[tile.rows, tile.columns]
        blend.add(tile, [crop.copy(), -crop])
    np.testing.assert_allclose(blend.maps[0], whole, atol=1e-5)
    np.testing.assert_allclose(blend.maps[1], -whole, atol=1e-5)


def test_a_step_between_two_tiles_is_spread_over_their_overlap() -> None:
    tiles = plan(100, 600)
    blend = Blend(tiles.height, tiles.width, 1)
    for index, tile in enumerate(tiles):
        blend.add(tile, [np.full(tiles.size, float(index), np.float32)])
    assert len(tiles) > 2
    assert np.abs(np.diff(blend.maps[0], axis=1)).max() < 0.1  # a hard seam would be a jump of 1


@settings(max_examples=60, deadline=None)
@given(st.integers(64, 3000), st.integers(64, 3000))
def test_no_tile_is_shrunk_much_more_than_allowed(height: int, width: int) -> None:
    tiles = plan(height, width)
    shown = view_size(VIEW, *tiles.size)
    # Rounding to multiples of 16 px in a view of 64 px can take a third away.
    assert max(tiles.size[0] / shown[0], tiles.size[1] / shown[1]) <= 3.0 * 1.35


def test_a_frame_that_fits_is_one_tile() -> None:
    assert len(plan(192, 192)) == 1
    assert len(plan(193, 400)) > 1
    assert [len(look.tiles) for look in plan_scales(5000, 5000, [VIEW], TilingSpec(), enabled=False)] == [1]


def test_a_long_strip_is_cut_along_its_length_only() -> None:
    tiles = plan(40, 20_000)
    assert tiles.size[0] == 40
    assert len(tiles.tops) == 1 and len(tiles.lefts) > 50
    assert tiles.lefts[-1] + tiles.size[1] == 20_000


@pytest.mark.parametrize("length", [193, 336, 337, 500, 1000])
def test_neighbours_share_about_the_asked_overlap(length: int) -> None:
    tiles = plan(length, length)
    shared = [tiles.size[1] - (right - left) for left, right in zip(tiles.lefts, tiles.lefts[1:], strict=False)]
    assert min(shared) >= 0.2 * tiles.size[1]


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.lists(st.sampled_from([0.25, 0.5, 0.51, 1.0, 1.5, 2.0]), min_size=1, max_size=4, unique=True))
def test_every_scale_shows_the_whole_frame_and_the_finest_its_tiles_too(height: int, width: int, scales: list[float]) -> None:
    views = scaled_views(VIEW, tuple(scales), height, width)
    assert [view.size_px for view in views] == sorted((view.size_px for view in views), reverse=True)
    assert views[0].size_px == round(64 * max(scales))
    shown = [view_size(view, height, width) for view in views]
    assert len(set(shown)) == len(shown) and all(side % VIEW.multiple_px == 0 for size in shown for side in size)
    looks = plan_scales(height, width, views, TilingSpec(max_downscale=3.0))
    wholes = [look for look in looks if len(look.tiles) == 1]
    assert [look.view for look in wholes] == views
    assert looks == wholes or (looks[1:] == wholes and looks[0].view == views[0])
    blend = Blend(height, width, 1)
    for look in looks:
        for tile in look.tiles:
            blend.add(tile, [np.ones(look.tiles.size, np.float32)], look.share)
    assert np.abs(blend.maps[0] - 1).max() < 1e-5


def test_scales_of_a_frame_that_fits_count_alike() -> None:
    looks = plan_scales(192, 192, scaled_views(VIEW, (0.5, 1.0), 192, 192), TilingSpec())
    assert [(len(look.tiles), look.share) for look in looks] == [(1, 0.5), (1, 0.5)]


def test_the_larger_the_frame_the_more_its_tiles_count() -> None:
    shares = []
    for side in (200, 600, 2000, 6000):
        looks = plan_scales(side, side, scaled_views(VIEW, (0.5, 1.0), side, side), TilingSpec())
        assert len(looks[0].tiles) > 1 and looks[1].share > looks[2].share  # then the finer whole, then the coarser
        shares.append(looks[0].share)
    assert shares == sorted(shares) and shares[-1] > 0.9


def test_a_finer_view_needs_no_tiles_where_a_coarser_one_would() -> None:
    fine, coarse = scaled_views(VIEW, (1.0, 2.0), 300, 300)
    assert len(plan_scales(300, 300, [coarse], TilingSpec())[0].tiles) > 1
    assert [len(look.tiles) for look in plan_scales(300, 300, [fine, coarse], TilingSpec())] == [1, 1]
