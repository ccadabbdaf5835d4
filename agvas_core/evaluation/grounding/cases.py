"""The cases: generated images with their truth, and instructions that refer to a part of it.

    case = draw("kind", seed=0, number=17)
    case.sample.image, [question.instruction for question in case.questions]

A case is a function of task, seed and number alone, so that it can be drawn again in any process, and for the page. Instructions are
worded by ``captions.referring``, as those of training are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

import numpy as np

from agvas_core.data.synthetic.captions import Mention, absent_kind, describe, group_of, instruction_for, parse, referring
from agvas_core.data.synthetic.raster import Mask
from agvas_core.data.synthetic.sample import Defect, Sample
from agvas_core.data.synthetic.synthesis import HELD_OUT_FAMILIES, KINDS, SynthesisSpec, synthesize

__all__ = ["ASKED", "FIRST_SEED", "SHUFFLED", "SIZE", "TASKS", "ZEROED", "Case", "Question", "Task", "draw", "mention_of"]

Task = Literal["kind", "place", "size", "tone", "caption", "defect", "good"]
TASKS: Final[tuple[Task, ...]] = ("kind", "place", "size", "tone", "caption", "defect", "good")

SIZE: Final = (256, 256)
FIRST_SEED: Final = 700_000_000
"""Seed 0 of the measurement is this one of the generator: far from those of training, calibration and parity."""
IMAGES_A_CASE: Final = 150  # looked at before a case is given up; the rarest pairs are one image in fifteen
WORDINGS: Final = 60  # tried; most of them are by kind, and where the attribute does not tell the two apart all are
ASKED, SHUFFLED, ZEROED = "asked", "shuffled", "zeroed"

# The images of training, except for what each task needs; the held-out families are measured apart (families.py).
_DEFECTS = SynthesisSpec(normal_fraction=0, held_out_families=HELD_OUT_FAMILIES)
_PAIRS = _DEFECTS.model_copy(update={"several_fraction": 1.0, "repeated_fraction": 0.0})
_GOOD = _DEFECTS.model_copy(update={"normal_fraction": 1.0})


@dataclass(frozen=True)
class Question:
    """One instruction. ``asked`` and ``other`` are labels of the sample: what is meant, and what must be left alone."""

    name: str
    instruction: str | None
    """None for the mode's own."""
    asked: tuple[int, ...] = ()
    other: tuple[int, ...] = ()
    mode: str = "direct"
    zero_anchors: bool = False
    about: str = ""
    """The visible kind, place, size or tone that is asked for."""


@dataclass(frozen=True)
class Case:
    """One image and what is asked about it; ``truth`` is what a caption should say of its largest defect."""

    task: Task
    sample: Sample
    questions: tuple[Question, ...]
    truth: Mention | None = None


def draw(task: Task, seed: int, number: int) -> Case | None:
    """Case ``number`` of a task; None where none of the images that belong to it will do.

    kind: defects of exactly two visible kinds, each asked for in turn; again with another kind's instruction (shuffled) and with
    zeros for anchors (zeroed). place, size, tone: two defects that differ in that alone, of one kind for place and tone. caption:
    defects to be described. defect: everything asked for, a kind that is there, one that is not. good: nothing is there.
    """
    at = TASKS.index(task)
    rng = np.random.default_rng([seed, at, number])
    spec = _spec(task, number)
    first = (at * 10**6 + number) * IMAGES_A_CASE
    for index in range(first, first + IMAGES_A_CASE):
        case = _case(task, synthesize(FIRST_SEED + seed, index, SIZE, spec), rng)
        if case is not None:
            return case
    return None


def mention_of(defects: Sequence[Defect]) -> Mention:
    """What a right caption says first: the largest defect, or the group that is larger than any."""
    return parse(describe(defects))[0]


def _spec(task: Task, number: int) -> SynthesisSpec:
    if task in ("kind", "size"):
        return _PAIRS
    if task in ("place", "tone"):  # of one kind, so that nothing else tells them apart
        return _PAIRS.model_copy(update={"kinds": (KINDS[number % len(KINDS)],)})
    return _GOOD if task == "good" else _DEFECTS


def _case(task: Task, sample: Sample, rng: np.random.Generator) -> Case | None:
    if task == "good":
        return Case(task, sample, (Question("good", None), Question("good in words", None, mode="describe")))
    if not sample.defects or len(np.unique(sample.labels)) <= len(sample.defects):  # none, or one hidden under another
        return None
    if task == "caption":
        question = Question("caption", None, _labels(sample.defects), mode="describe")
        return Case(task, sample, (question,), mention_of(sample.defects))
    if task == "defect":
        return _presence(sample, rng)
    questions = _by_kind(sample, rng) if task == "kind" else _by_attribute(task, sample, rng)
    return Case(task, sample, questions) if questions else None


def _presence(sample: Sample, rng: np.random.Generator) -> Case | None:
    missing = absent_kind(sample, rng)
    if missing is None:
        return None
    group = group_of(max(sample.defects, key=lambda defect: defect.area_fraction).kind)
    members = _of(sample, group)
    present, absent = _worded(sample, members, rng), instruction_for(rng, missing)
    questions = [Question("defect", None, _labels(sample.defects))]
    for name, mode in (("", "direct"), (" in words", "describe")):
        questions.append(Question(f"present{name}", present, _labels(members), mode=mode, about=group))
        questions.append(Question(f"absent{name}", absent, mode=mode, about=missing))
    return Case("defect", sample, tuple(questions))


def _by_kind(sample: Sample, rng: np.random.Generator) -> tuple[Question, ...]:
    groups = list(dict.fromkeys(group_of(defect.kind) for defect in sample.defects))
    if len(groups) != 2:
        return ()
    questions: list[Question] = []
    for group, other in (groups, groups[::-1]):
        members = _of(sample, group)
        ask = partial(Question, asked=_labels(members), other=_labels(_of(sample, other)), about=group)
        instruction = _worded(sample, members, rng)
        # What this image would be asked if it got another one's instruction: any other kind, be it here or not.
        elsewhere = [kind for kind in KINDS if group_of(kind) != group]
        wrong = replace(members[0], kind=elsewhere[int(rng.integers(len(elsewhere)))])
        questions += [
            ask(ASKED, instruction),
            ask(SHUFFLED, _worded(sample, [wrong], rng)),
            ask(ZEROED, instruction, zero_anchors=True),
        ]
    return tuple(questions)


def _by_attribute(task: Task, sample: Sample, rng: np.random.Generator) -> tuple[Question, ...]:
    if len(sample.defects) != 2 or len({getattr(defect, task) for defect in sample.defects}) != 2:
        return ()
    questions = []
    for defect, other in (sample.defects, sample.defects[::-1]):
        value = getattr(defect, task)
        region = sample.labels == defect.label
        worded = (
            text for text, mask in _wordings(sample, rng) if "anomaly" in text and value in text and np.array_equal(mask, region)
        )
        instruction = next(worded, None)
        if instruction is None:
            return ()
        questions.append(Question(ASKED, instruction, (defect.label,), (other.label,), about=value))
    return tuple(questions)


def _worded(sample: Sample, members: Sequence[Defect], rng: np.random.Generator) -> str:
    """An instruction that asks for these by their kind, and by nothing else."""
    alone = replace(sample, defects=tuple(members))
    return next(text for text, _ in _wordings(alone, rng) if "anomaly" not in text and " at the " not in text)


def _wordings(sample: Sample, rng: np.random.Generator) -> Iterator[tuple[str, Mask]]:
    """Instructions that mean some of the defects, with their masks, as training words them."""
    for _ in range(WORDINGS):
        reference = referring(sample, rng)
        if reference is not None:
            yield reference


def _of(sample: Sample, group: str) -> list[Defect]:
    return [defect for defect in sample.defects if group_of(defect.kind) == group]


def _labels(defects: Sequence[Defect]) -> tuple[int, ...]:
    return tuple(defect.label for defect in defects)
