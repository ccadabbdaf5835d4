"""Equations 6-8 from logits on, pixel by pixel."""

import math

import pytest
import torch

from agvas_core.contract.prompts import Anchor
from agvas_core.model.fusion import anomaly_probability, binary_mask, relative_probability, seg_probability


def random_logits() -> torch.Tensor:
    return 4 * torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_maps_are_equations_6_to_8(alpha: float) -> None:
    logits = random_logits()
    p_seg, (p_nor, p_ano), p = seg_probability(logits), relative_probability(logits), anomaly_probability(logits, alpha)
    mask = binary_mask(p)
    for b in range(2):
        for y in range(4):
            for x in range(5):
                l_nor, l_ano, l_seg = logits[b, :, y, x].tolist()  # anchor order
                seg = 1 / (1 + math.exp(-l_seg))  # eq. 6
                nor = math.exp(l_nor) / (math.exp(l_nor) + math.exp(l_ano))  # eq. 7
                ano = math.exp(l_ano) / (math.exp(l_nor) + math.exp(l_ano))
                fused = alpha * seg + (1 - alpha) * ano  # eq. 8
                found = [p_seg[b, y, x].item(), p_nor[b, y, x].item(), p_ano[b, y, x].item(), p[b, y, x].item()]
                assert found == pytest.approx([seg, nor, ano, fused], abs=1e-6)
                assert mask[b, y, x].item() == (fused > 0.5)


def test_alpha_is_a_half_unless_given() -> None:
    logits = random_logits()
    assert torch.equal(anomaly_probability(logits), anomaly_probability(logits, alpha=0.5))


def test_alpha_at_its_ends_leaves_one_kind_of_anchor() -> None:
    logits = random_logits()
    assert torch.equal(anomaly_probability(logits, alpha=1.0), seg_probability(logits))
    assert torch.equal(anomaly_probability(logits, alpha=0.0), relative_probability(logits)[1])


def test_the_softmax_of_two_sums_to_one_and_is_the_sigmoid_of_the_difference() -> None:
    logits = random_logits()
    p_nor, p_ano = relative_probability(logits)
    torch.testing.assert_close(p_nor + p_ano, torch.ones(2, 4, 5))
    softmax = logits[:, [Anchor.NOR, Anchor.ANO]].softmax(1)
    torch.testing.assert_close(torch.stack([p_nor, p_ano], 1), softmax)
    torch.testing.assert_close(p_ano, (logits[:, Anchor.ANO] - logits[:, Anchor.NOR]).sigmoid())


@pytest.mark.parametrize("magnitude", [1e3, 1e30])
def test_extreme_logits_give_probabilities(magnitude: float) -> None:
    p = anomaly_probability(magnitude * random_logits().sign())
    assert p.isfinite().all()
    assert ((p >= 0) & (p <= 1)).all()


def test_the_threshold_itself_is_no_anomaly() -> None:
    assert binary_mask(torch.tensor([0.5, 0.500001, 0.499999])).tolist() == [False, True, False]
    assert not binary_mask(anomaly_probability(torch.zeros(1, 3, 2, 2))).any()  # three silent anchors: P = 0.5 everywhere


def test_the_order_of_the_batch_is_kept() -> None:
    logits = random_logits()
    torch.testing.assert_close(anomaly_probability(logits.flip(0)), anomaly_probability(logits).flip(0))
