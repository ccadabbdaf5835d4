"""``agvas eval``: scores a model, or score maps of another program, on sets with masks."""

import json
import os
import time
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Final, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from agvas_core import __version__
from agvas_core.contract.command_line import DECISION, INPUT, MODEL, OUTPUT, SPEED
from agvas_core.contract.decision import STRICT
from agvas_core.contract.errors import OutputError, UsageError
from agvas_core.contract.prompts import Mode
from agvas_core.data.datasets.item import DataSet
from agvas_core.data.datasets.layouts import find_test_sets, limited
from agvas_core.evaluation import few_shot_tables
from agvas_core.evaluation.cross_check import available
from agvas_core.evaluation.evaluate import Job
from agvas_core.evaluation.evaluate import evaluate as score_sets
from agvas_core.evaluation.few_shot import FewShot, Learner, few_shot, find_fitter, parse_shots, splits
from agvas_core.evaluation.few_shot import Plan as ShotPlan
from agvas_core.evaluation.grounding.measure import Plan
from agvas_core.evaluation.grounding.report import ground
from agvas_core.evaluation.page import render_page
from agvas_core.evaluation.predictor import MapSource, Model, find_opener, pair_predictions
from agvas_core.evaluation.protocol import Protocol, find_protocol, resized_to
from agvas_core.evaluation.result import CategoryResult, Evaluation
from agvas_core.evaluation.tables import csv_text, image_counts, latex_text, markdown_text, paper_note, rows, terminal_table
from agvas_core.files import unread_note

__all__ = ["EvalProgress", "evaluate"]


# How far an evaluation is: a bar on a terminal, a line every few seconds elsewhere.


LINE_EVERY_S: Final = 5.0
_WORDS: Final = {"check": "masks checked", "score": "images scored"}


class EvalProgress:
    """Use as a context manager; ``advance`` is what ``evaluate`` takes.

    Args:
        total: images to come.
        quiet: say nothing.
    """

    def __init__(self, console: Console, total: int, *, quiet: bool = False) -> None:
        self._console, self._total, self._quiet = console, total, quiet
        self._counts = dict.fromkeys(_WORDS, 0)
        self._doing = ""
        self._said = self._began = time.monotonic()
        self._bar: Progress | None = None
        if not quiet and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._tasks = {phase: self._bar.add_task(words, total=total) for phase, words in _WORDS.items()}

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def doing(self, what: str) -> None:
        """Says what comes next, such as ``mpdd/plates, 4 good images, seed 0``."""
        self._doing = what
        if self._bar is not None:
            self._bar.update(self._tasks["score"], description=what)
        elif not self._quiet:
            self._say("")

    def advance(self, phase: str) -> None:
        """One more image went through ``phase``: ``check`` or ``score``."""
        self._counts[phase] += 1
        if self._bar is not None:
            self._bar.advance(self._tasks[phase])
        elif not self._quiet and time.monotonic() - self._said >= LINE_EVERY_S:
            self._say(phase)

    def _say(self, phase: str) -> None:
        self._said = time.monotonic()
        parts = [self._doing] if self._doing else []
        if phase:
            done, seconds = self._counts[phase], self._said - self._began
            rate = f"{done / seconds:.1f} images/s" if seconds > 0 else "-"
            parts.append(f"{done:,} of {self._total:,} {_WORDS[phase]}, {rate}")
        self._console.print(": ".join(parts), markup=False, highlight=False, soft_wrap=True)


# The command.


def evaluate(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of a set, or of several sets.", rich_help_panel=INPUT)
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME|BUNDLE", help="A bundled model, or the folder of a bundle.", rich_help_panel=MODEL)
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Score maps to be scored in place of a model.", rich_help_panel=INPUT)
    ] = None,
    only: Annotated[
        str | None, typer.Option("--set", metavar="NAME", help="The set of this name alone.", rich_help_panel=INPUT)
    ] = None,
    layout: Annotated[str | None, typer.Option(help="Folder layout; found out by default.", rich_help_panel=INPUT)] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="native, paper, cited, resized-256 or resized-518-smoothed: resolution, smoothing and whose mask.",
            rich_help_panel=DECISION,
        ),
    ] = "native",
    size_px: Annotated[
        int | None,
        typer.Option(min=16, max=8192, metavar="N", help="Compare at N x N px, whatever the protocol.", rich_help_panel=DECISION),
    ] = None,
    sigma_px: Annotated[
        float | None,
        typer.Option(min=0.0, max=64.0, help="Smooth maps by a Gaussian of so many px; 0 for none.", rich_help_panel=DECISION),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Pixels above it are the mask; the model's own mask by default.", rich_help_panel=DECISION),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="The model's strict operating point in place of the balanced one.", rich_help_panel=DECISION
        ),
    ] = False,
    prompt: Annotated[
        str | None, typer.Option(help="What to look for, in place of the model's own words.", rich_help_panel=MODEL)
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Share of P_seg in P (eq. 8), in place of the model's.", rich_help_panel=DECISION),
    ] = None,
    mode: Annotated[
        Mode | None,
        typer.Option(help="How the model answers; in all modes but direct the answer is generated.", rich_help_panel=MODEL),
    ] = None,
    generate: Annotated[
        bool,
        typer.Option(
            "--generate", help="Let the model answer in direct mode too, in place of the fixed answer.", rich_help_panel=MODEL
        ),
    ] = False,
    normal_looks: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="For describe-plus: a sentence for each category, as TOML or JSON.", rich_help_panel=MODEL
        ),
    ] = None,
    lmm: Annotated[
        str | None,
        typer.Option(help="Backend or address of a bundle's language model, vLLM's too.", rich_help_panel=MODEL),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="bf16 or fp32, of --predictor checkpoint; bf16 on a GPU by default.", rich_help_panel=MODEL),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="At most N images of each kind.", rich_help_panel=INPUT)
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Which images --limit takes, or --grounding draws.", rich_help_panel=INPUT)
    ] = 0,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Results; a later call goes on from here.", rich_help_panel=OUTPUT)
    ] = Path("runs/eval"),
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Processes. All cores for --predictions; 1, on all cores, for --model.",
            rich_help_panel=SPEED,
        ),
    ] = None,
    cross_check: Annotated[
        bool, typer.Option("--cross-check", help="Recompute with scikit-learn and torchmetrics.", rich_help_panel=OUTPUT)
    ] = False,
    beside_paper: Annotated[
        bool, typer.Option("--beside-paper", help="Print the paper's figures below ours.", rich_help_panel=OUTPUT)
    ] = False,
    skip_unusable: Annotated[
        bool, typer.Option("--skip-unusable", help="Leave out images that cannot be scored.", rich_help_panel=INPUT)
    ] = False,
    grounding: Annotated[
        bool,
        typer.Option(
            "--grounding", help="Measure on generated images whether words matter; needs no --data.", rich_help_panel=INPUT
        ),
    ] = False,
    images: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many images of each task --grounding draws.", rich_help_panel=INPUT)
    ] = 200,
    predictor: Annotated[
        str, typer.Option(help="Who opens --model; an entry point of group agvas.predictors.", rich_help_panel=MODEL)
    ] = "bundle",
    shots: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Fit --model on so many good images of each category, and test on the rest: 0,1,4,16.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=100, metavar="N", help="How often --shots draws its good images.", rich_help_panel=INPUT)
    ] = 3,
    fitter: Annotated[
        str, typer.Option(help="Who fits for --shots; an entry point of group agvas.fitters.", rich_help_panel=MODEL)
    ] = "product",
    bits: Annotated[
        int | None,
        typer.Option(min=9, max=16, metavar="N", help="Bits that 16-bit images use; 16 by default.", rich_help_panel=INPUT),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Score a model, a product or score maps on sets with masks: image AUROC, AP, F1-Max, IoU, AUROC, AUPRO per category and mean."""
    if grounding:
        if model is None or any(given is not None for given in (data, predictions, prompt, limit)):
            raise UsageError(
                "--grounding draws its own images and instructions: it takes --model, --images and --seed, and leaves out --data, "
                "--predictions, --prompt and --limit"
            )
        opened = Model(find_opener(predictor), model, _options(jobs or 1, threshold=threshold))
        ground(opened, Plan(images, seed, out, jobs or 1), quiet=quiet)
        return
    if shots is not None and (predictions is not None or beside_paper):
        raise UsageError("--shots fits a model of ours: it goes with --model, without --predictions and --beside-paper")
    if shots is not None and model is None:
        model = "nano"
    if data is None:
        raise UsageError("--data is needed: the folder of a set, or of several; only --grounding does without")
    if (model is None) == (predictions is None):
        raise UsageError("one of --model and --predictions is needed: what makes the maps, or where they are")
    if predictions is not None and prompt is not None:
        raise UsageError("--prompt goes with --model; score maps are already made")
    if shots is not None and (mode is not None or generate):
        raise UsageError("--shots scores products, which answer in direct mode: leave out --mode and --generate")
    if model is None and any(given for given in (mode, generate, normal_looks, lmm, precision, alpha is not None)):
        raise UsageError(
            "--mode, --generate, --normal-looks, --lmm, --precision and --alpha go with --model; score maps are already made"
        )
    if (mode is Mode.DESCRIBE_PLUS) != (normal_looks is not None):
        raise UsageError(
            f"--mode {Mode.DESCRIBE_PLUS} and --normal-looks FILE go together: a sentence on how a good part of each category looks"
        )
    chosen = resized_to(find_protocol(protocol), size_px, sigma_px)
    if strict and (model is None or threshold is not None or not chosen.own_mask):
        raise UsageError(
            "--strict is about a model's own masks: it goes with --model and a protocol that takes them (native), without --threshold"
        )
    if jobs is None:  # a model is loaded once in each process, and one that is large may not fit twice
        jobs = 1 if predictions is None else os.cpu_count() or 1
    checked_by = available() if cross_check else []
    sets = find_test_sets(data, only=only, layout=layout, train=shots is not None)
    job = Job(chosen, out, threshold, jobs, cross_check, skip_unusable)
    looks = {} if normal_looks is None else _normal_looks(normal_looks, sets)
    options = _options(
        jobs,
        prompt=prompt,
        threshold=threshold,
        operating_point=STRICT if strict else None,
        bits=bits,
        mode=None if mode is None else str(mode),
        generate=generate or None,
        alpha=alpha,
        lmm=lmm,
        precision=precision,
    )
    facts = {
        "agvas": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": data.name,
        "limit per kind": limit,
        "seed": seed if limit is not None and shots is None else None,
        "prompt": prompt,
        "operating point": STRICT if strict else None,
        "mode": None if mode is None else str(mode),
        "answers": "generated" if generate or mode not in (None, Mode.DIRECT) else "forced" if model is not None else None,
        "alpha": alpha,
        "cross-checked with": checked_by,
    }
    if shots is not None and model is not None:
        plan = ShotPlan(parse_shots(shots), seeds, limit)
        learner = Learner(find_fitter(fitter), find_opener(predictor), model, out, options)
        own = threshold is None and chosen.own_mask
        facts["masks"] = "each product's own" if own else f"P > {_threshold(chosen, threshold):g}"
        _few_shot(sets, learner, plan, job, facts, quiet=quiet)
        return
    if limit is not None:
        sets = [limited(one, limit, seed) for one in sets]
    sources = _sources(sets, model, predictions, predictor, options, looks)
    with EvalProgress(Console(stderr=True), sum(len(one.items) for one in sets), quiet=quiet) as progress:
        done = score_sets(sets, sources, job, progress.advance)
    source = next(iter(sources.values()))
    said = [note for one in done for note in one.notes]
    said += [unread for one in sets if (unread := unread_note(one.root))]
    said += notes([(one.name, category) for one in done for category in one.categories], job)
    if beside_paper:
        said += [note for one in done if (note := paper_note(one.name, image_counts(one))) is not None]
    masks = _masks(source, chosen, threshold)
    result = Evaluation(
        source.identity, chosen.to_dict(), None if masks is not None else _threshold(chosen, threshold),
        masks or f"P > {_threshold(chosen, threshold):g}", done, facts, tuple(said),
    )  # fmt: skip
    lines = rows(result, beside_paper=beside_paper)
    _write(
        out,
        {
            "result.json": json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n",
            "result.csv": csv_text(lines),
            "result.md": markdown_text(lines),
            "result.tex": latex_text(lines),
            "report.html": render_page(result, lines),
        },
    )
    if not quiet:
        _show(terminal_table(result, lines), result.notes, out)


def _few_shot(sets: Sequence[DataSet], learner: Learner, plan: ShotPlan, job: Job, facts: dict[str, Any], *, quiet: bool) -> None:
    """Measures, writes and prints a few-shot evaluation."""
    subject = learner.plain.identity  # a model that cannot be opened is known before anything is read
    planned = [(data, [splits(data, plan, seed) for seed in range(plan.seeds)]) for data in sets]
    total = sum(len(split.test.items) for _, draws in planned for one in draws for split in one.values())
    with EvalProgress(Console(stderr=True), total * len(plan.shots), quiet=quiet) as progress:
        trials = few_shot(sets, learner, plan, job, progress)
    said = [
        f"{data.name}/{category} is left out: it has no two good images."
        for data, draws in planned
        for category in sorted({item.category for item in data.items} - draws[0].keys())
    ]
    if few := {f"{one.dataset}/{one.result.name} ({one.used})" for one in trials if one.used < one.shots}:
        said.append(
            f"fewer good images than asked for were there to fit on: {', '.join(sorted(few))}; where a set keeps none apart for "
            "training, at most half of the good test images are taken, and not tested."
        )
    if seconds := [one.fit_seconds for one in trials if one.fit_seconds is not None]:
        took = f"{min(seconds):.1f} to {max(seconds):.1f}" if len(seconds) > 1 else f"{seconds[0]:.1f}"
        said.append(f"fitting took {took} s a product on this machine.")
    said += [unread for one in sets if (unread := unread_note(one.root))]
    said += notes([(one.dataset, one.result) for one in trials], job)
    result = FewShot(subject, job.protocol.to_dict(), plan, trials, facts, tuple(dict.fromkeys(said)))
    _write(
        job.out,
        {
            "result.json": json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n",
            "result.csv": few_shot_tables.csv_text(result),
            "result.md": few_shot_tables.markdown_text(result),
            "result.tex": few_shot_tables.latex_text(result),
            "report.html": few_shot_tables.render_page(result),
        },
    )
    if not quiet:
        _show(few_shot_tables.terminal_table(result), result.notes, job.out)


def _show(table: Table, said: Sequence[str], out: Path) -> None:
    console = Console(stderr=True)
    Console(width=None if Console().is_terminal else 160).print(table)
    for note in said:
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(f"results in {out}: result.json, result.csv, result.md, result.tex, report.html", markup=False, soft_wrap=True)


def _threshold(protocol: Protocol, threshold: float | None) -> float:
    return protocol.threshold if threshold is None else threshold


def _masks(source: MapSource, protocol: Protocol, threshold: float | None) -> str | None:
    """What makes the masks, in words, where it is the model's own operating point; None where it is P > threshold."""
    if threshold is not None or not protocol.own_mask or not isinstance(source, Model):
        return None
    return f"the model's own, {source.operating_point}" if source.operating_point else "the model's own"


def notes(categories: Sequence[tuple[str, CategoryResult]], job: Job) -> list[str]:
    """What a reader must know to take the figures for what they are; ``categories`` are names of sets with their categories."""
    said = []
    records = [record for _, category in categories for record in category.records]
    if left_out := sum(len(category.left_out) for _, category in categories):
        said.append(f"{left_out} images could not be scored and are left out of every figure; result.json lists them.")
    if unlike := [record for record in records if record.unlike is not None]:
        said.append(
            f"{len(unlike)} images have NO_VERDICT, for the product takes them for something else: they count as rejected, and their "
            f"pixels do not count; the first is {unlike[0].name}: {unlike[0].unlike}"
        )
    if spoken := [record.answered for record in records if record.answered is not None]:
        said.append(
            f"{sum(spoken):,} of {len(spoken):,} generated answers have anchors ({sum(spoken) / len(spoken):.1%}); the others are refusals, and "
            "their masks are empty."
        )
    if resized := sum(record.resized for record in records if job.protocol.size_px is None):
        said.append(f"{resized} maps came at another resolution than their image and were resized to it, bilinearly.")
    if vanished := sum(record.anomalous and record.truth_px == 0 for record in records):
        said.append(f"{vanished} defects vanish at the protocol's resolution: these images have no IoU.")
    for name, category in categories:
        if category.metrics["iou_ano"] is None and any(record.iou is not None for record in category.records):
            low, high = min(one.lowest for one in category.records), max(one.score for one in category.records)
            said.append(f"{name}/{category.name}: scores lie in {low:g} to {high:g}, not in 0 to 1; pass --threshold for a mask.")
    return said


def _options(jobs: int, **given: Any) -> dict[str, Any]:
    """What the opener is given: what was asked for, and one thread a process where there are several."""
    threads: dict[str, Any] = {"threads": 1} if jobs > 1 else {}
    return threads | {name: value for name, value in given.items() if value is not None}


def _normal_looks(path: Path, sets: Sequence[DataSet]) -> dict[str, str]:
    """Category -> sentence; raises UsageError where a category of the sets has none."""
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise UsageError(
            f'--normal-looks {path} cannot be read as TOML or JSON ({error}): write bottle = "A round bottle ..."'
        ) from error
    if not isinstance(raw, dict) or not all(isinstance(look, str) and look.strip() for look in raw.values()):
        raise UsageError(f'--normal-looks {path}: it gives each category a sentence: bottle = "A round bottle ..."')
    wanted = {item.category for one in sets for item in one.items}
    if missing := sorted(wanted - raw.keys()):
        raise UsageError(f"--normal-looks {path} says nothing of {', '.join(missing)}: add a sentence for each")
    return {category: raw[category] for category in wanted}


def _sources(
    sets: Sequence[DataSet],
    model: str | None,
    predictions: Path | None,
    predictor: str,
    options: dict[str, Any],
    looks: dict[str, str],
) -> dict[str, MapSource]:
    if predictions is not None:
        return {one.name: pair_predictions(predictions, one) for one in sets}
    assert model is not None
    opened = Model(find_opener(predictor), model, options, looks)
    _ = opened.identity  # a model that cannot be opened is known before anything is read
    return {one.name: opened for one in sets}


def _write(out: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        try:
            (out / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"cannot write {out / name}: {error.strerror}; choose a folder with space and permission"
            ) from error
