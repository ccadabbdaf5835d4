"""From a sample to one exchange: instruction, answer, and the mask that the answer's anchors stand for (paper 3.1, B.1)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.prompts import ANCHORS, DEFAULT_INSTRUCTION, FIXED_ANSWER, INSTRUCTIONS, NO_ANOMALY_ANSWER, Mode
from agvas_core.data.captions import absent_kind, describe, instruction_for, referring
from agvas_core.data.synthesis import Sample

__all__ = ["Dialogue", "Task", "make_dialogue"]

Task = Literal["direct", "describe", "referring", "absent"]


@dataclass(frozen=True)
class Dialogue:
    """``mask`` is bool [H, W]; None where the answer has no anchors, and so no mask to learn from."""

    instruction: str
    answer: str
    mask: NDArray[np.bool_] | None


def make_dialogue(sample: Sample, task: Task, rng: np.random.Generator) -> Dialogue:
    """One exchange about ``sample``; a task that the sample cannot serve becomes ``direct``.

    direct: segment everything (3.1, implicit mode). describe: words first, then the mask (3.1, explicit mode). referring: only the
    defects of a kind, place, size or tone. absent: a kind that is not there; the answer says so and has no anchors.
    """
    if task == "describe" and sample.defects:
        answer = f"There is {describe(sample.defects)}, as indicated by {ANCHORS}."
        return Dialogue(INSTRUCTIONS[Mode.DESCRIBE], answer, sample.mask)
    if task == "describe":
        return Dialogue(INSTRUCTIONS[Mode.DESCRIBE], NO_ANOMALY_ANSWER, None)
    if task == "referring" and (reference := referring(sample, rng)) is not None:
        instruction, mask = reference
        return Dialogue(instruction, FIXED_ANSWER, mask)
    if task == "absent" and (kind := absent_kind(sample, rng)) is not None:
        return Dialogue(instruction_for(rng, kind), f"There is no {kind} in this image.", None)
    # A defect-free part gets the same answer and an empty mask: rejection by the mask, so that direct mode stays one prefill.
    return Dialogue(DEFAULT_INSTRUCTION, FIXED_ANSWER, sample.mask)
