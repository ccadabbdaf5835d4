"""The score of an image as the mean of its highest pixels, and the rule that decides by it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agvas_core.contract.decision import OperatingPoint, anomaly_mask, image_score, mean_of_highest


@pytest.mark.parametrize("shape", [(7, 9), (250, 300), (900, 1100)])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3])
def test_it_is_the_mean_of_the_highest(shape: tuple[int, int], share: float) -> None:
    rng = np.random.default_rng(0)
    for values in (
        rng.random(shape),
        np.zeros(shape),
        rng.integers(0, 3, shape),
        np.sort(rng.random(shape), axis=None).reshape(shape),
    ):
        count = max(1, round(share * values.size))
        expected = np.sort(values.ravel())[::-1][:count].mean()
        assert mean_of_highest(values.astype(np.float32), share) == pytest.approx(expected, rel=1e-5)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.floats(0.001, 0.3))
def test_a_mask_is_there_exactly_where_the_score_is_above(
    seed: int, threshold: float, seed_threshold: float, share: float
) -> None:
    rng = np.random.default_rng(seed)
    score_map = (np.round(rng.random((24, 31)) ** rng.uniform(0.3, 6), int(rng.integers(0, 5)))).astype(np.float32)
    point = OperatingPoint(threshold=threshold, seed_threshold=seed_threshold, image_share=share)
    assert anomaly_mask(score_map, point).any() == (image_score(score_map, point) > seed_threshold)
