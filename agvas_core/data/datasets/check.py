"""Checks every file of a set: counts, and each fault with its place."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from agvas_core.contract.command_line import printable
from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.data.datasets.catalog import FoundSet
from agvas_core.data.datasets.record import MaskSource, Record, Shape
from agvas_core.files import read_rgb

__all__ = ["Problem", "Row", "SetReport", "check_set", "json_report", "problem_lines", "terminal_table"]


Kind = Literal["listing", "part", "download", "image", "mask", "empty", "words", "count"]
_NOTES: Final = frozenset({"count"})
_UNFINISHED: Final = (".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp")
_CHUNK: Final = 32
_UNREAD: Final = "(not read)"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or, for ``count``, worth knowing."""

    kind: Kind
    where: str
    what: str

    @property
    def is_note(self) -> bool:
        """Whether the set can be used all the same."""
        return self.kind in _NOTES


@dataclass
class Row:
    """Counts of one category in one split. An image with several targets counts once in each of their categories."""

    images: int = 0
    normal: int = 0
    anomalous: int = 0
    masks: int = 0
    coarse: int = 0


@dataclass
class SetReport:
    """What was found in one set."""

    name: str
    root: Path
    family: str
    records: int = 0
    images: int = 0
    rows: dict[tuple[str, str], Row] = field(default_factory=lambda: defaultdict(Row))
    """By split and category."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def faults(self) -> int:
        """Problems that are not mere notes."""
        return sum(not problem.is_note for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "root": str(self.root),
            "family": self.family,
            "records": self.records,
            "images": self.images,
            "faults": self.faults,
            "rows": [{"split": split, "category": category, **vars(row)} for (split, category), row in sorted(self.rows.items())],
            "problems": [{**vars(problem), "note": problem.is_note} for problem in self.problems],
        }


@dataclass(frozen=True)
class _Seen:
    """What was found in one image: (record, category, masks, coarse ones), and what is wrong."""

    counted: tuple[tuple[int, str, int, int], ...]
    problems: tuple[Problem, ...]


def check_set(
    found: FoundSet, *, jobs: int = 1, quick: bool = False, advance: Callable[[int], None] = lambda images: None
) -> SetReport:
    """Everything about one set.

    Args:
        jobs: processes.
        quick: only whether files are there; nothing is decoded.
        advance: called with how many more images are done.
    """
    report = SetReport(found.adapter.name, found.root, found.adapter.family)
    report.problems += [
        Problem("part", part, "is missing: download or unpack it") for part in found.adapter.missing_parts(found.root)
    ]
    report.problems += _unfinished(found.root)
    groups: dict[Path, list[Record]] = defaultdict(list)
    try:
        for record in found.records():
            groups[record.image].append(record)
    except UsageError as error:  # what was listed before is looked at all the same
        report.problems.append(Problem("listing", str(found.root), str(error)))
    report.images, report.records = len(groups), sum(map(len, groups.values()))
    if not groups and not report.faults:
        report.problems.append(
            Problem("listing", str(found.root), f"lists no image; {found.adapter.name} needs {found.adapter.layout}")
        )
    members = list(groups.values())
    for group, seen in zip(members, _looked_at(members, jobs, quick, advance), strict=True):
        _count(report, group, seen)
    expected = found.adapter.published_images
    if expected is not None and 0 < report.images < expected:
        report.problems.append(
            Problem("count", str(found.root), f"{report.images:,} images of the {expected:,} that the whole set has")
        )
    return report


def _looked_at(members: list[list[Record]], jobs: int, quick: bool, advance: Callable[[int], None]) -> Iterator[_Seen]:
    if jobs == 1 or len(members) <= _CHUNK:
        for group in members:
            yield _look(group, quick)
            advance(1)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as processes:
        for seen in processes.map(_look, members, [quick] * len(members), chunksize=_CHUNK):
            yield seen
            advance(1)


def _look(group: list[Record], quick: bool) -> _Seen:
    """One image with all its records."""
    first = group[0]
    problems: list[Problem] = []
    shape: Shape | None = None
    if not first.image.is_file():
        problems.append(Problem("image", first.name, f"{first.image} is missing"))
    elif not quick:
        try:
            image = read_rgb(first.image, first.name)
            shape = (image.shape[0], image.shape[1])
        except ImageError as error:
            problems.append(Problem("image", first.name, str(error)))
    counted: list[tuple[int, str, int, int]] = []
    for number, record in enumerate(group):
        problems += _said(record)
        for category, mask in _masks(record, shape, problems):
            usable = mask is not None and _mask_stands(record, mask, shape, problems)
            counted.append((number, category, int(usable), int(usable and mask is not None and mask.coarse)))
    return _Seen(tuple(counted), tuple(problems))


def _masks(record: Record, shape: Shape | None, problems: list[Problem]) -> Iterator[tuple[str, MaskSource | None]]:
    """(category, mask) of everything that the record has; one without a mask where it has none."""
    if record.labels is not None:
        if not record.labels.path.is_file():
            problems.append(Problem("mask", record.name, f"{record.labels.path} is missing"))
        elif shape is not None:
            try:
                for target in record.labels.targets(shape):
                    yield target.names[0], target.mask
                return
            except ImageError as error:
                problems.append(Problem("mask", record.name, str(error)))
        yield _UNREAD, None
    elif record.targets:
        for target in record.targets:
            yield record.category or next(iter(target.names), ""), target.mask
    else:
        if record.anomalous and record.mask is None:
            problems.append(Problem("mask", record.name, f"is anomalous ({record.kind or 'no kind given'}) and has no mask"))
        yield record.category, record.mask if record.anomalous else None


def _mask_stands(record: Record, mask: MaskSource, shape: Shape | None, problems: list[Problem]) -> bool:
    if mask.path is not None and not mask.path.is_file():
        problems.append(Problem("mask", record.name, f"{mask.path} is missing"))
        return False
    if shape is None:
        return True
    try:
        if mask.read(shape).any():
            return True
        problems.append(Problem("empty", record.name, f"the mask {mask.path or 'from its annotations'} is empty"))
    except ImageError as error:
        problems.append(Problem("mask", record.name, str(error)))
    return False


def _said(record: Record) -> Iterable[Problem]:
    """Words that are missing."""
    if any(not target.names for target in record.targets):
        yield Problem("words", record.name, "has a mask and no word for it")
    if any(not turn.instruction or not turn.answer for turn in record.turns):
        yield Problem("words", record.name, "a question or an answer is empty")


def _count(report: SetReport, group: list[Record], seen: _Seen) -> None:
    report.problems += seen.problems
    once: Counter[tuple[str, str, str]] = Counter()
    for number, category, masks, coarse in seen.counted:
        record = group[number]
        row = report.rows[record.split, category]
        row.masks += masks
        row.coarse += coarse
        standing = "" if record.anomalous is None else "anomalous" if record.anomalous else "normal"
        once[record.split, category, standing] += 1
    for split, category, standing in once:
        row = report.rows[split, category]
        row.images += 1
        row.anomalous += standing == "anomalous"
        row.normal += standing == "normal"


def _unfinished(root: Path) -> Iterator[Problem]:
    """Files that a download left behind, here and one folder below."""
    for path in sorted((*root.glob("*"), *root.glob("*/*.*"))):
        if path.suffix.lower() in _UNFINISHED and path.is_file():
            yield Problem(
                "download", str(path.relative_to(root)), "was left behind by a download that did not end: start it again"
            )


# What a check found, as a table for the terminal and as JSON.


_CATEGORIES: Final = 16  # of a set, on the terminal
_PROBLEMS: Final = 10  # of a kind, on the terminal
_TITLES: Final = {
    "listing": "cannot be listed",
    "part": "parts that are missing",
    "download": "unfinished downloads",
    "image": "images that are missing or broken",
    "mask": "masks that are missing, broken or of another size",
    "empty": "empty masks",
    "words": "words that are missing",
    "count": "worth knowing",
}


def json_report(reports: Sequence[SetReport]) -> dict[str, Any]:
    """Everything, each problem included."""
    return {"sets": [report.to_dict() for report in reports], "faults": sum(report.faults for report in reports)}


def terminal_table(reports: Sequence[SetReport]) -> Table:
    """Counts by set, split and category; the largest categories of each split, and the rest together."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for title in ("set", "split", "category"):
        table.add_column(title)
    for title in ("images", "normal", "anomalous", "masks"):
        table.add_column(title, justify="right", no_wrap=True)
    for report in reports:
        by_split: dict[str, list[tuple[str, Row]]] = defaultdict(list)
        for (split, category), row in sorted(report.rows.items()):
            by_split[split].append((category, row))
        for split, rows in by_split.items():
            for category, row in _shown(rows):
                _add(table, report.name, split, category, row)
        has_truth = any(row.normal or row.anomalous for row in report.rows.values())
        total = Row(
            report.images,
            sum(row.normal for row in report.rows.values()),
            sum(row.anomalous for row in report.rows.values()),
            sum(row.masks for row in report.rows.values()),
        )
        cells = (report.name, "all", f"{report.records:,} records", f"{total.images:,}")
        counts = (f"{total.normal:,}", f"{total.anomalous:,}") if has_truth else ("", "")
        table.add_row(*map(Text, (*cells, *counts, f"{total.masks:,}")), style="bold", end_section=True)
    return table


def problem_lines(reports: Sequence[SetReport]) -> list[str]:
    """What is wrong, set by set and kind by kind, the first of each."""
    lines = []
    for report in reports:
        by_kind: dict[str, list[Problem]] = defaultdict(list)
        for problem in report.problems:
            by_kind[problem.kind].append(problem)
        for kind in sorted(by_kind, key=list(_TITLES).index):
            found = by_kind[kind]
            lines.append(f"{report.name}: {_TITLES[kind]}: {len(found):,}")
            lines += [f"  {printable(problem.where)}: {printable(problem.what)}" for problem in found[:_PROBLEMS]]
            if len(found) > _PROBLEMS:
                lines.append(f"  and {len(found) - _PROBLEMS:,} more; --out FILE writes them all")
        if coarse := sum(row.coarse for row in report.rows.values()):
            lines.append(f"{report.name}: {coarse:,} masks are filled boxes; the set has nothing finer")
    return lines


def _shown(rows: list[tuple[str, Row]]) -> list[tuple[str, Row]]:
    if len(rows) <= _CATEGORIES:
        return rows
    largest = sorted(rows, key=lambda item: (-item[1].images, item[0]))
    kept = {category for category, _ in largest[: _CATEGORIES - 1]}
    together: Counter[str] = Counter()
    for category, row in rows:
        if category not in kept:
            together.update(vars(row))
    rest = (f"{len(rows) - len(kept)} others, together", Row(**together))
    return [(category, row) for category, row in rows if category in kept] + [rest]


def _add(table: Table, name: str, split: str, category: str, row: Row) -> None:
    truth = (f"{row.normal:,}", f"{row.anomalous:,}") if row.normal or row.anomalous else ("", "")
    table.add_row(
        *map(Text, (name, split, printable(category), f"{row.images:,}", *truth, f"{row.masks:,}" if row.masks else ""))
    )
