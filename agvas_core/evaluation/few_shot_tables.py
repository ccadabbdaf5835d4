"""A few-shot evaluation on the terminal, as CSV, Markdown and LaTeX, and as a page."""

import csv
import html
import io
from collections.abc import Sequence
from typing import Final

from rich import box
from rich.table import Table
from rich.text import Text

from agvas_core.evaluation.few_shot import COLUMNS, FewShot, Line, shots_text, spread_text
from agvas_core.evaluation.metrics import METRICS
from agvas_core.evaluation.page import CAUGHT, category_section, cells, document
from agvas_core.evaluation.tables import latex, latex_line, markdown_line

__all__ = ["csv_text", "latex_text", "markdown_text", "render_page", "terminal_table"]

HEAD: Final = ("set", "category", "good images", "tested", *(METRICS[key] for key in COLUMNS))
WORDS: Final = "In percent: mean over the draws, and their standard deviation."
PICTURES: Final = 4
CHART_PX: Final = (250, 190)
EDGE: Final = 30
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#000000")  # Okabe-Ito
CHARTS: Final = ("image_auroc", "ap", "caught_5")


def terminal_table(result: FewShot) -> Table:
    """For rich."""
    title = f"{result.subject}, few-shot, {_draws(result)}, protocol {result.protocol['name']}, in %"
    table = Table(title=title, box=box.SIMPLE, pad_edge=False)
    for number, name in enumerate(HEAD):
        table.add_column(name, justify="left" if number < 2 else "right")
    for line in result.lines():
        table.add_row(*(Text(text) for text in _texts(line)), style="bold" if line.category == "mean" else "")
    return table


def csv_text(result: FewShot) -> str:
    """Every metric in full precision, shares of 1; an empty cell for what does not exist."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    figures = [name for key in METRICS for name in (key, f"{key}_deviation")]
    writer.writerow(["set", "category", "shots", "used", "seeds", "images", *figures])
    for line in result.lines():
        values: list[str] = []
        for key in METRICS:
            found = line.metrics[key]
            values.append("" if found is None else repr(found.mean))
            values.append("" if found is None or found.deviation is None else repr(found.deviation))
        used = " ".join(map(str, line.used or (line.shots,)))
        writer.writerow([line.dataset, line.category, line.shots, used, result.plan.seeds, line.images, *values])
    return out.getvalue()


def markdown_text(result: FewShot) -> str:
    """A table for a README."""
    text = [markdown_line(HEAD), markdown_line(["---", "---", *["---:"] * (len(HEAD) - 2)])]
    text += [markdown_line([cell.replace("|", "\\|") for cell in _texts(line)]) for line in result.lines()]
    return "\n".join([*text, "", WORDS]) + "\n"


def latex_text(result: FewShot) -> str:
    """Rows for a tabular with ``ll`` and a column for each number; the head stands in a comment."""
    text = [f"% {' & '.join(HEAD)}; {WORDS}"]
    for line in result.lines():
        text.append(latex_line([latex(cell).replace("±", r"\,$\pm$\,") for cell in _texts(line)]))
    return "\n".join(text) + "\n"


def render_page(result: FewShot) -> str:
    """The whole page; reads the images it shows: those of the most good images and the first draw."""
    title = f"{result.subject}: few-shot evaluation"
    facts = [
        f"Protocol <b>{_text(result.protocol['name'])}</b>: {_text(result.protocol['about'])}.",
        f"{_text(_draws(result))} of {_text(', '.join(map(str, result.plan.shots)))} good images.",
        *(
            f"{_text(key)}: {_text(', '.join(value) if isinstance(value, list) else value)}"
            for key, value in result.facts.items()
            if value not in (None, [], {})
        ),
        *map(_text, result.notes),
    ]
    lines = result.lines()
    most = max(result.plan.shots)
    shown = [trial for trial in result.trials if trial.shots == most and trial.seed == 0]
    body = "".join(f"<tr class={'mean' if line.category == 'mean' else 'one'}>{cells('td', _texts(line))}</tr>" for line in lines)
    parts = [
        f"<h1>{_text(title)}</h1>",
        "<ul class=facts>" + "".join(f"<li>{fact}</li>" for fact in facts) + "</ul>",
        f"<div class=side>{''.join(_chart(key, lines, result.plan.shots) for key in CHARTS)}</div>",
        _legend(lines),
        f"<table class=results><thead><tr>{cells('th', HEAD)}</tr></thead><tbody>{body}</tbody></table>",
        f"<p>{WORDS} {CAUGHT}</p>",
        *(category_section(f"{trial.dataset}, {trial.used} good images, seed 0", trial.result, PICTURES) for trial in shown),
    ]
    return document(title, parts)


def _draws(result: FewShot) -> str:
    return "1 draw" if result.plan.seeds == 1 else f"{result.plan.seeds} draws"


def _texts(line: Line) -> list[str]:
    figures = [spread_text(line.metrics[key]) for key in COLUMNS]
    return [line.dataset, line.category, shots_text(line), f"{line.images:,}", *figures]


def _curves(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """What the charts draw: the categories where they are few, else the means."""
    names: dict[str, list[Line]] = {}
    for line in lines:
        names.setdefault(f"{line.dataset} / {line.category}", []).append(line)
    if len(names) > len(COLOURS):
        names = {name: some for name, some in names.items() if name.endswith("/ mean")} or names
    return dict(list(names.items())[: len(COLOURS)])


def _legend(lines: Sequence[Line]) -> str:
    named = zip(COLOURS, _curves(lines), strict=False)
    return "<p>" + " ".join(f'<span style="color:{colour}">&#9632; {_text(name)}</span>' for colour, name in named) + "</p>"


def _chart(key: str, lines: Sequence[Line], shots: Sequence[int]) -> str:
    """One metric over the number of good images, a line for each category, a bar for the spread."""
    width, height = CHART_PX

    def x(count: int) -> float:
        step = (width - 30) / max(1, len(shots) - 1)
        return EDGE + 12 + (step * list(shots).index(count) if len(shots) > 1 else (width - 30) / 2)

    def y(share: float) -> float:
        return 8 + (1.0 - min(1.0, max(0.0, share))) * height

    drawn = [f'<path class="grid" d="M{EDGE} {y(share):.0f}h{width}"/>' for share in (0, 0.25, 0.5, 0.75, 1)]
    drawn += [f'<text x="{EDGE - 4}" y="{y(share) + 4:.0f}" text-anchor="end">{100 * share:.0f}</text>' for share in (0, 0.5, 1)]
    drawn += [f'<text x="{x(count):.1f}" y="{height + 22}" text-anchor="middle">{count}</text>' for count in shots]
    for colour, some in zip(COLOURS, _curves(lines).values(), strict=False):
        found = [(x(line.shots), value) for line in some if (value := line.metrics[key]) is not None]
        points = " ".join(f"{at:.1f},{y(value.mean):.1f}" for at, value in found)
        drawn.append(f'<polyline points="{points}" style="stroke:{colour}"/>')
        for at, value in found:
            drawn.append(f'<circle cx="{at:.1f}" cy="{y(value.mean):.1f}" r="3" fill="{colour}"/>')
            if value.deviation:
                top, bottom = y(value.mean + value.deviation), y(value.mean - value.deviation)
                drawn.append(f'<path d="M{at:.1f} {top:.1f}V{bottom:.1f}" stroke="{colour}" fill="none"/>')
    size = (width + EDGE + 8, height + 44)
    title = f'<text x="{EDGE + width / 2}" y="{height + 40}" text-anchor="middle">good images</text>'
    head = f"<figcaption>{_text(METRICS[key])} (in %)</figcaption>"
    svg = f'<svg class="curve" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" role="img">{"".join(drawn)}{title}</svg>'
    return f'<figure style="width:{size[0]}px">{head}{svg}</figure>'


def _text(value: object) -> str:
    return html.escape(str(value))
