"""The measurement as a command: progress, table and files."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agvas_core import __version__
from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import OutputError
from agvas_core.evaluation.grounding.measure import Grounding, Plan, measure
from agvas_core.evaluation.grounding.page import render_page
from agvas_core.evaluation.grounding.table import markdown_text, terminal_table
from agvas_core.evaluation.predictor import Model

__all__ = ["ground"]


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
