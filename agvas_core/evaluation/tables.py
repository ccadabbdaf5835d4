"""The result as rows: on the terminal, as CSV, Markdown and LaTeX."""

import csv
import io
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from agvas_core.evaluation.metrics import FALSE_REJECTS, METRICS
from agvas_core.evaluation.result import Evaluation, Metrics, SetResult

__all__ = [
    "PaperRow",
    "Row",
    "csv_text",
    "image_counts",
    "latex",
    "latex_line",
    "latex_text",
    "markdown_line",
    "markdown_text",
    "paper_note",
    "paper_rows",
    "percent",
    "rows",
    "shown",
    "source",
    "terminal_table",
]


# The paper's figures as rows beside ours, each marked as the paper's.


MVTEC = "MVTec-AD"
_METRICS = ("ap", "f1_max", "iou_ano", "iou_nor")


@dataclass(frozen=True)
class PaperRow:
    """``method`` on a set, or on one category of it; metrics as shares, None where the paper has none."""

    method: str
    dataset: str
    category: str | None
    metrics: dict[str, float | None]


Counts = tuple[int, int]
"""Anomalous and normal images."""


def paper_rows(set_name: str, counts: Mapping[str, Counts]) -> Iterator[PaperRow]:
    """Rows of the set of that name, and for MVTec-AD of its categories; none where the paper has no such set, or other images of it.

    Args:
        counts: images scored, by category.
    """
    data = _data()
    dataset = data["names"].get(set_name.lower())
    if dataset is None:
        return
    if dataset == MVTEC:
        method = next(iter(data["mean"]))
        for category, count in counts.items():
            if list(count) == data["images-mvtec"].get(category):
                yield PaperRow(method, dataset, category, _metrics(data["mvtec"][category]))
    if _total(counts) != tuple(data["images"][dataset]):
        return
    for method, sets in data["mean"].items():
        if dataset in sets:
            yield PaperRow(method, dataset, None, _metrics(sets[dataset]))


def paper_note(set_name: str, counts: Mapping[str, Counts]) -> str | None:
    """Why the paper's mean does not stand beside a set that it has; None where it does, or has none."""
    data = _data()
    dataset = data["names"].get(set_name.lower())
    if dataset is None or (ours := _total(counts)) == (theirs := tuple(data["images"][dataset])):
        return None
    return (
        f"{set_name}: the paper's mean of {dataset} is of {theirs[0]:,} anomalous and {theirs[1]:,} normal images, these are {ours[0]:,} and "
        f"{ours[1]:,}: other images, so it does not stand beside ours"
        + ("" if dataset == MVTEC else f"; the authors' list meta_{dataset}.json has theirs.")
    )


def _total(counts: Mapping[str, Counts]) -> Counts:
    return sum(count[0] for count in counts.values()), sum(count[1] for count in counts.values())


def source() -> str:
    """Where the figures stand."""
    return str(_data()["source"])


def _data() -> dict[str, Any]:
    return tomllib.loads(resources.files("agvas_core.evaluation").joinpath("paper.toml").read_text(encoding="utf-8"))


def _metrics(percent: list[float]) -> dict[str, float | None]:
    known = {key: None if math.isnan(value) else round(value / 100, 6) for key, value in zip(_METRICS, percent, strict=True)}
    return {key: known.get(key) for key in METRICS}


MEAN = "mean"
ABSENT = "-"


@dataclass(frozen=True)
class Row:
    """One line of every table."""

    dataset: str
    category: str
    """Name, or ``mean``."""
    images: int | None
    good: int | None
    metrics: Metrics
    method: str | None = None
    """Named for rows of the paper, None for our own."""


def image_counts(one: SetResult) -> dict[str, Counts]:
    """Anomalous and normal images of each category."""
    return {category.name: (category.anomalous, len(category.records) - category.anomalous) for category in one.categories}


def rows(result: Evaluation, *, beside_paper: bool = False) -> list[Row]:
    """Category by category, then the mean of the set; where there are several sets, their mean is last."""
    lines: list[Row] = []
    for one in result.sets:
        theirs = list(paper_rows(one.name, image_counts(one))) if beside_paper else []
        for category in one.categories:
            good = len(category.records) - category.anomalous
            lines.append(Row(one.name, category.name, len(category.records), good, category.metrics))
            lines += [
                Row(r.dataset, category.name, None, None, r.metrics, r.method) for r in theirs if r.category == category.name
            ]
        if len(one.categories) > 1 or theirs:
            lines.append(Row(one.name, MEAN, one.images, None, one.mean))
        lines += [Row(r.dataset, MEAN, None, None, r.metrics, r.method) for r in theirs if r.category is None]
    if len(result.sets) > 1:
        lines.append(Row("all sets", MEAN, sum(one.images for one in result.sets), None, result.mean))
    return lines


def shown(lines: Sequence[Row]) -> list[str]:
    """Metrics of the tables for people; what needs good parts is left out where there are none. CSV and JSON have them all."""
    caught = ["caught_5"] if any(line.metrics["caught_5"] is not None for line in lines) else []
    return [key for key in METRICS if key not in FALSE_REJECTS or key in caught]


def percent(value: float | None) -> str:
    """``51.0`` for .51; ``-`` for what does not exist."""
    return ABSENT if value is None else f"{100 * value:.1f}"


def terminal_table(result: Evaluation, lines: Sequence[Row]) -> Table:
    """For rich; the paper's rows are dim, and marked."""
    table = Table(title=f"{result.subject}, protocol {result.protocol['name']}, in %", box=box.SIMPLE, pad_edge=False)
    table.add_column("set")
    table.add_column("category")
    table.add_column("images", justify="right")
    keys = shown(lines)
    for key in keys:
        table.add_column(METRICS[key], justify="right")
    for line in lines:
        style = "dim" if line.method else "bold" if line.category == MEAN else ""
        cells = [_dataset(line), _category(line), "" if line.images is None else f"{line.images:,}"]
        table.add_row(*(Text(cell) for cell in (*cells, *map(percent, _values(line, keys)))), style=style)
    if any(line.method for line in lines):
        table.caption = f"Rows marked (paper) are figures of {source()}; this software did not measure them."
    return table


def csv_text(lines: Sequence[Row]) -> str:
    """Full precision, shares of 1; an empty cell for what does not exist."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["origin", "set", "category", "images", "good", *METRICS])
    for line in lines:
        counts = ["" if count is None else count for count in (line.images, line.good)]
        values = ["" if value is None else repr(value) for value in _values(line, METRICS)]
        writer.writerow([f"paper: {line.method}" if line.method else "measured", line.dataset, line.category, *counts, *values])
    return out.getvalue()


def markdown_text(lines: Sequence[Row]) -> str:
    """A table for a README."""
    keys = shown(lines)
    head = ["set", "category", "images", *(METRICS[key] for key in keys)]
    text = [markdown_line(head), markdown_line(["---", "---", *["---:"] * (len(head) - 2)])]
    for line in lines:
        count = "" if line.images is None else str(line.images)
        name = (_dataset(line), _category(line))
        cells = [cell.replace("|", "\\|") for cell in (*name, count, *map(percent, _values(line, keys)))]
        text.append(markdown_line([f"*{cell}*" if line.method and cell else cell for cell in cells]))
    if any(line.method for line in lines):
        text += ["", f"Rows in italics are figures of {source()}; this software did not measure them."]
    return "\n".join(text) + "\n"


def latex_text(lines: Sequence[Row]) -> str:
    """Rows for a tabular with ``ll`` and a column for each number; the head stands in a comment."""
    keys = shown(lines)
    text = [f"% set & category & images & {' & '.join(METRICS[key] for key in keys)}; in percent"]
    for line in lines:
        count = "" if line.images is None else str(line.images)
        names = [latex(_dataset(line)), latex(_category(line)), count]
        cells = [*names, *("--" if v is None else percent(v) for v in _values(line, keys))]
        text.append(latex_line([rf"\textit{{{cell}}}" if line.method and cell else cell for cell in cells]))
    if any(line.method for line in lines):
        text.append(f"% rows in italics are figures of {source()}; this software did not measure them")
    return "\n".join(text) + "\n"


def latex_line(cells: Sequence[str]) -> str:
    """One row of a tabular, of cells that are LaTeX already."""
    return " & ".join(cells) + r" \\"


def _values(line: Row, keys: Iterable[str]) -> list[float | None]:
    return [line.metrics[key] for key in keys]


def _category(line: Row) -> str:
    return f"{line.category}, {line.method}" if line.method else line.category


def _dataset(line: Row) -> str:
    return f"{line.dataset} (paper)" if line.method else line.dataset


def markdown_line(cells: Sequence[str]) -> str:
    """One row of a table."""
    return f"| {' | '.join(cells)} |"


def latex(text: str) -> str:
    """Plain text as LaTeX."""
    for special in "\\&%$#_{}":
        text = text.replace(special, r"\textbackslash " if special == "\\" else f"\\{special}")
    return text
