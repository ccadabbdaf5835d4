"""What a check found, as a table for the terminal and as JSON."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Final

from rich import box
from rich.table import Table
from rich.text import Text

from agvas_core.contract.command_line import printable
from agvas_core.data.sets.check import Problem, Row, SetReport

__all__ = ["json_report", "problem_lines", "terminal_table"]

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
