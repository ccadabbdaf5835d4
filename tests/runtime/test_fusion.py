"""Equations 7 and 8 at the runtime's end, against the paper written out."""

from math import exp

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agvas_runtime.pipeline import frame_logits as fusion
from agvas_runtime.pipeline.frame_logits import ano_probability, anomaly_probability, seg_probability

logits = st.floats(-30, 30, width=32)


@settings(max_examples=200, deadline=None)
@given(logits, logits, logits, st.floats(0, 1))
def test_the_score_map_is_equations_7_and_8(l_nor: float, l_ano: float, l_seg: float, alpha: float) -> None:
    p_seg = 1 / (1 + exp(-l_seg))
    p_ano = exp(l_ano) / (exp(l_nor) + exp(l_ano))
    maps = [np.array([[value]], np.float32) for value in (l_seg, l_ano - l_nor)]
    assert seg_probability(maps[0])[0, 0] == pytest.approx(p_seg, rel=1e-5)
    assert ano_probability(maps[1])[0, 0] == pytest.approx(p_ano, rel=1e-5)
    assert anomaly_probability(maps[0], maps[1], alpha)[0, 0] == pytest.approx(alpha * p_seg + (1 - alpha) * p_ano, rel=1e-5)


def test_extreme_logits_stay_probabilities() -> None:
    extreme = np.array([[-1e30, -100.0, 0.0, 100.0, 1e30]], np.float32)
    for alpha in (0.0, 0.3, 0.5, 0.7, 1.0):
        found = anomaly_probability(extreme, extreme, alpha)
        assert found.min() >= 0 and found.max() <= 1
        assert (np.diff(found) >= 0).all()


def test_blocks_and_a_reused_map_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    l_seg, l_ano_nor = rng.normal(0, 4, (2, 37, 23)).astype(np.float32)
    whole = anomaly_probability(l_seg, l_ano_nor, 0.4)
    monkeypatch.setattr(fusion, "BLOCK_PX", 50)
    np.testing.assert_array_equal(anomaly_probability(l_seg, l_ano_nor, 0.4), whole)
    assert anomaly_probability(l_seg, l_ano_nor, 0.4, out=l_seg) is l_seg
    np.testing.assert_array_equal(l_seg, whole)
