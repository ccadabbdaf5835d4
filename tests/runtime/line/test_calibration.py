"""What calibration promises: of the good parts to come, no larger share is rejected than was said, as often as was said."""

import math

import numpy as np
import pytest
from scipy import stats

from agvas_core.contract.decision import OperatingPoint
from agvas_core.contract.errors import UsageError
from agvas_runtime.line.calibration.calibration import (
    Scores,
    allowed_rejects,
    binomial_at_most,
    calibrate,
    needed_parts,
    upper_bound,
)

POINT = OperatingPoint(threshold=0.05, seed_threshold=0.5)


@pytest.mark.parametrize(
    ("k", "n", "share"), [(0, 598, 0.005), (3, 1500, 0.005), (40, 100, 0.5), (0, 1, 0.99), (7, 7, 0.3), (-1, 5, 0.2)]
)
def test_the_binomial_is_scipys(k: int, n: int, share: float) -> None:
    assert binomial_at_most(k, n, share) == pytest.approx(stats.binom.cdf(k, n, share), rel=1e-9)


@pytest.mark.parametrize(("rejects", "n"), [(0, 10), (3, 600), (50, 60), (60, 60)])
def test_the_bound_is_clopper_and_pearsons(rejects: int, n: int) -> None:
    expected = 1.0 if rejects == n else stats.beta.ppf(0.95, rejects + 1, n - rejects)
    assert upper_bound(rejects, n, 0.95) == pytest.approx(expected, abs=1e-9)


def test_the_least_number_of_parts_is_the_least() -> None:
    assert needed_parts(0.005, 0.95) == 598
    assert allowed_rejects(598, 0.005, 0.95) == 0
    assert allowed_rejects(597, 0.005, 0.95) is None
    for n in (598, 1000, 5000, 50_000):
        allowed = allowed_rejects(n, 0.005, 0.95)
        assert allowed is not None
        assert stats.binom.cdf(allowed, n, 0.005) <= 0.05 < stats.binom.cdf(allowed + 1, n, 0.005)


@pytest.mark.parametrize("spread", ["beta", "heavy ties", "bimodal"])
@pytest.mark.parametrize("areas", [1, 4])
def test_the_promise_is_kept_as_often_as_was_said(spread: str, areas: int) -> None:
    rng, broken, draws = np.random.default_rng(0), 0, 2000

    def parts(count: int) -> np.ndarray:
        base = {
            "beta": lambda: rng.beta(2, 5, (count, 1)),
            "heavy ties": lambda: np.round(rng.beta(1, 8, (count, 1)), 1),
            "bimodal": lambda: np.where(rng.random((count, 1)) < 0.02, 0.95, 0.2) * rng.random((count, 1)),
        }[spread]()
        return base * np.linspace(1.0, 0.4, areas)  # a larger least area leaves less

    future = np.sort(parts(50_000), axis=0)
    for _ in range(draws):
        found = calibrate(Scores(parts(400)), list(range(areas)), POINT, max_false_reject=0.02, confidence=0.9)
        assert found.missing == 0
        share = 1.0 - np.searchsorted(future[:, found.column], found.seed_threshold, side="right") / len(future)
        broken += share > 0.02
    # 10 % of the draws may break it; the rest of the number is the noise of so many draws, at five standard deviations.
    assert broken <= draws * 0.1 + 5 * math.sqrt(draws * 0.1 * 0.9)


def test_too_few_parts_are_told_with_how_many_are_missing() -> None:
    found = calibrate(Scores(np.full((100, 1), 0.3)), [0.0], POINT, max_false_reject=0.005, confidence=0.95)
    assert found.missing == 498
    assert found.false_reject_bound == pytest.approx(1 - 0.05 ** (1 / 100), rel=1e-6)
    assert found.seed_threshold == 0.3 and found.false_rejects == 0


def test_bad_parts_choose_the_area_at_which_fewest_escape() -> None:
    good = Scores(np.column_stack([np.linspace(0, 0.9, 1000), np.linspace(0, 0.3, 1000)]))
    bad = Scores(np.array([[0.8, 0.6], [0.8, 0.2], [0.8, 0.7]]))
    found = calibrate(good, [0.0, 9.0], POINT, max_false_reject=0.01, confidence=0.95, bad=bad)
    assert (found.min_area_px, found.escapes) == (9.0, 1)


def test_a_threshold_may_lie_below_the_outlines_and_brings_them_down() -> None:
    low = calibrate(Scores(np.full((700, 1), 0.02)), [0.0], POINT, max_false_reject=0.005, confidence=0.95)
    assert low.seed_threshold == low.threshold == 0.02 and low.false_rejects == 0
    high = calibrate(Scores(np.full((700, 1), 0.7)), [0.0], POINT, max_false_reject=0.005, confidence=0.95)
    assert high.seed_threshold == 0.7 and high.threshold == POINT.threshold


def test_nonsense_is_refused() -> None:
    for share, confidence in [(0.0, 0.9), (1.0, 0.9), (0.1, 0.0), (math.nan, 0.9)]:
        with pytest.raises(UsageError):
            needed_parts(share, confidence)
    with pytest.raises(UsageError, match="no good part"):
        calibrate(Scores(np.zeros((0, 1))), [0.0], POINT, max_false_reject=0.1, confidence=0.9)
