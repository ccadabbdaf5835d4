"""One case put to a model: what it answered, and how that lies to the regions; kept so that a killed measurement goes on."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import ImageError
from agvas_core.contract.prompts import ANCHOR_TOKENS, ANCHORS_SHOWN
from agvas_core.evaluation.grounding.cases import Case, Question, Task, draw
from agvas_core.evaluation.image_score import outline
from agvas_core.evaluation.predictor import Model

__all__ = ["Answer", "Trial", "TrialRecord", "ask", "generator_hash", "key_of", "says_nothing_is_there"]

VERSION = 1  # of what is computed here and in cases.py; raise it when old records would be wrong
_ANCHORED = (*ANCHOR_TOKENS, ANCHORS_SHOWN)
_REFUSAL = re.compile(r"\bthere (is|are) no\b", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """A reply to one question. Scores are means of the score map over a region; None without that region."""

    name: str
    instruction: str | None
    about: str
    accept: float
    text: str | None
    mask_px: int
    asked_score: float | None
    other_score: float | None
    asked_iou: float | None
    other_iou: float | None
    outline: str
    """Of the mask, as an SVG path."""


@dataclass(frozen=True)
class TrialRecord:
    """All answers of a case; none where no image would do."""

    task: Task
    number: int
    answers: tuple[Answer, ...]
    truth: tuple[str, str, str, str] | None
    """Size, tone, kind and place that a caption should give; the place is empty where defects are spread."""

    def named(self, name: str) -> list[Answer]:
        """The answers to the questions of that name."""
        return [answer for answer in self.answers if answer.name == name]


@dataclass(frozen=True)
class Trial:
    """Puts cases to a model; goes to other processes by pickling."""

    model: Model
    seed: int
    folder: Path
    words: bool
    """Whether the model gives text; questions that need it are left out where it does not."""

    def __call__(self, which: tuple[Task, int]) -> TrialRecord:
        """The record of a case, from an earlier measurement where nothing changed since.

        Raises:
            ImageError: the model gave no verdict.
        """
        task, number = which
        path = self.folder / f"{key_of(self.model, VERSION, self.seed, task, number, self.words)}.json"
        if path.is_file():
            return _record(json.loads(path.read_text(encoding="utf-8")))
        case = draw(task, self.seed, number)
        record = self._answered(case, number) if case is not None else TrialRecord(task, number, (), None)
        write_whole(path, json.dumps(asdict(record)))
        return record

    def _answered(self, case: Case, number: int) -> TrialRecord:
        asked = [question for question in case.questions if self.words or question.mode == "direct"]
        answers = tuple(ask(self.model, case, question) for question in asked)
        truth = case.truth and (case.truth.size, case.truth.tone, case.truth.kind, case.truth.place)
        return TrialRecord(case.task, number, answers, truth)


def ask(model: Model, case: Case, question: Question) -> Answer:
    """One reply and how it lies to the regions.

    Raises:
        ImageError: the model gave no verdict, or values that are not finite.
    """
    image = case.sample.image
    score_map, mask, text, accept = model.listener.reply(image, question.instruction, question.mode, question.zero_anchors)
    if score_map.shape != image.shape[:2] or mask.shape != image.shape[:2] or not np.isfinite(score_map).all():
        raise ImageError(f"{model.identity} gave no usable map of a generated image: {question.instruction or question.name}")
    asked, other = (_region(case.sample.labels, labels) for labels in (question.asked, question.other))
    return Answer(
        name=question.name,
        instruction=question.instruction,
        about=question.about,
        accept=float(accept),
        text=text,
        mask_px=int(np.count_nonzero(mask)),
        asked_score=None if asked is None else float(score_map[asked].mean(dtype=np.float64)),
        other_score=None if other is None else float(score_map[other].mean(dtype=np.float64)),
        asked_iou=None if asked is None else _iou(mask, asked),
        other_iou=None if other is None else _iou(mask, other),
        outline=outline(mask),
    )


def says_nothing_is_there(text: str) -> bool:
    """Whether a reply refuses in words: it says that there is no such thing, and no anchor stands in it (3.1, figure 11)."""
    return bool(_REFUSAL.search(text)) and not any(sign in text for sign in _ANCHORED)


def key_of(model: Model, *facts: object) -> str:
    """Hash of the model, of the generator and of what else a result depends on."""
    everything = [model.identity, sorted(model.options.items()), generator_hash(), *facts]
    return hashlib.sha256(repr(everything).encode()).hexdigest()[:24]


@cache
def generator_hash() -> str:
    """Changes whenever the generator may draw other images or use other words: the hash of its source."""
    whole = hashlib.sha256()
    for file in sorted(resources.files("agvas_core.data.synthetic").iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".py"):
            whole.update(file.read_bytes())
    return whole.hexdigest()[:12]


def _region(labels: NDArray[np.uint8], wanted: Sequence[int]) -> NDArray[np.bool_] | None:
    return np.isin(labels, wanted) if wanted else None


def _iou(mask: NDArray[np.bool_], region: NDArray[np.bool_]) -> float:
    return int(np.count_nonzero(mask & region)) / int(np.count_nonzero(mask | region))


def _record(raw: dict[str, Any]) -> TrialRecord:
    answers = tuple(Answer(**answer) for answer in raw["answers"])
    size, tone, kind, place = raw["truth"] or ("", "", "", "")
    return TrialRecord(raw["task"], raw["number"], answers, (size, tone, kind, place) if raw["truth"] else None)
