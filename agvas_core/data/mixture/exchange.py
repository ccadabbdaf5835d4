"""A record and a task to what is said about it (paper 3.3, A.2: templates are drawn and filled during training)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_core.contract.prompts import strip_control_tokens, with_normal_look
from agvas_core.data.datasets.record import Family, Record, Shape, Target, Turn
from agvas_core.data.mixture.config import Source, SourceConfig
from agvas_core.data.synthetic.raster import pick
from agvas_core.data.templates.library import Library
from agvas_core.data.templates.rules import Task, filled

__all__ = ["Exchange", "make_exchange"]


@dataclass(frozen=True)
class Exchange:
    """``mask`` is None where no answer carries the anchors."""

    task: Task
    turns: tuple[Turn, ...]
    mask: NDArray[np.bool_] | None


def make_exchange(
    record: Record, source: Source, config: SourceConfig, shape: Shape, library: Library, rng: np.random.Generator
) -> Exchange:
    """One exchange about ``record``, whose image has ``shape``.

    Raises:
        ImageError: its mask is missing, empty, broken, or of another size.
    """
    if source is Source.VQA:
        return Exchange(Task.CONVERSATION, record.turns, None)
    if source is Source.GENERAL:
        return _general(record, shape, library, rng)
    tasks = config.tasks if record.anomalous or not config.normal_tasks else config.normal_tasks
    task = pick(rng, list(tasks), list(tasks.values()))
    values = {"class_name": pick(rng, library.words)} | (asdict(record.texts) if record.texts else {})
    templates = library[task]
    if templates.dialogues and record.anomalous:
        turns = tuple(Turn(filled(a, values), filled(b, values)) for a, b in pick(rng, templates.dialogues))
        return Exchange(task, turns, None if task is Task.CONVERSATION else _anomaly(record, shape))
    if templates.dialogues:  # they speak of an anomaly; a normal image is asked for a mask instead
        task, templates = Task.DIRECT, library[Task.DIRECT]
    instruction = filled(pick(rng, templates.instructions), values)
    if task is Task.DESCRIBE_PLUS and record.texts is not None:
        instruction = with_normal_look(record.texts.expectation, instruction)
    if templates.refusals and not record.anomalous:
        return Exchange(task, (Turn(instruction, filled(pick(rng, templates.refusals), values)),), None)
    answer = filled(pick(rng, templates.answers), values)
    mask = _anomaly(record, shape) if record.anomalous else np.zeros(shape, bool)
    return Exchange(task, (Turn(instruction, answer),), mask)


def _general(record: Record, shape: Shape, library: Library, rng: np.random.Generator) -> Exchange:
    targets = record.all_targets(shape)
    if not targets:
        raise ImageError(f"{record.dataset}: {record.name} has nothing in it that can be asked for")
    target = pick(rng, targets)
    task, key = (Task.REFERRING, "expression") if record.family is Family.REFERRING else (Task.GENERAL, "class_name")
    if not target.names:
        raise ImageError(f"{record.dataset}: {record.name} has a mask and no word for it")
    values: Mapping[str, str] = {key: strip_control_tokens(pick(rng, target.names))[0]}
    templates = library[task]
    turn = Turn(filled(pick(rng, templates.instructions), values), filled(pick(rng, templates.answers), values))
    return Exchange(task, (turn,), _not_empty(target, record, shape))


def _anomaly(record: Record, shape: Shape) -> NDArray[np.bool_]:
    if record.mask is None:
        raise ImageError(f"{record.dataset}: {record.name} is anomalous and has no mask")
    return _not_empty(Target(("anomaly",), record.mask), record, shape)


def _not_empty(target: Target, record: Record, shape: Shape) -> NDArray[np.bool_]:
    mask = target.mask.read(shape)
    if not mask.any():
        raise ImageError(f"{record.dataset}: {record.name}: the mask of {target.names[0]} is empty")
    return mask
