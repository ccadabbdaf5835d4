"""A few-shot evaluation on the terminal, as CSV, Markdown and LaTeX, and as a page."""

import csv
import io
from collections.abc import Sequence
from typing import Final

from rich import box
from rich.table import Table
from rich.text import Text

from agvas_core.contract.pages.chart import Chart
from agvas_core.contract.pages.document import cells, escaped
from agvas_core.evaluation.few_shot import COLUMNS, FewShot, Line, shots_text, spread_text
from agvas_core.evaluation.metrics import METRICS
from agvas_core.evaluation.page import CAUGHT, category_section, eval_document
from agvas_core.evaluation.tables import latex, latex_line, markdown_line

__all__ = ["csv_text", "latex_text", "markdown_text", "render_page", "terminal_table"]

HEAD: Final = ("set", "category", "good images", "tested", *(METRICS[key] for key in COLUMNS))
WORDS: Final = "In percent: mean over the draws, and their standard deviation."
PICTURES: Final = 4
CHART_PX: Final = (320, 250)
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
        f"Protocol <b>{escaped(result.protocol['name'])}</b>: {escaped(result.protocol['about'])}.",
        f"{escaped(_draws(result))} of {escaped(', '.join(map(str, result.plan.shots)))} good images.",
        *(
            f"{escaped(key)}: {escaped(', '.join(value) if isinstance(value, list) else value)}"
            for key, value in result.facts.items()
            if value not in (None, [], {})
        ),
        *map(escaped, result.notes),
    ]
    lines = result.lines()
    most = max(result.plan.shots)
    shown = [trial for trial in result.trials if trial.shots == most and trial.seed == 0]
    body = "".join(f"<tr class={'mean' if line.category == 'mean' else 'one'}>{cells('td', _texts(line))}</tr>" for line in lines)
    parts = [
        f"<div class=side>{''.join(_chart(key, lines, result.plan.shots) for key in CHARTS)}</div>",
        _legend(lines),
        f"<section class=panel><div class=scroll><table class=results><thead><tr>{cells('th', HEAD)}</tr></thead><tbody>{body}</tbody></table></div>"
        f"<p class=quiet>{WORDS} {CAUGHT}</p></section>",
        *(category_section(f"{trial.dataset}, {trial.used} good images, seed 0", trial.result, PICTURES) for trial in shown),
    ]
    return eval_document(title, facts, parts)


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
    return "<p>" + " ".join(f'<span style="color:{colour}">&#9632; {escaped(name)}</span>' for colour, name in named) + "</p>"


def _chart(key: str, lines: Sequence[Line], shots: Sequence[int]) -> str:
    """One metric over the number of good images, a line for each category, a bar for the spread."""
    chart = Chart(
        (-0.3, len(shots) - 0.7), (0, 100), "good images", "%", f"{METRICS[key]} over the number of good images",
        x_names=[str(count) for count in shots], width=CHART_PX[0], height=CHART_PX[1],
    )  # fmt: skip
    for colour, (name, some) in zip(COLOURS, _curves(lines).items(), strict=False):
        found = [(list(shots).index(line.shots), value) for line in some if (value := line.metrics[key]) is not None]
        if found:
            chart.line([(at, 100 * value.mean) for at, value in found], "series", name, colour)
        for at, value in found:
            chart.dot(at, 100 * value.mean, "", f"{name}: {100 * value.mean:.1f}", radius=3, colour=colour)
            if value.deviation:
                low, high = (100 * min(1.0, max(0.0, value.mean + side * value.deviation)) for side in (-1, 1))
                chart.line([(at, low), (at, high)], "series", colour=colour)
    caption = f"<figcaption>{escaped(METRICS[key])} (in %)</figcaption>"
    return f'<figure class=panel style="width:{CHART_PX[0]}px">{caption}{chart.render()}</figure>'
