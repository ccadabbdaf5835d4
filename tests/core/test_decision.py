"""One rule makes masks; here it is written out again as plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pydantic import ValidationError

from agvas_core.contract.decision import BALANCED, STRICT, Decision, OperatingPoint, anomaly_mask, find_candidates
from agvas_core.contract.errors import UsageError

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]

# Few values, so that ties with the thresholds and regions that touch at corners come often.
maps = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0.0, 0.25, 0.5, 0.625, 0.75, 1.0])
)
levels = st.sampled_from([0.25, 0.5, 0.625, 0.75])
areas = st.sampled_from([0.0, 0.05, 0.1, 0.3])


def by_loops(score_map: Map, threshold: float, seed: float, least: float) -> Mask:
    """Floods from every seed through the pixels above the threshold."""
    height, width = score_map.shape
    mask, done = np.zeros((height, width), bool), set[tuple[int, int]]()
    for start in zip(*np.nonzero(score_map > seed), strict=True):
        region, waiting = set[tuple[int, int]](), [(int(start[0]), int(start[1]))]
        while waiting:
            y, x = waiting.pop()
            if not (0 <= y < height and 0 <= x < width) or (y, x) in region or not score_map[y, x] > threshold:
                continue
            region.add((y, x))
            waiting += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        if region and not region & done and len(region) >= least * score_map.size:
            done |= region
            mask[tuple(zip(*region, strict=True))] = True
    return mask


@settings(max_examples=300, deadline=None)
@given(maps, levels, levels, areas)
def test_the_mask_is_what_hangs_together_with_a_seed_and_is_large_enough(
    score_map: Map, one: float, other: float, least: float
) -> None:
    threshold, seed = sorted((one, other))
    point = OperatingPoint(threshold=threshold, seed_threshold=seed, min_area_fraction=least)
    np.testing.assert_array_equal(anomaly_mask(score_map, point), by_loops(score_map, threshold, seed, least))


@settings(max_examples=100, deadline=None)
@given(maps, levels)
def test_the_default_and_any_plain_point_are_the_papers_rule(score_map: Map, threshold: float) -> None:
    np.testing.assert_array_equal(anomaly_mask(score_map, OperatingPoint()), score_map > 0.5)
    np.testing.assert_array_equal(anomaly_mask(score_map, OperatingPoint().at(threshold)), score_map > threshold)


@settings(max_examples=100, deadline=None)
@given(maps, areas)
def test_a_higher_seed_takes_whole_regions_and_leaves_the_others_as_they_are(score_map: Map, least: float) -> None:
    low, high = (
        anomaly_mask(score_map, OperatingPoint(threshold=0.25, seed_threshold=seed, min_area_fraction=least))
        for seed in (0.5, 0.75)
    )
    assert not (high & ~low).any()
    window, labels, count, _ = find_candidates(score_map, 0.25)
    for label in range(1, len(count) + 1):
        assert high[window][labels == label].all() or not high[window][labels == label].any()


def test_the_gate_shuts_out_what_the_language_model_refuses_and_nothing_else() -> None:
    score_map = np.full((4, 4), 0.9, np.float32)
    for accept, gate, found in ((0.0, 0.0, True), (0.49, 0.5, False), (0.5, 0.5, True), (1.0, 1.0, True), (0.0, 0.01, False)):
        assert anomaly_mask(score_map, OperatingPoint(gate=gate), accept).any() == found


def test_a_map_that_is_a_view_of_another_has_the_same_mask() -> None:
    rng = np.random.default_rng(0)
    score_map = rng.random((12, 17), np.float32)
    point = OperatingPoint(threshold=0.5, seed_threshold=0.9, min_area_fraction=0.02)
    wanted = anomaly_mask(score_map, point)
    assert wanted.any() and not wanted.all()
    for view in (np.asfortranarray(score_map), np.repeat(score_map, 2, 1)[:, ::2], score_map[::-1][::-1]):
        np.testing.assert_array_equal(anomaly_mask(view, point), wanted)


def test_candidates_know_area_and_peak_of_every_region() -> None:
    score_map = np.zeros((20, 30), np.float32)
    score_map[3:5, 4:9], score_map[12:15, 20:25] = 0.6, 0.7
    score_map[4, 8] = 0.95
    window, labels, areas, peaks = find_candidates(score_map, 0.5)
    assert (window[0], window[1]) == (slice(3, 15), slice(4, 25)) and labels.shape == (12, 21)
    assert sorted(zip(areas.tolist(), (100 * peaks).round().tolist(), strict=True)) == [(10, 95), (15, 70)]
    nothing = find_candidates(score_map, 0.99)
    assert nothing.areas.size == nothing.peaks.size == nothing.labels.size == 0


def test_a_seed_below_the_threshold_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"seed_threshold 0\.4 is below threshold 0\.6"):
        OperatingPoint(threshold=0.6, seed_threshold=0.4)


def test_an_operating_point_that_is_not_there_is_named_with_those_that_are() -> None:
    decision = Decision()
    assert decision.point() == decision.point(BALANCED) == OperatingPoint()
    with pytest.raises(UsageError, match=r"no operating point 'strict'; it has balanced: .*--calibrate-only"):
        decision.point(STRICT)
    with pytest.raises(ValidationError, match="balanced is needed"):
        Decision(operating_points={STRICT: OperatingPoint()})


def test_one_threshold_and_one_least_area_of_before_are_the_balanced_point() -> None:
    old = Decision.model_validate({"alpha": 0.4, "threshold": 0.3, "min_area_fraction": 0.01})
    assert old.alpha == 0.4
    assert old.operating_points == {BALANCED: OperatingPoint(threshold=0.3, seed_threshold=0.3, min_area_fraction=0.01)}
    assert Decision.model_validate(old.model_dump()) == old
