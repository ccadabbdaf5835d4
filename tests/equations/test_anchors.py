"""Where the anchors are found (paper 3.1), and the rule ``no anchors, empty mask``."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from agvas_core.model.agvas import AgVas
from agvas_core.model.fusion import anomaly_probability, binary_mask
from agvas_core.model.lmm import Lmm, find_anchors

NOR, ANO, SEG = ANCHORS = (4, 5, 6)
PROMPT = [10, *[3] * 8, 11, 12]
ANSWER = [13, NOR, ANO, SEG, 14, 2]


def padded(rows: list[list[int]], side: str, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and attention mask [B, L]; the longest row gets ``extra`` padding as well."""
    length = max(map(len, rows)) + extra
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        first = 0 if side == "right" else length - len(row)
        ids[index, first : first + len(row)] = torch.tensor(row)
        mask[index, first : first + len(row)] = 1
    return ids, mask


def loop_find(rows: list[list[int]], starts: list[int]) -> tuple[list[list[int]], list[bool]]:
    """Position by position; the last one seen stays."""
    positions, found = [], []
    for row, start in zip(rows, starts, strict=True):
        seen: dict[int, int] = {}
        for index, token in enumerate(row):
            if index >= start and token in ANCHORS:
                seen[token] = index
        positions.append([seen.get(token, 0) for token in ANCHORS])
        found.append(len(seen) == 3)
    return positions, found


def test_it_equals_a_plain_loop_on_random_rows() -> None:
    random.seed(0)
    both = set()
    for _ in range(200):
        rows = [random.choices(range(9), k=12) for _ in range(3)]
        starts = random.choices(range(12), k=3)
        positions, found = find_anchors(torch.tensor(rows), ANCHORS, torch.tensor(starts))
        expected, expected_found = loop_find(rows, starts)
        assert positions.tolist() == expected
        assert found.tolist() == expected_found
        both.update(expected_found)
    assert both == {True, False}


@pytest.mark.parametrize("side", ["right", "left"])
def test_they_are_found_at_any_place_in_padded_batches(side: str) -> None:
    rows = [PROMPT + words + ANSWER for words in ([], [20], [20, 21, 22, 23])]
    ids, mask = padded(rows, side, extra=2)
    positions, found = find_anchors(ids, ANCHORS)
    assert found.all()
    for row, place in enumerate(positions.tolist()):
        assert ids[row, place].tolist() == list(ANCHORS)
        assert mask[row, place].all()


def test_they_need_not_be_neighbours_nor_in_order() -> None:
    positions, found = find_anchors(torch.tensor([[SEG, 20, ANO, 21, 22, NOR]]), ANCHORS)
    assert found.all()
    assert positions.tolist() == [[5, 2, 0]]


def test_the_last_occurrence_counts() -> None:
    positions, _ = find_anchors(torch.tensor([[NOR, ANO, SEG, 20, NOR, ANO, SEG, SEG]]), ANCHORS)
    assert positions.tolist() == [[4, 5, 7]]


def test_anchors_before_the_answer_do_not_count() -> None:
    ids = torch.tensor([[NOR, ANO, SEG, 20, 21, 22], [20, 21, 22, NOR, ANO, SEG], [NOR, 20, 21, 22, ANO, SEG]])
    _, found = find_anchors(ids, ANCHORS, torch.tensor([3, 3, 3]))
    assert found.tolist() == [False, True, False]
    _, found = find_anchors(ids, ANCHORS)
    assert found.all()


def test_states_are_read_at_their_positions() -> None:
    hidden = torch.randn(2, 7, 5)
    positions = torch.tensor([[1, 2, 3], [6, 0, 4]])
    states = Lmm.anchor_states(hidden, positions)
    for row in range(2):
        for anchor in range(3):
            assert torch.equal(states[row, anchor], hidden[row, positions[row, anchor]])


@pytest.mark.parametrize("missing", ANCHORS)
def test_a_reply_that_lacks_an_anchor_has_an_empty_mask_at_any_threshold(tiny_model: AgVas, images: Any, missing: int) -> None:
    answer = [20 if token == missing else token for token in ANSWER]
    ids, mask = padded([PROMPT + ANSWER, PROMPT + answer], "right")
    output = tiny_model(*images, ids, mask, torch.tensor([len(PROMPT)] * 2))
    assert output.found.tolist() == [True, False]
    for alpha in (0.0, 0.5, 1.0):
        probability = anomaly_probability(output.mask_logits, alpha)
        assert probability[0].max() > 0
        for threshold in (1e-30, 1e-6, 0.5, 1 - 1e-6):
            assert not binary_mask(probability[1], threshold).any()


def test_anchors_that_a_user_typed_give_no_mask(tiny_model: AgVas, images: Any) -> None:
    prompt = [*PROMPT, NOR, ANO, SEG]
    ids = torch.tensor([[*prompt, 13, 14, 2]] * 2)
    output = tiny_model(*images, ids, answer_start=torch.tensor([len(prompt)] * 2))
    assert not output.found.any()
    assert not binary_mask(anomaly_probability(output.mask_logits)).any()
