"""The whole measurement: cases put to the model in parallel, then the figures.

    found = measure(Model(find_opener(), "nano"), Task(images=200, seed=0, out=Path("runs/grounding")))

A second call with the same folder goes on where the first one was killed.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from agvas_core.contract.errors import AgvasError, OutputError
from agvas_core.evaluation.grounding.cases import FIRST_SEED, SIZE, TASKS, Task
from agvas_core.evaluation.grounding.families import family_figures
from agvas_core.evaluation.grounding.figures import Figure, figures_of
from agvas_core.evaluation.grounding.trial import Trial, TrialRecord, generator_hash
from agvas_core.evaluation.predictor import Model
from agvas_core.evaluation.workers import Workers

__all__ = ["Blank", "Grounding", "Plan", "measure"]

GREYS: Final = (64, 128, 192)
_FEWER: Final = {"place": 4, "size": 4, "tone": 4}  # of these a fraction: they are rare, and beside the point of kinds


@dataclass(frozen=True)
class Plan:
    """How much to measure, and where to keep it."""

    images: int
    """Of each task; of place, size and tone a quarter."""
    seed: int
    out: Path
    jobs: int = 1

    @property
    def trials(self) -> list[tuple[Task, int]]:
        """All cases, by task and number."""
        return [(task, number) for task in TASKS for number in range(-(-self.images // _FEWER.get(task, 1)))]

    @property
    def steps(self) -> int:
        """How often ``advance`` will be called."""
        return len(self.trials) + 2 * self.images


@dataclass(frozen=True)
class Blank:
    """What a model says of a grey image with nothing on it."""

    grey: int
    text: str
    mask_px: int


@dataclass(frozen=True)
class Grounding:
    """What was found."""

    subject: str
    plan: Plan
    figures: tuple[Figure, ...]
    blanks: tuple[Blank, ...]
    """Empty for a model that gives no text."""
    records: tuple[TrialRecord, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "subject": self.subject,
            "images": self.plan.images,
            "seed": self.plan.seed,
            "generator": {"seed": FIRST_SEED + self.plan.seed, "source": generator_hash(), "size_px": list(SIZE)},
            "notes": list(self.notes),
            "figures": [asdict(figure) | {"times": figure.times} for figure in self.figures],
            "blank": [asdict(blank) for blank in self.blanks],
            "cases": [
                {
                    "task": record.task,
                    "number": record.number,
                    "truth": record.truth,
                    "answers": [{k: v for k, v in asdict(answer).items() if k != "outline"} for answer in record.answers],
                }
                for record in self.records
            ],
        }


def measure(model: Model, plan: Plan, advance: Callable[[], None] = lambda: None) -> Grounding:
    """Draws, asks and counts.

    Raises:
        UsageError: a model that cannot be asked in words.
        ImageError: it gave no verdict on a generated image.
        OutputError: the folder cannot be written.
    """
    blanks, why_not = _blanks(model)
    folder = plan.out / "grounding"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = Trial(model, plan.seed, folder, words=why_not is None)
        records: list[TrialRecord] = []
        with Workers(plan.jobs) as workers:
            for record in workers.map(trial, plan.trials):
                records.append(record)
                advance()
            families = family_figures(model, plan.seed, plan.images, folder, workers, advance)
    except BrokenPipeError:  # of the terminal, not of the folder
        raise
    except OSError as error:
        why = error.strerror or error
        raise OutputError(f"cannot write into {plan.out}: {why}; choose a folder with space and write permission") from error
    figures = [*figures_of(records), *families]
    return Grounding(model.identity, plan, tuple(figures), blanks, tuple(records), tuple(_notes(records, figures, why_not)))


def _blanks(model: Model) -> tuple[tuple[Blank, ...], str | None]:
    """What is said of nothing; and why nothing is said at all, where the model gives no text."""
    listener = model.listener
    blanks = []
    for grey in GREYS:
        image = np.full((*SIZE, 3), grey, np.uint8)
        try:
            _, mask, text, _ = listener.reply(image, None, "describe")
        except AgvasError as error:
            return (), str(error)
        if text is None:
            return (), f"{model.identity} gives masks and no text"
        blanks.append(Blank(grey, text, int(np.count_nonzero(mask))))
    return tuple(blanks), None


def _notes(records: list[TrialRecord], figures: list[Figure], why_not: str | None) -> list[str]:
    """What a reader must know to take the figures for what they are."""
    said = []
    if why_not is not None:
        said.append(f"Nothing was asked in words, so captions and refusals in words are absent: {why_not}")
    if given_up := sum(not record.answers for record in records):
        said.append(f"{given_up} of {len(records)} cases found no image that fits and are left out.")
    values = {figure.key: figure.value for figure in figures}
    if values["asked_over_other"] is None and values["iou_asked"]:
        said.append("No mask touches a region that was not asked for, so asked / other has no bound.")
    return said
