"""Equations 9-11 against plain loops written from the paper."""

import math

import pytest
import torch

from agvas_core.contract.errors import UsageError
from agvas_core.contract.prompts import Anchor
from agvas_core.model.losses import IGNORED_TARGET, SegmentationWeights, segmentation_loss, text_loss, total_loss

PAPER = SegmentationWeights()
FROM_SCRATCH = SegmentationWeights(bce=2.0, dice=0.5, positive_weight=5.0, dice_on_empty=False)


def random_case(batch: int = 3, size: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, 3, size, size + 1, generator=generator)
    target = (torch.rand(batch, size, size + 1, generator=generator) > 0.7).float()
    return logits, target


# Eq. 9: the answer's tokens, one by one.
def loop_text_loss(logits: torch.Tensor, targets: torch.Tensor) -> float:
    losses = []
    for row, ids in zip(logits.double().tolist(), targets.tolist(), strict=True):
        for t in range(1, len(ids)):
            if ids[t] == -100:
                continue
            scores = row[t - 1]  # what was predicted from y_<t
            probability = math.exp(scores[ids[t]]) / sum(math.exp(score) for score in scores)
            losses.append(-math.log(probability))
    return sum(losses) / len(losses)


# Eq. 10 with eq. 6 and 7, pixel by pixel, anchors NOR = 0, ANO = 1, SEG = 2.
def loop_segmentation_loss(
    logits: torch.Tensor, target: torch.Tensor, weights: SegmentationWeights, supervise: list[list[bool]]
) -> tuple[float, dict[str, float]]:
    bce: dict[int, list[float]] = {0: [], 1: [], 2: []}
    dice: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for image, mask, flags in zip(logits.double().tolist(), target.double().tolist(), supervise, strict=True):
        for c in range(3):
            if not flags[c]:
                continue
            cross_entropy, common, sizes, pixels = 0.0, 0.0, 0.0, 0
            for y in range(len(mask)):
                for x in range(len(mask[0])):
                    e_nor, e_ano = math.exp(image[0][y][x]), math.exp(image[1][y][x])
                    p = [e_nor / (e_nor + e_ano), e_ano / (e_nor + e_ano), 1 / (1 + math.exp(-image[2][y][x]))][c]
                    m = 1 - mask[y][x] if c == 0 else mask[y][x]
                    w_positive = 1.0 if c == 0 else weights.positive_weight
                    w_negative = weights.positive_weight if c == 0 else 1.0
                    cross_entropy -= w_positive * m * math.log(p) + w_negative * (1 - m) * math.log(1 - p)
                    common, sizes, pixels = common + p * m, sizes + p + m, pixels + 1
            bce[c].append(cross_entropy / pixels)
            if weights.dice_on_empty or any(value > 0 for row in mask for value in row):
                dice[c].append(1 - (2 * common + 1) / (sizes + 1))
    parts = {}
    for c, name in enumerate(("nor", "ano", "seg")):
        parts[f"bce_{name}"] = sum(bce[c]) / max(1, len(bce[c]))
        parts[f"dice_{name}"] = sum(dice[c]) / max(1, len(dice[c]))
    return sum((weights.bce if name.startswith("bce") else weights.dice) * value for name, value in parts.items()), parts


def test_text_loss_is_the_mean_over_target_tokens() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 7, 11, generator=generator)
    targets = torch.randint(0, 11, (2, 7), generator=generator)
    targets[0, :3] = -100
    targets[1, 5:] = -100
    assert text_loss(logits, targets).item() == pytest.approx(loop_text_loss(logits, targets), abs=1e-6)


def test_text_loss_shifts_as_transformers_does() -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(2))
    targets = torch.tensor([[-100, -100, 3, 1, 0, 8], [-100, 2, 2, 5, -100, -100]])
    torch.testing.assert_close(text_loss(logits, targets), ForCausalLMLoss(logits, targets, vocab_size=9))


def test_text_without_targets_costs_nothing_and_keeps_its_gradient() -> None:
    logits = torch.randn(2, 4, 5, requires_grad=True)
    loss = text_loss(logits, torch.full((2, 4), -100))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0.0
    assert not gradient.any()


@pytest.mark.parametrize("weights", [PAPER, FROM_SCRATCH, SegmentationWeights(positive_weight=3.0)])
@pytest.mark.parametrize("empty_image", [False, True])
def test_segmentation_loss_is_equation_10(weights: SegmentationWeights, empty_image: bool) -> None:
    logits, target = random_case()
    if empty_image:
        target[1] = 0
    total, parts = segmentation_loss(logits, target, weights)
    expected, expected_parts = loop_segmentation_loss(logits, target, weights, [[True] * 3] * 3)
    assert total.item() == pytest.approx(expected, abs=1e-5)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected_parts, abs=1e-5)


def test_soft_masks_are_taken_as_they_are() -> None:
    logits, target = random_case(seed=3)
    target = (target + 0.3) / 1.6
    total, _ = segmentation_loss(logits, target)
    assert total.item() == pytest.approx(loop_segmentation_loss(logits, target, PAPER, [[True] * 3] * 3)[0], abs=1e-5)


@pytest.mark.parametrize("weights", [PAPER, FROM_SCRATCH])
def test_only_the_supervised_anchors_count(weights: SegmentationWeights) -> None:
    logits, target = random_case(batch=4, seed=4)
    flags = [[True, True, True], [False, False, True], [False, False, False], [True, False, True]]
    logits.requires_grad_()
    total, parts = segmentation_loss(logits, target, weights, torch.tensor(flags))
    expected, expected_parts = loop_segmentation_loss(logits.detach(), target, weights, flags)
    assert total.item() == pytest.approx(expected, abs=1e-5)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected_parts, abs=1e-5)

    (gradient,) = torch.autograd.grad(total, logits)
    assert not gradient[1, [Anchor.NOR, Anchor.ANO]].any()  # general segmentation: SEG only
    assert gradient[1, Anchor.SEG].any()
    assert not gradient[2].any()  # conversation: none


@pytest.mark.parametrize("weights", [PAPER, FROM_SCRATCH])
def test_a_batch_that_supervises_nothing_costs_exactly_zero_and_keeps_its_gradient(weights: SegmentationWeights) -> None:
    logits, target = random_case()
    logits.requires_grad_()
    total, parts = segmentation_loss(logits, target, weights, torch.zeros(3, 3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(total, logits)
    assert total.item() == 0.0
    assert all(value.item() == 0.0 for value in parts.values())
    assert not gradient.any()


@pytest.mark.parametrize("positive_weight", [1.0, 5.0])
def test_the_bce_of_nor_and_ano_are_equal_and_only_dice_tells_them_apart(positive_weight: float) -> None:
    logits, target = random_case(seed=5)
    _, parts = segmentation_loss(logits, target, SegmentationWeights(positive_weight=positive_weight))
    assert parts["bce_nor"].item() == parts["bce_ano"].item()
    assert parts["dice_nor"].item() != pytest.approx(parts["dice_ano"].item(), abs=1e-3)


def test_the_relative_loss_depends_on_the_difference_of_its_logits_only() -> None:
    logits, target = random_case(seed=6)
    shifted = logits.clone()
    shifted[:, [Anchor.NOR, Anchor.ANO]] += 7.0
    torch.testing.assert_close(segmentation_loss(shifted, target)[0], segmentation_loss(logits, target)[0])


def test_a_perfect_mask_costs_nothing() -> None:
    _, target = random_case(seed=7)
    sure = 100 * (2 * target - 1)
    logits = torch.stack([-sure, sure, sure], dim=1)
    assert segmentation_loss(logits, target)[0].item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("magnitude", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("weights", [PAPER, FROM_SCRATCH])
def test_extreme_logits_give_finite_losses_and_gradients(magnitude: float, weights: SegmentationWeights) -> None:
    logits, target = random_case(seed=8)
    logits = (magnitude * logits.sign()).requires_grad_()
    total, _ = segmentation_loss(logits, target, weights)
    (gradient,) = torch.autograd.grad(total, logits)
    assert total.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, _ = random_case(seed=9)
    # 300 x 300 anomalous pixels: their sum, 90,000, is no float16.
    logits = logits.to(dtype).repeat(1, 1, 60, 50).requires_grad_()
    target = torch.ones(3, 300, 300, dtype=dtype)
    total, _ = segmentation_loss(logits, target)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, segmentation_loss(logits.float(), target.float())[0], rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(total, logits)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()

    words = torch.randn(1, 4, 8).to(dtype)
    ids = torch.tensor([[-100, 3, 4, 7]])
    assert text_loss(words, ids).dtype == torch.float32
    torch.testing.assert_close(text_loss(words, ids), text_loss(words.float(), ids), rtol=0, atol=0)


def test_the_order_of_the_batch_does_not_matter() -> None:
    logits, target = random_case(seed=10)
    supervise = torch.tensor([[True, True, True], [False, False, True], [True, True, False]])
    order = torch.tensor([2, 0, 1])
    one, _ = segmentation_loss(logits, target, supervise=supervise)
    other, _ = segmentation_loss(logits[order], target[order], supervise=supervise[order])
    torch.testing.assert_close(one, other)


def test_the_whole_objective_is_the_sum() -> None:
    assert total_loss(torch.tensor(1.25), torch.tensor(0.5)).item() == 1.75  # eq. 11


def test_the_papers_weights_are_the_default() -> None:
    assert (PAPER.bce, PAPER.dice, PAPER.positive_weight, PAPER.dice_on_empty) == (0.5, 2.0, 1.0, True)


def test_what_does_not_fit_is_refused_with_its_size() -> None:
    logits, target = random_case()
    with pytest.raises(UsageError, match=r"\[3, 5, 5\].*\[3, 5, 6\]"):
        segmentation_loss(logits, target[:, :, :5])
    with pytest.raises(UsageError, match=r"\[3, 2, 5, 6\]"):
        segmentation_loss(logits[:, :2], target)
    with pytest.raises(UsageError, match=r"\[3, 1\].*\[3, 3\]"):
        segmentation_loss(logits, target, supervise=torch.ones(3, 1, dtype=torch.bool))
    with pytest.raises(UsageError, match="unshifted"):
        text_loss(torch.zeros(1, 4, 5), torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(UsageError, match="dice=-1"):
        SegmentationWeights(dice=-1)


def test_what_was_not_asked_for_weighs_as_much_as_what_was() -> None:
    logits = torch.randn(2, 3, 6, 6)
    asked, unasked = torch.zeros(2, 6, 6), torch.zeros(2, 6, 6, dtype=torch.bool)
    asked[:, :2], unasked[:, 4:] = 1, True
    weights = SegmentationWeights(bce=1.0, dice=0.0, positive_weight=5.0)
    _, plain = segmentation_loss(logits, asked, weights)
    _, parts = segmentation_loss(logits, asked, weights, unasked=unasked)
    # Four of the five parts of weight are new, on a third of the pixels.
    expected = plain["bce_seg"] + 4 * torch.nn.functional.softplus(logits[:, 2, 4:]).mean() / 3
    torch.testing.assert_close(parts["bce_seg"], expected)
    _, nothing = segmentation_loss(logits, asked, weights, unasked=torch.zeros_like(unasked))
    torch.testing.assert_close(nothing["bce_seg"], plain["bce_seg"])


def test_text_per_sequence_is_eq_9_of_each_row_whatever_its_length() -> None:
    torch.manual_seed(5)
    logits, targets = torch.randn(3, 9, 11), torch.full((3, 9), IGNORED_TARGET)
    targets[0, 2:4], targets[1, 1:9] = torch.randint(11, (2,)), torch.randint(11, (8,))  # the third row has none
    rows = [text_loss(logits[row : row + 1], targets[row : row + 1]) for row in (0, 1)]
    torch.testing.assert_close(text_loss(logits, targets, per_sequence=True), (rows[0] + rows[1]) / 2)
    halves = [text_loss(logits[at], targets[at], count=torch.tensor(2), per_sequence=True) for at in (slice(0, 1), slice(1, 3))]
    torch.testing.assert_close(sum(halves), (rows[0] + rows[1]) / 2)
    assert float(text_loss(logits[2:], targets[2:], per_sequence=True)) == 0
