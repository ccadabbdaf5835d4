"""The figures as a table: on the terminal and as Markdown."""

from collections.abc import Iterator
from itertools import groupby

from rich import box
from rich.table import Table
from rich.text import Text

from agvas_core.evaluation.grounding.figures import Figure
from agvas_core.evaluation.grounding.measure import Grounding

__all__ = ["cells", "columns", "markdown_text", "sections", "terminal_table"]

ABSENT = "-"
columns = ("figure", "value", "baseline", "times", "of", "who gets the baseline")


def sections(found: Grounding) -> Iterator[tuple[str, list[Figure]]]:
    """Figures that belong together, in their order."""
    for name, figures in groupby(found.figures, key=lambda figure: figure.section):
        yield name, list(figures)


def cells(figure: Figure) -> tuple[str, ...]:
    """One line, in the order of ``columns``."""
    times = ABSENT if figure.times is None else f"{figure.times:.1f}x"
    return (figure.title, _number(figure.value), _number(figure.baseline), times, str(figure.count), figure.baseline_of)


def terminal_table(found: Grounding) -> Table:
    """For rich."""
    table = Table(title=f"{found.subject}: do words matter?", box=box.SIMPLE, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in (columns[0], columns[-1]) else "right", no_wrap=name != columns[0])
    for name, figures in sections(found):
        table.add_row(Text(name, style="bold"))
        for figure in figures:
            table.add_row(*(Text(cell) for cell in cells(figure)))
        table.add_section()
    return table


def markdown_text(found: Grounding) -> str:
    """A table for a README, and what was said of blank images."""
    text = [_bar(columns), _bar(["---", *["---:"] * (len(columns) - 2), "---"])]
    for name, figures in sections(found):
        text.append(_bar([f"**{name}**", *[""] * (len(columns) - 1)]))
        text += [_bar(cells(figure)) for figure in figures]
    if found.blanks:
        text += ["", "Of a grey image with nothing on it:", ""]
        text += [f"- grey {blank.grey}: {_escaped(blank.text)} ({blank.mask_px} px masked)" for blank in found.blanks]
    text += ["", *(f"{note}\n" for note in found.notes)]
    return "\n".join(text).rstrip() + "\n"


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}"


def _bar(values: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(_escaped(value) for value in values)} |"


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
