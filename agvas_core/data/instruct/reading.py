"""Reading the data set: what was generated, with the decisions of the review applied.

for record in read_instruct(Path("instruct.jsonl")):
    print(record.image, record.texts.summary)
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from agvas_core.contract.errors import UsageError
from agvas_core.data.datasets.record import Family, Record, Texts
from agvas_core.data.instruct.decision import decided, read_decisions, review_path
from agvas_core.data.instruct.entry import Entry, ReviewState
from agvas_core.data.instruct.journal import read_lines

__all__ = ["NOT_REJECTED", "REVIEWED", "read_entries", "read_instruct"]

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
            raise UsageError(f"{path}, line {number}: {where}: {first['msg']}; mend the line or take it out") from error
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
