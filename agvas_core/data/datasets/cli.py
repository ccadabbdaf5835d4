"""``agvas data check``: what training data there is, and what is wrong with it. ``agvas data hashes``: which images are test images."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import OutputError
from agvas_core.data.datasets.catalog import find_training_sets
from agvas_core.data.datasets.check import SetReport, check_set, json_report, problem_lines, terminal_table
from agvas_core.data.datasets.contamination import TestHashes, known_images

__all__ = ["check", "hashes"]

EXIT_FAULTS = 1


def check(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a set, or of several sets.")],
    name: Annotated[
        str | None, typer.Option("--set", metavar="NAME", help="The set of this name alone, and what it needs.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Look for files only, and open no image.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes; all cores by default.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Everything as JSON.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the exit code, and the file.")] = False,
) -> None:
    """Say what training data a folder has, and what is wrong where; ends with 1 where something is."""
    sets = find_training_sets(data, name, everything=True)
    console = Console(stderr=True)
    reports: list[SetReport] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=quiet, transient=True) as progress:
        for found in sets:
            task = progress.add_task(found.adapter.name, total=None)
            count = jobs or os.cpu_count() or 1
            reports.append(check_set(found, jobs=count, quick=quick, advance=partial(progress.advance, task)))
    faults = sum(report.faults for report in reports)
    if out is not None:
        _write(out, json.dumps(json_report(reports), indent=1, ensure_ascii=False))
    if not quiet:
        Console(width=None if Console().is_terminal else 120).print(terminal_table(reports))
        for line in problem_lines(reports):
            console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
        verdict = f"{faults:,} {'thing is' if faults == 1 else 'things are'} wrong" if faults else "nothing is wrong"
        console.print(
            f"{len(reports)} set{'s' if len(reports) > 1 else ''} in {data}: {verdict}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if faults:
        raise typer.Exit(EXIT_FAULTS)


def hashes(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a test set, or of several; lists without images too.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file, JSON.")] = Path("test-images.json"),
) -> None:
    """Write names, sizes and SHA-256 of test images, so that a training elsewhere can refuse them (test_data of the table mixture)."""
    found = TestHashes.of(known_images(data))
    _write(out, found.model_dump_json())
    unseen = sum(sha256 is None for _, _, sha256 in found.test_images)
    note = f"; of {unseen:,} only the name is known, for their files are not there" if unseen else ""
    typer.echo(f"{len(found.test_images):,} test images in {out}{note}")


def _write(out: Path, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, text + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}; choose a folder with space and permission") from error
