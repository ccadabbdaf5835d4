"""The whole path: one forward against its steps, and what must not change a mask."""

from typing import Any

import pytest
import torch
from torch import Tensor

from agvas_core.contract.prompts import Anchor
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model
from agvas_core.model.config import parse_config
from agvas_core.model.fusion import anomaly_probability, binary_mask

PROMPTS = [[10, *[3] * 8, 11, 12], [10, 20, *[3] * 8, 11, 21, 22, 23, 12]]
ANSWER = [13, 4, 5, 6, 14, 2]


def row(index: int, before: int = 0, after: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [1, L], attention mask [1, L] and answer start [1] of one prompt with its answer, padded."""
    tokens = PROMPTS[index] + ANSWER
    ids = torch.tensor([[0] * before + tokens + [0] * after])
    mask = torch.tensor([[0] * before + [1] * len(tokens) + [0] * after])
    return ids, mask, torch.tensor([before + len(PROMPTS[index])])


def batch(*rows: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    ids, masks, starts = zip(*rows, strict=True)
    return torch.cat(ids), torch.cat(masks), torch.cat(starts)


def test_one_forward_is_its_steps(tiny_model: AgVas, images: Any) -> None:
    m = tiny_model
    semantic, pixel = images
    ids, mask, start = batch(row(0, after=4), row(1))
    output = m(semantic, pixel, ids, mask, start)
    for b in range(2):  # one image at a time, without padding
        f_s = m.semantic_encoder(semantic[b : b + 1])
        f_p, f_detail = m.pixel_encoder(pixel[b : b + 1])[:2]
        f_align = m.spam(f_s, m.linear_p(f_p))
        tokens = ids[b, mask[b].bool()][None]
        hidden, logits = m.lmm(m.lmm.embed(tokens, f_s, f_align))
        at = [tokens[0].tolist().index(anchor, int(start[b])) for anchor in (4, 5, 6)]
        h = m.refiner(torch.stack([hidden[:, place] for place in at], 1))
        expected = m.agmd(h, f_p, f_detail)
        torch.testing.assert_close(output.mask_logits[b : b + 1], expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(output.text_logits[b, : tokens.shape[1]], logits[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(output.vision.f_align[b : b + 1], f_align, rtol=0, atol=1e-5)
    assert output.mask_logits.shape == (2, 3, 32, 32)
    assert output.mask_logits.std() > 0.1  # the comparison is of something


@pytest.mark.parametrize("before, after", [(0, 5), (5, 0), (3, 3)], ids=["right", "left", "both"])
@pytest.mark.parametrize("index", [0, 1])
def test_padding_never_changes_the_mask(tiny_model: AgVas, images: Any, index: int, before: int, after: int) -> None:
    semantic, pixel = images.semantic[:1], images.pixel[:1]
    alone = tiny_model(semantic, pixel, row(index)[0]).mask_logits
    padded = tiny_model(semantic, pixel, *row(index, before, after)).mask_logits
    torch.testing.assert_close(padded, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_neighbours_in_the_batch_never_change_a_mask(tiny_model: AgVas, images: Any, side: str) -> None:
    short = row(0, **{"after" if side == "right" else "before": len(PROMPTS[1]) - len(PROMPTS[0])})
    together = tiny_model(*images, *batch(short, row(1))).mask_logits
    for b in range(2):
        alone = tiny_model(images.semantic[b : b + 1], images.pixel[b : b + 1], row(b)[0]).mask_logits
        torch.testing.assert_close(together[b : b + 1], alone, rtol=0, atol=1e-5)


def test_the_order_of_the_batch_does_not_matter(tiny_model: AgVas, images: Any) -> None:
    ids, mask, start = batch(row(0, after=4), row(1))
    one = tiny_model(*images, ids, mask, start)
    other = tiny_model(images.semantic.flip(0), images.pixel.flip(0), ids.flip(0), mask.flip(0), start.flip(0))
    torch.testing.assert_close(other.mask_logits.flip(0), one.mask_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(other.text_logits.flip(0), one.text_logits, rtol=0, atol=1e-5)


def test_the_mask_hears_the_instruction(tiny_model: AgVas, images: Any) -> None:
    ids, other = row(0)[0], row(0)[0].clone()
    other[0, len(PROMPTS[0]) - 2] = 25
    semantic, pixel = images.semantic[:1], images.pixel[:1]
    difference = tiny_model(semantic, pixel, ids).mask_logits - tiny_model(semantic, pixel, other).mask_logits
    assert difference.abs().max() > 1e-3


def test_text_can_be_left_out(tiny_model: AgVas, images: Any) -> None:
    ids, mask, start = batch(row(0, after=4), row(1))
    silent = tiny_model(*images, ids, mask, start, with_text=False)
    assert silent.text_logits is None
    assert torch.equal(silent.mask_logits, tiny_model(*images, ids, mask, start).mask_logits)


def test_every_trained_part_gets_a_gradient_from_the_mask(tiny_table: dict[str, Any], images: Any) -> None:
    torch.manual_seed(0)
    model = build_model(parse_config(tiny_table)).eval()
    ids, mask, start = batch(row(0, after=4), row(1))
    model(*images, ids, mask, start).mask_logits.square().sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    # Keys' biases shift all scores of a query alike; SigLIP's last norm is not used by LLaVA; the rest must learn.
    without = {name for name in without if not name.endswith(("k_proj.bias", "to_k.bias"))}
    assert {name.split(".")[0] for name in without} <= {"semantic_encoder"}, sorted(without)
    assert all("post_layernorm" in name for name in without), sorted(without)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_the_mask_is_where_p_exceeds_the_threshold(tiny_model: AgVas, images: Any, threshold: float) -> None:
    logits = tiny_model(images.semantic[:1], images.pixel[:1], row(0)[0]).mask_logits
    mask = binary_mask(anomaly_probability(logits), threshold)[0]
    nor, ano, seg = (logits[0, anchor].double() for anchor in Anchor)
    expected = 0.5 / (1 + (-seg).exp()) + 0.5 * ano.exp() / (nor.exp() + ano.exp()) > threshold
    assert torch.equal(mask, expected)
