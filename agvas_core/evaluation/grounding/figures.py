"""From answers to figures (nano.md, "Language that is not decoration"), each beside what a model that ignores its instruction would get.

**Swap accuracy.** An image has two regions, a and b, and each is asked for in turn. By score, which is the figure that is quoted: the
instruction for a is right when the mean of the score map over a is above its mean over b. By mask: when IoU(M, a) > IoU(M, b).
A model that answers the same to both is right on exactly one of the two by score, and on one at most by mask, since equal means
wrong. The score comes first because an empty mask would hide what the map knows; the mask is what a user sees.

**Asked/other.** Mean IoU with the region asked for over mean IoU with the other one, over all instructions. 1 where words do nothing.

**Loss.** Share of the mean IoU with the region asked for that is gone when the instruction is another image's, or the anchors are zeros.

**Captions.** The first mention of the reply (captions tell the largest first) against the generator's largest defect; a reply without
any mention is wrong in every field. Kinds count by visible group. Beside it what the most frequent value of these images would get.

**Refusals.** By mask: it is empty. In words: the reply says that there is none, and carries no anchor. Balanced: mean of the share of
refusals where nothing is there and of acceptances where something is; 1/2 for a constant answer. By accept: AUROC of the
model's own figure for acceptance, which needs no threshold.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from agvas_core.data.synthetic.captions import group_of, parse
from agvas_core.evaluation.grounding.cases import ASKED, SHUFFLED, ZEROED
from agvas_core.evaluation.grounding.trial import Answer, TrialRecord, says_nothing_is_there
from agvas_core.evaluation.metrics import auroc, mean_of

__all__ = ["FIELDS", "Figure", "figures_of", "stated_fields"]

FIELDS: Final = ("kind", "place", "size", "tone")
DEAF, MAJORITY, CONSTANT = "no words", "majority", "always the same"


@dataclass(frozen=True)
class Figure:
    """One line. ``value`` is None where nothing could be measured; ``baseline`` where chance has no defined value."""

    section: str
    key: str
    title: str
    value: float | None
    count: int
    """Replies or images it is a mean of."""
    baseline: float | None = None
    baseline_of: str = ""
    """Who gets the baseline."""

    @property
    def times(self) -> float | None:
        """How many times the baseline the value is."""
        return self.value / self.baseline if self.value is not None and self.baseline else None


def figures_of(records: Sequence[TrialRecord]) -> list[Figure]:
    """All figures of the trials."""
    return [*_swaps(records), *_regions(records), *_kinds(records), *_captions(records), *_refusals(records)]


def stated_fields(text: str | None) -> dict[str, str] | None:
    """Kind (visible group), place, size and tone of the first mention in a reply; None without one."""
    mentions = parse(text or "")
    if not mentions:
        return None
    first = mentions[0]
    return {"kind": group_of(first.kind), "place": first.place, "size": first.size, "tone": first.tone}


def _of(records: Iterable[TrialRecord], task: str, name: str) -> list[Answer]:
    return [answer for record in records if record.task == task for answer in record.named(name)]


def _share(section: str, key: str, title: str, right: Sequence[bool], baseline: float | None = None, of: str = "") -> Figure:
    return Figure(section, key, title, mean_of(map(float, right)), len(right), baseline, of if baseline is not None else "")


def _by_score(answer: Answer) -> bool:
    return answer.asked_score is not None and answer.other_score is not None and answer.asked_score > answer.other_score


def _by_mask(answer: Answer) -> bool:
    return answer.asked_iou is not None and answer.other_iou is not None and answer.asked_iou > answer.other_iou


def _swaps(records: Sequence[TrialRecord]) -> Iterable[Figure]:
    for task in ("kind", "place", "size", "tone"):
        answers = _of(records, task, ASKED)
        for how, right in (("score", _by_score), ("mask", _by_mask)):
            yield _share("swap accuracy", f"swap_{task}_{how}", f"by {task}, {how}", list(map(right, answers)), 0.5, DEAF)


def _regions(records: Sequence[TrialRecord]) -> Iterable[Figure]:
    section = "IoU with the region asked for"
    answers = _of(records, "kind", ASKED)
    count = len(answers)
    asked, other = mean_of(answer.asked_iou for answer in answers), mean_of(answer.other_iou for answer in answers)
    yield Figure(section, "iou_asked", "asked", asked, count)
    yield Figure(section, "iou_other", "other", other, count)
    ratio = asked / other if asked is not None and other else None  # no bound where the other one is never touched
    yield Figure(section, "asked_over_other", "asked / other", ratio, count, 1.0, DEAF)
    for name in (SHUFFLED, ZEROED):
        left = mean_of(answer.asked_iou for answer in _of(records, "kind", name))
        yield Figure(section, f"iou_{name}", f"asked, {_HOW[name]}", left, count)
        lost = 1 - left / asked if asked and left is not None else None
        yield Figure(section, f"loss_{name}", f"lost, {_HOW[name]}", lost, count, 0.0, DEAF)


_HOW = {SHUFFLED: "instruction of another image", ZEROED: "anchors zeroed"}


def _kinds(records: Sequence[TrialRecord]) -> Iterable[Figure]:
    answers = _of(records, "kind", ASKED)
    for kind in sorted({answer.about for answer in answers}):  # deaf models get more than half of the conspicuous ones
        right = [_by_score(answer) for answer in answers if answer.about == kind]
        yield _share("swap accuracy by the kind asked for, score", f"swap_kind_score_{kind}", kind, right)


def _captions(records: Sequence[TrialRecord]) -> Iterable[Figure]:
    section = "captions against the largest defect"
    told = [(record, stated_fields(record.answers[0].text)) for record in records if record.task == "caption" and record.answers]
    rows = []
    for field in FIELDS:
        truths = [(_true_fields(record)[field], said) for record, said in told]
        known = [(truth, said) for truth, said in truths if truth]  # what is spread over the part has no place
        right = [said is not None and said[field] == truth for truth, said in known]
        most = Counter(truth for truth, _ in known).most_common(1)
        rows.append(_share(section, f"caption_{field}", field, right, most[0][1] / len(known) if most else None, MAJORITY))
    yield from rows
    mean, majority = mean_of(row.value for row in rows), mean_of(row.baseline for row in rows)
    yield Figure(section, "caption_mean", "mean of the fields", mean, len(told), majority, MAJORITY)
    yield _share(section, "caption_stated", "replies that say anything of the kind", [said is not None for _, said in told])


def _true_fields(record: TrialRecord) -> dict[str, str]:
    assert record.truth is not None, "a caption was asked for without a truth"
    size, tone, kind, place = record.truth
    return {"kind": group_of(kind), "place": place, "size": size, "tone": tone}


def _refusals(records: Sequence[TrialRecord]) -> Iterable[Figure]:
    good, defect = _of(records, "good", "good"), _of(records, "defect", "defect")
    absent, present = _of(records, "defect", "absent"), _of(records, "defect", "present")
    said_good, said_defect = _of(records, "good", "good in words"), _of(records, "caption", "caption")
    said_absent, said_present = _of(records, "defect", "absent in words"), _of(records, "defect", "present in words")
    yield from _balance("mask", "good parts", good, "defects", defect, _refused_by_mask)
    yield from _balance("mask", "absent kinds", absent, "present kinds", present, _refused_by_mask)
    yield from _balance("words", "good parts", said_good, "defects", said_defect, _refused_in_words)
    yield from _balance("words", "absent kinds", said_absent, "present kinds", said_present, _refused_in_words)
    section = "told apart by the model's own acceptance, AUROC"
    yield _auroc(section, "accept_good", "defects from good parts", good, defect)
    yield _auroc(section, "accept_absent", "present from absent kinds", absent, present)


def _refused_by_mask(answer: Answer) -> bool:
    return answer.mask_px == 0


def _refused_in_words(answer: Answer) -> bool:
    return says_nothing_is_there(answer.text or "")


def _balance(
    how: str, nothing: str, without: Sequence[Answer], thing: str, having: Sequence[Answer], refuses: Callable[[Answer], bool]
) -> Iterable[Figure]:
    section = f"refusals and acceptances, by {how}"
    key = f"{how}_{{}}_{nothing.replace(' ', '_')}"
    refused = _share(section, key.format("refused"), f"{nothing} refused", [refuses(answer) for answer in without])
    accepted = _share(section, key.format("accepted_against"), f"{thing} accepted", [not refuses(answer) for answer in having])
    known = [one.value for one in (refused, accepted) if one.value is not None]
    both = sum(known) / 2 if len(known) == 2 else None
    count = refused.count + accepted.count
    yield from (refused, accepted)
    yield Figure(section, key.format("balanced"), f"{nothing} against {thing}, balanced", both, count, 0.5, CONSTANT)


def _auroc(section: str, key: str, title: str, without: Sequence[Answer], having: Sequence[Answer]) -> Figure:
    scores = np.array([answer.accept for answer in (*without, *having)], np.float32)
    positive = np.arange(len(scores)) >= len(without)
    return Figure(section, key, title, auroc(scores, positive) if without and having else None, len(scores), 0.5, CONSTANT)
