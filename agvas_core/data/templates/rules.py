"""What a template of each task may say, and filling one in.

A line has placeholders in braces. Three of them carry the anchors: {anchors}, {fixed_answer}, {summary}. The anchors themselves are never
typed: they stand in the contract.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from agvas_core.contract.errors import UsageError
from agvas_core.contract.prompts import ANCHOR_TOKENS, ANCHORS, DEFAULT_INSTRUCTION, FIXED_ANSWER, NO_ANOMALY_ANSWER

__all__ = ["CARRIERS", "FIXED", "RULES", "Rule", "Task", "check_line", "filled"]


class Task(StrEnum):
    """Kinds of exchange; each has a template file of its name. The first four are the modes of ``contract.prompts``."""

    DIRECT = "direct"
    DESCRIBE = "describe"
    DESCRIBE_PLUS = "describe-plus"
    EXPLAIN = "explain"
    REJECTION = "rejection"
    GENERAL = "general"
    REFERRING = "referring"
    CONVERSATION = "conversation"
    DIALOGUE = "dialogue"


FIXED: Final[Mapping[str, str]] = {
    "anchors": ANCHORS,
    "fixed_answer": FIXED_ANSWER,
    "default_instruction": DEFAULT_INSTRUCTION,
    "no_anomaly": NO_ANOMALY_ANSWER,
}
"""Placeholders that are always the same: the sentences of the contract."""

CARRIERS: Final = frozenset({"anchors", "fixed_answer", "summary"})
_TEXTS: Final = frozenset({"expectation", "observation", "diagnosis", "explanation"})


@dataclass(frozen=True)
class Rule:
    """What the file of one task has."""

    lists: tuple[str, ...]
    """Lists that it must have."""
    instruction: frozenset[str] = frozenset({"class_name"})
    """Placeholders of instructions."""
    answer: frozenset[str] = frozenset()
    """Placeholders of answers, besides those that carry the anchors and may stand in any."""
    needed: str | None = None
    """The placeholder without which an instruction of this task asks for nothing."""
    anchored: bool = True
    """Whether a dialogue carries the anchors (once) or must not."""

    def allowed(self, name: str) -> frozenset[str]:
        """Placeholders that a line of the list ``name`` may have."""
        if name == "instructions":
            return self.instruction | {"default_instruction"}
        if name == "refusals":
            return frozenset({"class_name", "no_anomaly"})
        return self.answer | self.instruction | {"anchors", "fixed_answer"}


_THREE: Final = ("instructions", "answers", "refusals")
RULES: Final[Mapping[Task, Rule]] = {
    Task.DIRECT: Rule(("instructions", "answers")),
    Task.DESCRIBE: Rule(_THREE, answer=_TEXTS | {"summary"}),
    Task.DESCRIBE_PLUS: Rule(_THREE, answer=_TEXTS | {"summary"}),
    Task.EXPLAIN: Rule(_THREE, answer=_TEXTS | {"summary"}),
    Task.REJECTION: Rule(_THREE),
    Task.GENERAL: Rule(("instructions", "answers"), needed="class_name"),
    Task.REFERRING: Rule(("instructions", "answers"), instruction=frozenset({"expression"}), needed="expression"),
    Task.CONVERSATION: Rule(("dialogues",), answer=_TEXTS, anchored=False),
    Task.DIALOGUE: Rule(("dialogues",), answer=_TEXTS | {"summary"}),
}


def check_line(line: str, allowed: frozenset[str], where: str) -> int:
    """How often the line carries the anchors.

    Raises:
        UsageError: it is empty, has a placeholder that is not ``allowed``, a brace too many, or anchors that were typed.
    """
    if not line.strip():
        raise UsageError(f"{where} is empty: take it out")
    if typed := [token for token in ANCHOR_TOKENS if token in line]:
        raise UsageError(f"{where} has {typed[0]} typed out: {line!r}; write {{anchors}}")
    try:
        found = [(name, spec, conversion) for _, name, spec, conversion in string.Formatter().parse(line) if name is not None]
    except ValueError as error:
        raise UsageError(f"{where}: {error}: {line!r}; write {{{{ and }}}} for braces that are meant") from error
    for name, spec, conversion in found:
        if name not in allowed or spec or conversion:
            raise UsageError(
                f"{where}: there is no placeholder {{{name}}} here: {line!r}; there are {', '.join(sorted(allowed))}"
            )
    return sum(name in CARRIERS for name, _, _ in found)


def filled(line: str, values: Mapping[str, str]) -> str:
    """The line with ``values`` and the contract's sentences in it; what stands in braces in a value stays as it is."""
    return line.format_map({**FIXED, **values})
