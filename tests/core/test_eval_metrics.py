"""Ranking metrics: those of scikit-learn and of plain loops, ties and all, however little memory there is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from agvas_core.evaluation.metrics import (
    Ranking,
    Run,
    auroc,
    caught,
    make_run,
    mean_of,
    merge,
    open_run,
    rank,
    remove_run,
    run_is_there,
    save_run,
)

Maps = list[tuple[NDArray[np.float32], NDArray[np.uint32]]]
"""Scores and region areas (0 where normal) of each image, flat."""


def rank_of(maps: Maps, chunk: int = 1 << 20) -> Ranking:
    runs = [make_run(scores, areas > 0, areas) for scores, areas in maps]
    areas = np.concatenate([area for _, area in maps])
    regions = round(float(np.sum(1.0 / areas[areas > 0])))
    return rank(merge(runs, chunk), normal=int((areas == 0).sum()), anomalous=int((areas > 0).sum()), regions=regions)


@st.composite
def tied_maps(draw: st.DrawFn) -> Maps:
    """A few images of few distinct scores, negative ones and zeros of both signs among them, with regions of 1 to 5 pixels."""
    levels = np.array(draw(st.lists(st.sampled_from([-2.0, -0.0, 0.0, 1e-30, 0.1, 0.5, 0.7, 1.0, 33.0]), min_size=1)), np.float32)
    maps = []
    for _ in range(draw(st.integers(1, 4))):
        region_sizes = draw(st.lists(st.integers(1, 5), max_size=3))
        areas = np.repeat([*region_sizes, 0], [*region_sizes, draw(st.integers(0, 20))]).astype(np.uint32)
        picks = draw(st.lists(st.integers(0, len(levels) - 1), min_size=len(areas), max_size=len(areas)))
        maps.append((levels[np.array(picks, int)], areas))
    return maps


def by_plain_loops(maps: Maps) -> dict[str, float | None]:
    """Every threshold in turn, as the definitions say."""
    scores = np.concatenate([score for score, _ in maps]).astype(float)
    areas = np.concatenate([area for _, area in maps])
    positive = areas > 0
    p, n = int(positive.sum()), int((~positive).sum())
    regions = sum(1.0 / area for area in areas[positive])
    ap = f1 = roc = pro_area = 0.0
    recall = fpr = pro = 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        found = scores >= threshold
        tp, fp = int((found & positive).sum()), int((found & ~positive).sum())
        if p:
            ap += (tp / p - recall) * tp / (tp + fp)
            f1 = max(f1, 2 * tp / (2 * tp + fp + p - tp))
        if p and n:
            share = sum(1.0 / area for area in areas[found & positive]) / regions
            roc += (fp / n - fpr) * (tp / p + recall) / 2
            if fpr < 0.3:
                end = min(fp / n, 0.3)
                at_end = share if fp / n <= 0.3 else pro + (share - pro) * (0.3 - fpr) / (fp / n - fpr)
                pro_area += (end - fpr) * (pro + at_end) / 2
            pro = share
            fpr = fp / n
        recall = tp / p if p else 0.0
    both = bool(p and n)
    return {
        "ap": ap if p else None,
        "f1_max": f1 if p else None,
        "auroc": roc if both else None,
        "aupro": pro_area / 0.3 if both else None,
    }


@settings(max_examples=60, deadline=None)
@given(maps=tied_maps(), chunk=st.integers(1, 12))
def test_metrics_are_those_of_plain_loops_in_whatever_pieces_they_are_summed(maps: Maps, chunk: int) -> None:
    expected = by_plain_loops(maps)
    for found in (rank_of(maps), rank_of(maps, chunk)):
        for key, value in expected.items():
            assert getattr(found, key) == pytest.approx(value, abs=1e-12), key


@settings(max_examples=40, deadline=None)
@given(maps=tied_maps(), chunk=st.integers(1, 12))
def test_a_merge_yields_each_score_once_from_the_highest_down_and_loses_no_pixel(maps: Maps, chunk: int) -> None:
    steps = list(merge([make_run(scores, areas > 0, areas) for scores, areas in maps], chunk))
    scores = np.concatenate([step.scores for step in steps]) if steps else np.empty(0)
    assert np.all(np.diff(scores) < 0)
    everything = np.concatenate([score for score, _ in maps])
    assert sum(int(step.normal.sum() + step.anomalous.sum()) for step in steps) == len(everything)
    assert set(scores.tolist()) == set(everything.tolist())


def test_no_step_holds_more_pixels_than_memory_was_given_though_millions_tie() -> None:
    scores = np.zeros(1_000_000, np.float32)
    scores[:500] = np.linspace(0.1, 1, 500)
    areas = np.zeros(len(scores), np.uint32)
    areas[:300] = 300
    areas[-300:] = 300
    steps = list(merge([make_run(scores, areas > 0, areas)] * 3, chunk=60))
    assert max(len(step.scores) for step in steps) <= 60
    assert sum(int(step.normal.sum()) for step in steps) == 3 * (1_000_000 - 600)
    assert sum(float(step.weight.sum()) for step in steps) == pytest.approx(6)


@pytest.mark.parametrize("decimals", [2, 7])
def test_metrics_are_those_of_scikit_learn(decimals: int) -> None:
    metrics: Any = pytest.importorskip("sklearn.metrics")
    chance = np.random.default_rng(decimals)
    areas = (chance.random(40_000) < 0.03).astype(np.uint32)
    scores = np.round(chance.normal(areas * 0.8), decimals).astype(np.float32)
    found = rank_of(list(zip(np.split(scores, 5), np.split(areas, 5), strict=True)), chunk=777)
    assert found.ap == pytest.approx(metrics.average_precision_score(areas, scores), abs=1e-12)
    assert found.auroc == pytest.approx(metrics.roc_auc_score(areas, scores), abs=1e-12)
    assert found.f1_threshold is not None
    assert found.f1_max == pytest.approx(metrics.f1_score(areas, scores >= found.f1_threshold), abs=1e-12)
    assert auroc(scores, areas > 0) == pytest.approx(found.auroc, abs=1e-12)


def test_the_curve_is_short_rises_in_recall_and_ends_with_everything_found() -> None:
    chance = np.random.default_rng(0)
    areas = (chance.random(50_000) < 0.1).astype(np.uint32)
    curve = rank_of([(chance.random(50_000).astype(np.float32), areas)], chunk=1000).curve
    recalls = [recall for recall, _ in curve]
    assert 200 <= len(curve) <= 251
    assert recalls == sorted(recalls) and recalls[-1] == 1.0
    assert all(precision == pytest.approx(0.1, abs=0.05) for recall, precision in curve if recall > 0.1)


def test_what_does_not_exist_is_none_and_not_zero() -> None:
    scores = np.array([0.1, 0.9], np.float32)
    only_good = rank_of([(scores, np.zeros(2, np.uint32))])
    assert (only_good.ap, only_good.f1_max, only_good.auroc, only_good.aupro) == (None, None, None, None)
    only_bad = rank_of([(scores, np.full(2, 2, np.uint32))])
    assert (only_bad.ap, only_bad.auroc, only_bad.aupro) == (1.0, None, None)
    assert mean_of([None, 0.5, None, 1.0]) == 0.75 and mean_of([None]) is None


def test_small_regions_count_as_much_as_large_ones_in_aupro() -> None:
    # A region of 9 pixels is found, one of 1 pixel is not: half of the regions, nine tenths of the pixels.
    areas = np.array([9] * 9 + [1] + [0] * 90, np.uint32)
    scores = np.concatenate([np.ones(9), [0.0], np.linspace(0.1, 0.5, 90)]).astype(np.float32)
    assert rank_of([(scores, areas)]).aupro == pytest.approx(0.5)


def test_a_run_on_disk_is_the_run_in_memory(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    scores = chance.random((30, 20)).astype(np.float32)
    truth = chance.random((30, 20)) < 0.2
    run = make_run(scores, truth, np.where(truth, 7, 0).astype(np.uint32))
    stem = tmp_path / "one"
    assert not run_is_there(stem)
    save_run(stem, run)
    back = open_run(stem)
    assert run_is_there(stem) and isinstance(back.normal, np.memmap)
    for part in ("normal", "anomalous", "area"):
        assert np.array_equal(getattr(back, part), getattr(run, part))
    remove_run(stem)
    assert list(tmp_path.iterdir()) == []


def test_an_image_without_anomalous_pixels_can_be_saved_as_well(tmp_path: Path) -> None:
    empty = Run(np.arange(3, dtype=np.float32), np.empty(0, np.float32), np.empty(0, np.uint32))
    save_run(tmp_path / "good", empty)
    assert len(open_run(tmp_path / "good").anomalous) == 0


def test_caught_is_the_share_above_a_quantile_of_the_good_ones() -> None:
    good, bad = np.linspace(0, 1, 21, dtype=np.float32), np.array([0.5, 0.94, 0.97, 1.0, 2.0], np.float32)
    scores = np.concatenate([good, bad])
    positive = np.arange(len(scores)) >= len(good)
    assert caught(scores, positive, 0.0) == 1 / 5  # a tie with the highest good one passes
    assert caught(scores, positive, 0.05) == 3 / 5  # above 0.95
    assert caught(scores[positive], positive[positive], 0.05) is None
    assert caught(good, np.zeros(len(good), bool), 0.05) is None
