"""``agvas eval``: scores a model, or anybody's score maps, on sets with masks."""

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agvas_core import __version__
from agvas_core.contract.decision import STRICT
from agvas_core.contract.errors import OutputError, UsageError
from agvas_core.evaluation.cross_check import available
from agvas_core.evaluation.datasets import find_sets, limited
from agvas_core.evaluation.evaluate import Job
from agvas_core.evaluation.evaluate import evaluate as score_sets
from agvas_core.evaluation.grounding.measure import Plan
from agvas_core.evaluation.grounding.report import ground
from agvas_core.evaluation.item import DataSet
from agvas_core.evaluation.page import render_page
from agvas_core.evaluation.predictions import pair_predictions
from agvas_core.evaluation.predictor import MapSource, Model, find_opener
from agvas_core.evaluation.protocol import find_protocol
from agvas_core.evaluation.result import Evaluation, SetResult
from agvas_core.evaluation.tables import Row, csv_text, latex_text, markdown_text, rows, terminal_table
from agvas_core.files.pairing import unread_note

__all__ = ["evaluate"]


def evaluate(
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of a set, or of several sets.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME|BUNDLE", help="A bundled model, or the folder of a bundle.")] = None,
    predictions: Annotated[Path | None, typer.Option(metavar="DIR", help="Score maps to be scored in place of a model.")] = None,
    only: Annotated[str | None, typer.Option("--set", metavar="NAME", help="The set of this name alone.")] = None,
    layout: Annotated[str | None, typer.Option(help="Folder layout; found out by default.")] = None,
    protocol: Annotated[
        str, typer.Option(help="native, paper, resized-256 or resized-518-smoothed: resolution, smoothing and whose mask.")
    ] = "native",
    threshold: Annotated[
        float | None, typer.Option(help="Pixels above it are the mask; the model's own mask by default.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="The model's strict operating point in place of the balanced one.")
    ] = False,
    prompt: Annotated[str | None, typer.Option(help="What to look for, in place of the model's own words.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N images of each kind.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which images --limit takes, or --grounding draws.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Results; a later call goes on from here.")] = Path("runs/eval"),
    jobs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes. All cores for --predictions; 1, on all cores, for --model.")
    ] = None,
    cross_check: Annotated[bool, typer.Option("--cross-check", help="Recompute with scikit-learn and torchmetrics.")] = False,
    beside_paper: Annotated[bool, typer.Option("--beside-paper", help="Print the paper's figures below ours.")] = False,
    skip_unusable: Annotated[bool, typer.Option("--skip-unusable", help="Leave out images that cannot be scored.")] = False,
    grounding: Annotated[
        bool, typer.Option("--grounding", help="Measure on generated images whether words matter; needs no --data.")
    ] = False,
    images: Annotated[int, typer.Option(min=1, metavar="N", help="How many images of each task --grounding draws.")] = 200,
    predictor: Annotated[str, typer.Option(help="Who opens --model; an entry point of group agvas.predictors.")] = "bundle",
    bits: Annotated[
        int | None, typer.Option(min=9, max=16, metavar="N", help="Bits that 16-bit images use; 16 by default.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """Score a model or score maps on sets with masks: AP, F1-Max, IoU, AUROC, AUPRO per category and mean."""
    if grounding:
        if model is None or any(given is not None for given in (data, predictions, prompt, limit)):
            raise UsageError(
                "--grounding draws its own images and instructions: it takes --model, --images and --seed, and leaves out --data, "
                "--predictions, --prompt and --limit"
            )
        opened = Model(find_opener(predictor), model, _options(None, threshold, jobs or 1))
        ground(opened, Plan(images, seed, out, jobs or 1), quiet=quiet)
        return
    if data is None:
        raise UsageError("--data is needed: the folder of a set, or of several; only --grounding does without")
    if (model is None) == (predictions is None):
        raise UsageError("one of --model and --predictions is needed: what makes the maps, or where they are")
    if predictions is not None and prompt is not None:
        raise UsageError("--prompt goes with --model; score maps are already made")
    chosen = find_protocol(protocol)
    if strict and (model is None or threshold is not None or not chosen.own_mask):
        raise UsageError(
            "--strict is about a model's own masks: it goes with --model and a protocol that takes them (native), without --threshold"
        )
    if jobs is None:  # a model is loaded once in each process, and one that is large may not fit twice
        jobs = 1 if predictions is None else os.cpu_count() or 1
    checked_by = available() if cross_check else []
    sets = find_sets(data, only=only, layout=layout)
    if limit is not None:
        sets = [limited(one, limit, seed) for one in sets]
    sources = _sources(sets, model, predictions, predictor, _options(prompt, threshold, jobs, strict=strict, bits=bits))
    job = Job(chosen, out, threshold, jobs, cross_check, skip_unusable)

    console = Console(stderr=True)
    total = sum(len(one.items) for one in sets)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet, transient=True) as progress:
        tasks = {name: progress.add_task(text, total=total) for name, text in (("check", "masks"), ("score", "images"))}
        done = score_sets(sets, sources, job, lambda phase: progress.advance(tasks[phase]))
    result = Evaluation(
        subject=next(iter(sources.values())).identity,
        protocol=chosen.to_dict(),
        threshold=chosen.threshold if threshold is None else threshold,
        sets=done,
        facts={
            "agvas": __version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "data": data.name,
            "limit per kind": limit,
            "seed": seed if limit is not None else None,
            "prompt": prompt,
            "operating point": STRICT if strict else None,
            "cross-checked with": checked_by,
        },
        notes=tuple(notes(done, job, sets)),
    )
    lines = rows(result, beside_paper=beside_paper)
    _write(out, result, lines)
    if not quiet:
        Console(width=None if Console().is_terminal else 160).print(terminal_table(result, lines))
        for note in result.notes:
            console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
        console.print(
            f"results in {out}: result.json, result.csv, result.md, result.tex, report.html", markup=False, soft_wrap=True
        )


def notes(sets: Sequence[SetResult], job: Job, data: Sequence[DataSet] = ()) -> list[str]:
    """What a reader must know to take the figures for what they are."""
    said = [note for one in sets for note in one.notes]
    said += [note for one in data if (note := unread_note(one.root))]
    categories = [(one.name, category) for one in sets for category in one.categories]
    records = [record for _, category in categories for record in category.records]
    if left_out := sum(len(category.left_out) for _, category in categories):
        said.append(f"{left_out} images could not be scored and are left out of every figure; result.json lists them.")
    if resized := sum(record.resized for record in records if job.protocol.size_px is None):
        said.append(f"{resized} maps came at another resolution than their image and were resized to it, bilinearly.")
    if vanished := sum(record.anomalous and record.truth_px == 0 for record in records):
        said.append(f"{vanished} defects vanish at the protocol's resolution: these images have no IoU.")
    for name, category in categories:
        if category.metrics["iou_ano"] is None and any(record.iou is not None for record in category.records):
            low, high = min(one.lowest for one in category.records), max(one.score for one in category.records)
            said.append(f"{name}/{category.name}: scores lie in {low:g} to {high:g}, not in 0 to 1; pass --threshold for a mask.")
    return said


def _options(
    prompt: str | None, threshold: float | None, jobs: int, *, strict: bool = False, bits: int | None = None
) -> dict[str, Any]:
    options: dict[str, Any] = {"threads": 1} if jobs > 1 else {}
    if prompt is not None:
        options["prompt"] = prompt
    if threshold is not None:
        options["threshold"] = threshold
    if strict:
        options["operating_point"] = STRICT
    if bits is not None:
        options["bits"] = bits
    return options


def _sources(
    sets: Sequence[DataSet], model: str | None, predictions: Path | None, predictor: str, options: dict[str, Any]
) -> dict[str, MapSource]:
    if predictions is not None:
        return {one.name: pair_predictions(predictions, one) for one in sets}
    assert model is not None
    opened = Model(find_opener(predictor), model, options)
    _ = opened.identity  # a model that cannot be opened is known before anything is read
    return {one.name: opened for one in sets}


def _write(out: Path, result: Evaluation, lines: Sequence[Row]) -> None:
    files = {
        "result.json": json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n",
        "result.csv": csv_text(lines),
        "result.md": markdown_text(lines),
        "result.tex": latex_text(lines),
        "report.html": render_page(result, lines),
    }
    for name, text in files.items():
        try:
            (out / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"cannot write {out / name}: {error.strerror}; choose a folder with space and permission"
            ) from error
