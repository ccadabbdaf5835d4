"""The grounding measurement as a command: progress, table, files and HTML page."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from agvas_core import __version__
from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import OutputError
from agvas_core.contract.pages.document import escaped
from agvas_core.data.synthetic.captions import describe
from agvas_core.evaluation.grounding.cases import ASKED, Case, draw
from agvas_core.evaluation.grounding.figures import Figure
from agvas_core.evaluation.grounding.measure import Grounding, Plan, measure
from agvas_core.evaluation.grounding.trial import Answer, TrialRecord
from agvas_core.evaluation.image_score import outline
from agvas_core.evaluation.page import eval_document, overlaid
from agvas_core.evaluation.predictor import Model

__all__ = ["cells", "columns", "ground", "markdown_text", "render_page", "sections", "terminal_table"]


# The figures as a table: on the terminal and as Markdown.


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


# The figures and some of the cases as one HTML file: each image with its instruction, what was meant, and what was masked.


SHOWN = {"kind": 6, "place": 2, "size": 2, "tone": 2, "caption": 6, "defect": 3, "good": 3}  # cases, the first of each task
TITLES = {
    "kind": "Two kinds, each asked for in turn",
    "place": "Two places",
    "size": "Two sizes",
    "tone": "Two tones",
    "caption": "Captions",
    "defect": "What is there and what is not",
    "good": "Good parts",
}
LEGEND = (
    "<span class=truth>asked for</span> <span class=other>other</span> <span class=mask>prediction</span>; the first cases, not "
    "chosen ones"
)


def render_page(found: Grounding) -> str:
    """The whole page; draws the images it shows once more."""
    facts = [
        f"{found.plan.images} generated images of each task, seed {found.plan.seed}",
        *found.notes,
        *(f"Of a grey image ({blank.grey}) with nothing on it: {blank.text}" for blank in found.blanks),
    ]
    parts = [_figures(found), *(_examples(found, task) for task in SHOWN)]
    return eval_document(f"{found.subject}: do words matter?", [escaped(fact) for fact in facts], parts)


def _figures(found: Grounding) -> str:
    rows = []
    for name, figures in sections(found):
        rows.append(f"<tr class=mean><td colspan={len(columns)}>{escaped(name)}</td></tr>")
        rows += [f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in cells(figure))}</tr>" for figure in figures]
    head = "".join(f"<th>{escaped(name)}</th>" for name in columns)
    return f"<section class=panel><div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"


def _examples(found: Grounding, task: str) -> str:
    records = [record for record in found.records if record.task == task and record.answers][: SHOWN[task]]
    figures = "".join(_case(found, record) for record in records)
    return (
        f"<section class=panel><h2>{TITLES[task]} <small>{LEGEND}</small></h2><div class=gallery>{figures}</div></section>"
        if figures
        else ""
    )


def _case(found: Grounding, record: TrialRecord) -> str:
    case = draw(record.task, found.plan.seed, record.number)
    assert case is not None, f"case {record.task} {record.number} was drawn a moment ago, and is gone"
    shown = record.named(ASKED) or record.answers  # shuffled and zeroed ones show little
    return "".join(_figure(case, answer) for answer in shown)


def _figure(case: Case, answer: Answer) -> str:
    # By name: a model without words has not answered every question of the case.
    question = next(one for one in case.questions if (one.name, one.about) == (answer.name, answer.about))
    labels = case.sample.labels
    lines = [
        ("truth", outline(np.isin(labels, question.asked))),
        ("other", outline(np.isin(labels, question.other))),
        ("mask", answer.outline),
    ]
    everything = "Everything that is anomalous." if question.mode == "direct" else "Everything that is anomalous, in words."
    said = [f"<b>{escaped(answer.instruction or everything)}</b>"]
    if answer.asked_iou is not None:
        other = "" if answer.other_iou is None else f", other {answer.other_iou:.2f}"
        said.append(f"IoU asked {answer.asked_iou:.2f}{other}")
    else:
        said.append("left alone" if answer.mask_px == 0 else f"{answer.mask_px} px masked")
    if answer.text is not None:
        said.append(f"<i>{escaped(answer.text)}</i>")
    if case.truth is not None:
        said.append(f"Truth: {escaped(describe(case.sample.defects))}")
    picture = overlaid(np.ascontiguousarray(case.sample.image[..., ::-1]), lines)
    return f"<figure>{picture}<figcaption>{'<br>'.join(said)}</figcaption></figure>"


def ground(model: Model, plan: Plan, *, quiet: bool = False) -> Grounding:
    """Measures, prints the table, and writes grounding.json, grounding.md and grounding.html.

    Raises:
        UsageError: a model that cannot be asked in words.
        OutputError: the folder cannot be written.
    """
    console = Console(stderr=True)
    _ = model.listener  # a model that cannot be asked is known before anything is drawn
    progress_columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*progress_columns, console=console, disable=quiet, transient=True) as progress:
        task = progress.add_task("cases", total=plan.steps)
        found = measure(model, plan, lambda: progress.advance(task))
    facts = {"agvas": __version__, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    names = {
        "grounding.json": json.dumps(facts | found.to_dict(), indent=1, allow_nan=False) + "\n",
        "grounding.md": markdown_text(found),
        "grounding.html": render_page(found),
    }
    _write(plan.out, names)
    if not quiet:
        Console(width=None if Console().is_terminal else 160).print(terminal_table(found))
        for blank in found.blanks:
            said = f"of a grey image ({blank.grey}) with nothing on it: {blank.text}"
            console.print(said, markup=False, highlight=False, soft_wrap=True)
        for note in found.notes:
            console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
        console.print(f"results in {plan.out}: {', '.join(names)}", markup=False, soft_wrap=True)
    return found


def _write(out: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        try:
            write_whole(out / name, text)
        except OSError as error:
            raise OutputError(
                f"cannot write {out / name}: {error.strerror}; choose a folder with space and permission"
            ) from error
