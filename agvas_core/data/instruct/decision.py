"""What a person decided about an entry, kept in a file of its own beside the data: the newest decision on it counts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from agvas_core.contract.errors import UsageError
from agvas_core.data.instruct.entry import FIELDS, Entry, ReviewState, texts_digest
from agvas_core.data.instruct.journal import read_lines

__all__ = ["Decision", "decided", "read_decisions", "review_path"]


class Decision(BaseModel):
    """One line of the review log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    on: str
    """Digest of the texts as they were generated: a decision is void for texts that were generated anew since."""
    review: ReviewState
    texts: dict[str, str] | None = None
    """The texts as the person left them, where they are not those that were generated."""
    at: str
    """When, ISO 8601."""


def review_path(path: Path) -> Path:
    """``instruct.jsonl`` -> ``instruct.review.jsonl``."""
    return path.with_suffix(f".review{path.suffix}")


def read_decisions(path: Path) -> dict[str, Decision]:
    """The newest decision on each key; none where the log does not exist.

    Raises:
        UsageError: a line that is no decision.
    """
    found: dict[str, Decision] = {}
    if path.is_file():
        for number, line in read_lines(path):
            decision = _decision(path, number, line)
            found[decision.key] = decision
    return found


def decided(entry: Entry, decisions: Mapping[str, Decision]) -> Entry:
    """``entry`` with the decision on it applied, where there is one and it was made on these texts."""
    decision = decisions.get(entry.key)
    if decision is None or decision.on != texts_digest(entry.texts):
        return entry
    return entry.model_copy(update={**(decision.texts or {}), "review": decision.review})


def _decision(path: Path, number: int, line: dict[str, Any]) -> Decision:
    try:
        decision = Decision.model_validate(line)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{path}, line {number}: {'.'.join(map(str, first['loc']))}: {first['msg']}; take the line out"
        ) from error
    if decision.texts is not None and set(decision.texts) != set(FIELDS):
        raise UsageError(f"{path}, line {number}: texts has {sorted(decision.texts)}; it must have {', '.join(FIELDS)}")
    return decision
