"""The generated data set: its entries, the decisions of the review on them, and reading both.

An entry is one line: a sample, the five texts about it, and where they came from.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import StrictModel
from agvas_core.data.datasets.masks import FileMask
from agvas_core.data.datasets.record import Family, Record, Texts
from agvas_core.data.instruct.journal import read_lines
from agvas_core.files import MaskLevel

__all__ = [
    "FIELDS",
    "NOT_REJECTED",
    "REVIEWED",
    "Decision",
    "Entry",
    "ReviewState",
    "decided",
    "read_decisions",
    "read_entries",
    "read_instruct",
    "review_path",
    "texts_digest",
]


FIELDS: Final = ("expectation", "observation", "diagnosis", "summary", "explanation")
"""The five texts, in the order in which they build on each other (sec. 3.3)."""

ReviewState = Literal["pending", "accepted", "edited", "rejected"]


class Entry(StrictModel):
    """One sample with its texts. ``image`` and ``mask`` are relative to ``root``, and that to the folder of the file."""

    dataset: str
    root: str
    image: str
    mask: str
    mask_level: MaskLevel = "any"
    category: str
    kind: str
    expectation: str
    observation: str
    diagnosis: str
    summary: str
    explanation: str
    model: str
    """What was asked for, as the endpoint calls it."""
    endpoint: str
    """Host and port; no path, no key."""
    prompt: str
    """Hash of everything that is the same in each request: system prompt, worked example, wording, how pictures are drawn."""
    review: ReviewState = "pending"

    @property
    def key(self) -> str:
        """What tells this sample from every other."""
        return f"{self.dataset}/{self.image}"

    @property
    def texts(self) -> dict[str, str]:
        """The five texts by field."""
        return {field: getattr(self, field) for field in FIELDS}

    def folder(self, file: Path, root: Path | None = None) -> Path:
        """The folder of the set: ``root`` where one is named, else as seen from the file that this stands in."""
        return root or (file.resolve().parent / self.root).resolve()

    def file_mask(self, folder: Path) -> FileMask:
        """The mask, not read yet."""
        return FileMask(folder / self.mask, self.mask_level)


def texts_digest(texts: dict[str, str]) -> str:
    """Says whether a decision was made on these very texts."""
    return hashlib.sha256("\0".join(texts[field] for field in FIELDS).encode()).hexdigest()[:16]


# What a person decided about an entry, kept in a file of its own beside the data: the newest decision on it counts.


class Decision(StrictModel):
    """One line of the review log."""

    key: str
    on: str
    """Digest of the texts as they were generated: a decision is void for texts that were generated again since."""
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


# Reading the data set: what was generated, with the decisions of the review applied.
#
# for record in read_instruct(Path("instruct.jsonl")):
#     print(record.image, record.texts.summary)


NOT_REJECTED: tuple[ReviewState, ...] = ("pending", "accepted", "edited")
REVIEWED: tuple[ReviewState, ...] = ("accepted", "edited")


def read_instruct(path: Path, *, root: Path | None = None, states: Sequence[ReviewState] = NOT_REJECTED) -> list[Record]:
    """The samples of a file, in its order, as the review left them.

    Args:
        path: the file that ``agvas data instruct`` wrote; its review log beside it is read as well.
        root: the folder of the set, where it is no longer where it was.
        states: which to keep; ``REVIEWED`` keeps what a person saw, as all of the paper's were.

    Raises:
        UsageError: the file cannot be read, a line is no entry, or two lines are about one sample.
    """
    decisions = read_decisions(review_path(path))
    entries = (decided(entry, decisions) for entry in read_entries(path))
    return [_record(entry, entry.folder(path, root)) for entry in entries if entry.review in states]


def read_entries(path: Path) -> list[Entry]:
    """The lines as they stand in the file, without the review.

    Raises:
        UsageError: as :func:`read_instruct`.
    """
    entries: dict[str, Entry] = {}
    lines: dict[str, int] = {}
    for number, line in read_lines(path):
        try:
            entry = Entry.model_validate(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UsageError(f"{path}, line {number}: {where}: {first['msg']}; fix the line or remove it") from error
        if entry.key in entries:
            raise UsageError(f"{path}, line {number}: {entry.key} stands in line {lines[entry.key]} already: keep one of them")
        entries[entry.key], lines[entry.key] = entry, number
    return list(entries.values())


def _record(entry: Entry, folder: Path) -> Record:
    return Record(
        dataset=entry.dataset,
        family=Family.INSTRUCT,
        image=folder / entry.image,
        name=entry.image,
        split="train",
        category=entry.category,
        anomalous=True,
        kind=entry.kind,
        mask=entry.file_mask(folder),
        texts=Texts(**entry.texts),
    )
