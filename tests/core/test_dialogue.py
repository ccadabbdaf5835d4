"""From a sample to exchanges: what is asked, what is answered, which mask belongs to it."""

import numpy as np
import pytest

from agvas_core.contract.prompts import ANCHORS, DEFAULT_INSTRUCTION, FIXED_ANSWER, INSTRUCTIONS, NO_ANOMALY_ANSWER, Mode
from agvas_core.data.synthetic.captions import parse
from agvas_core.data.synthetic.dialogue import TASKS, make_dialogues
from agvas_core.data.synthetic.sample import MIN_LEFT_PX, Sample, cropped
from agvas_core.data.synthetic.synthesis import synthesize


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [synthesize(77, index, (128, 128)) for index in range(40)]


def test_the_direct_exchange_always_comes_first(samples: list[Sample]) -> None:
    for sample in samples:
        (direct,) = make_dialogues(sample, {}, np.random.default_rng(0))
        assert direct.instruction == DEFAULT_INSTRUCTION and direct.answer == FIXED_ANSWER
        assert direct.mask is not None and np.array_equal(direct.mask, sample.mask)
        assert (direct.refusal == NO_ANOMALY_ANSWER) == (not sample.defects)


def test_an_answer_has_a_mask_where_it_has_anchors_and_nowhere_else(samples: list[Sample]) -> None:
    rng = np.random.default_rng(0)
    for sample in samples:
        for dialogue in make_dialogues(sample, dict.fromkeys(TASKS, 1.0), rng):
            assert (dialogue.mask is not None) == (ANCHORS in dialogue.answer)
            if dialogue.refusal is not None:  # the mask behind an answer that should not have been given
                assert dialogue.mask is not None and not dialogue.mask.any()


def test_a_good_part_is_never_said_to_have_a_defect(samples: list[Sample]) -> None:
    rng = np.random.default_rng(0)
    for sample in (sample for sample in samples if not sample.defects):
        for dialogue in make_dialogues(sample, dict.fromkeys(TASKS, 1.0), rng):
            assert not parse(dialogue.answer) and (dialogue.mask is None or not dialogue.mask.any())


def test_the_explanation_comes_after_the_anchors_and_the_description_before(samples: list[Sample]) -> None:
    sample = next(sample for sample in samples if sample.defects)
    answers = {
        dialogue.instruction: dialogue.answer
        for dialogue in make_dialogues(sample, dict.fromkeys(TASKS, 1.0), np.random.default_rng(0))
    }
    before, after = answers[INSTRUCTIONS[Mode.EXPLAIN]].split(ANCHORS)
    assert parse(after) and not parse(before)
    before, after = answers[INSTRUCTIONS[Mode.DESCRIBE]].split(ANCHORS)
    assert parse(before) and not parse(after)
    assert any("normal look" in instruction for instruction in answers)


def test_a_crop_says_where_things_are_in_the_crop(samples: list[Sample]) -> None:
    shown = 0
    for sample in samples:
        part = cropped(sample, slice(0, 64), slice(64, 128))
        assert np.array_equal(part.image, sample.image[:64, 64:])
        for defect in part.defects:
            y, x = np.nonzero(part.labels == defect.label)
            assert len(x) >= MIN_LEFT_PX and defect.area_fraction == len(x) / 64**2
            row = "top" if y.mean() + 0.5 < 64 / 3 else "bottom" if y.mean() + 0.5 >= 128 / 3 else ""
            assert not row or row in defect.place
            shown += 1
        assert {defect.label for defect in part.defects} <= {defect.label for defect in sample.defects}
    assert shown > 5
