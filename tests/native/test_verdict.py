"""From logits to verdicts: the native core and the NumPy path give one answer."""

from types import ModuleType

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agvas_core.contract.certificate import TOLERANCES
from agvas_core.contract.decision import OperatingPoint, anomaly_mask
from agvas_core.contract.manifest import TilingSpec
from agvas_core.contract.preprocess import View, ViewSpec, make_view
from agvas_runtime import native
from agvas_runtime.images.tiling import plan_scales, plan_tiles
from agvas_runtime.masks.regions import find_regions, judge_map
from agvas_runtime.masks.result import Region
from agvas_runtime.pipeline.frame_logits import FrameLogits, Judged

NEAR = TOLERANCES["native"].probability
HALF = (0.5, 0.5, 0.5)
SIDE = st.integers(1, 120)
POINTS = st.builds(
    lambda threshold, more, area, gate: OperatingPoint(
        threshold=threshold, seed_threshold=min(0.99, threshold + more), min_area_fraction=area, gate=gate
    ),
    st.floats(0.05, 0.9),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.sampled_from([0.0, 0.002, 0.05]),
    st.sampled_from([0.0, 0.5]),
)


def blobs(rng: np.random.Generator, high: int, wide: int, spread: float = 1.5) -> np.ndarray:
    noise = rng.normal(-0.2, 1.0, (high, wide)).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), spread).reshape(high, wide) * np.float32(20)


def same_regions(found: list[Region], expected: list[Region]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.box, a.area_px, a.polygon, a.holes, a.max_score) == (b.box, b.area_px, b.polygon, b.holes, b.max_score)
        np.testing.assert_allclose([*a.centroid, a.mean_score], [*b.centroid, b.mean_score], rtol=1e-9)


@settings(deadline=None, max_examples=120)
@given(height=SIDE, width=SIDE, point=POINTS, accept=st.sampled_from([0.2, 1.0]), rough=st.booleans(), seed=st.integers(0, 999))
def test_masks_and_regions_of_a_score_map_are_the_rules_own(
    height: int, width: int, point: OperatingPoint, accept: float, rough: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    score_map = rng.random((height, width), np.float32) if rough else 1 / (1 + np.exp(-blobs(rng, height, width)))
    score_map = np.float32(np.round(score_map, 2))  # so that many pixels lie on a threshold
    mask, regions = judge_map(score_map, point, accept)
    expected = anomaly_mask(score_map, point, accept)
    np.testing.assert_array_equal(mask, expected)
    same_regions(regions, find_regions(expected, score_map))


@settings(deadline=None, max_examples=60)
@given(height=SIDE, width=SIDE, seed=st.integers(0, 999))
def test_length_and_breadth_are_those_of_the_tightest_rectangle(core: ModuleType, height: int, width: int, seed: int) -> None:
    score_map = np.float32(1 / (1 + np.exp(-blobs(np.random.default_rng(seed), height, width))))
    mask = np.empty(score_map.shape, np.uint8)
    for (x, y, wide, high), area, _, _, _, (length, breadth), inside in core.judge_map(score_map, (0.5, 0.5, 0, True), mask)[1]:
        rows, columns = np.nonzero(inside)
        assert len(rows) == area and inside.shape == (high, wide)
        _, sides, _ = cv2.minAreaRect(np.stack([columns + x, rows + y], axis=1).astype(np.float32))
        # Where two rectangles are as tight, the two may choose differently.
        assert (length - 1) * (breadth - 1) == pytest.approx(sides[0] * sides[1], rel=1e-4, abs=1e-3)
        assert length >= breadth >= 1


def both(monkeypatch: pytest.MonkeyPatch, logits: FrameLogits, point: OperatingPoint) -> tuple[Judged, Judged]:
    found = logits.judge(0.4, point, 1.0)
    np.testing.assert_array_equal(logits.score_map(0.4), found.score_map)
    with monkeypatch.context() as patch:
        patch.setattr(native, "core", None)
        return found, logits.judge(0.4, point, 1.0)


def agree(found: Judged, expected: Judged, point: OperatingPoint) -> None:
    assert float(np.abs(found.score_map - expected.score_map).max()) <= NEAR
    assert abs(found.score - expected.score) <= NEAR
    np.testing.assert_array_equal(found.mask, anomaly_mask(found.score_map, point))
    if not (np.abs(expected.score_map - point.threshold) <= NEAR).any():
        np.testing.assert_array_equal(found.score_map > point.threshold, expected.score_map > point.threshold)


@pytest.mark.parametrize("seed", range(8))
def test_whole_views_at_two_scales_and_with_padding(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 400, 2))
    fit = ["area", "letterbox"][seed % 2]
    views = [ViewSpec(fit=fit, size_px=size, multiple_px=8, mean=HALF, std=HALF) for size in (96, 48)]  # type: ignore[arg-type]
    logits, image = FrameLogits(height, width), np.zeros((height, width, 3), np.uint8)
    for look in plan_scales(height, width, views, TilingSpec(), enabled=False):
        view = make_view(look.view, image)
        cells = [max(1, side // 4) for side in view.pixels.shape[:2]]
        layers = np.stack([blobs(rng, *cells) for _ in range(3)])
        logits.add(next(iter(look.tiles)), view, layers, look.tiles.size, look.share)
    point = OperatingPoint(threshold=0.4, seed_threshold=0.6)
    found, expected = both(monkeypatch, logits, point)
    agree(found, expected, point)
    same = [(region.box, region.area_px) for region in found.regions]
    assert same == [(region.box, region.area_px) for region in expected.regions]


def test_tiles_come_together_without_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    view = ViewSpec(fit="area", size_px=64, multiple_px=8, mean=HALF, std=HALF)
    tiles = plan_tiles(500, 700, view, TilingSpec())
    assert len(tiles) > 4
    rng, logits = np.random.default_rng(0), FrameLogits(500, 700)
    shown = View(np.zeros((64, 64, 3), np.uint8), (64, 64))
    for tile in tiles:
        logits.add(tile, shown, np.stack([blobs(rng, 16, 16) for _ in range(3)]), tiles.size, 0.7)
    point = OperatingPoint(threshold=0.3, seed_threshold=0.5)
    agree(*both(monkeypatch, logits, point), point)

    flat = FrameLogits(500, 700)
    for tile in tiles:
        flat.add(tile, shown, np.zeros((3, 16, 16), np.float32), tiles.size)
    np.testing.assert_array_equal(flat.score_map(0.5), np.float32(0.5))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(
    core: ModuleType, instructions: str, threads: int
) -> None:
    rng = np.random.default_rng(9)
    parts = [(*(blobs(rng, 24, 31) for _ in range(2)), (301, 407), (0, 0, 301, 407), share, None, None) for share in (0.6, 0.4)]
    maps, rule = [], (0.4, 0.5, 0.0, True)
    for isa, count in (("baseline", 1), (instructions, threads)):
        assert core.use_instructions(isa)
        score_map, mask = np.empty((301, 407), np.float32), np.empty((301, 407), np.uint8)
        score, regions = core.judge_parts(parts, 0.5, 0.5, rule, score_map, mask, threads=count)
        assert score == score_map.max() and len(regions) > 1
        maps.append(score_map)
    np.testing.assert_array_equal(*maps)


def test_extreme_logits_stay_probabilities(core: ModuleType) -> None:
    for value, expected in ((3e38, 1.0), (-3e38, 0.0), (0.0, 0.5)):
        cells, score_map = np.full((2, 2), value, np.float32), np.empty((9, 9), np.float32)
        core.score_map([(cells, cells, (9, 9), (0, 0, 9, 9), 1.0, None, None)], 0.3, 0.7, score_map)
        assert np.isfinite(score_map).all()
        np.testing.assert_allclose(score_map, expected, atol=1e-7)


def test_buffers_that_do_not_fit_are_refused(core: ModuleType) -> None:
    cells, score_map = np.zeros((4, 4), np.float32), np.empty((9, 9), np.float32)
    rule = (0.5, 0.5, 0.0, True)
    for wrong in [
        (cells, cells, (9, 9), (1, 0, 9, 9), 1.0, None, None),
        (cells, cells, (8, 9), (0, 0, 9, 9), 1.0, None, None),
        (cells, cells[:3], (9, 9), (0, 0, 9, 9), 1.0, None, None),
        (cells, cells, (9, 9), (0, 0, 9, 9), 1.0, np.ones(8, np.float32), np.ones(9, np.float32)),
        (cells, cells, (9, 9), (0, 0, 9, 9), 1.0, None, np.ones(9, np.float32)),
    ]:
        with pytest.raises(ValueError):
            core.score_map([wrong], 0.5, 0.5, score_map)
    with pytest.raises(ValueError):
        core.judge_map(score_map, rule, np.empty((9, 8), np.uint8))
