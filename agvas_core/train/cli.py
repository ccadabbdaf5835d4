"""``agvas train``: makes a run of tables and options, and shows its progress."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from agvas_core.contract.command_line import INPUT, MODEL, OUTPUT, SPEED
from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import did_you_mean

__all__ = ["merged_with", "train"]

_TABLES = ("train", "mixture", "model")


def train(
    preset: Annotated[
        str,
        typer.Option(help="A preset's name, or a .toml file with the tables model, train and mixture.", rich_help_panel=MODEL),
    ] = "nano",
    out: Annotated[
        Path, typer.Option(help="Folder of the run: checkpoint, state, log, loss plot.", rich_help_panel=OUTPUT)
    ] = Path("runs/train"),
    extra: Annotated[
        Path | None,
        typer.Option(
            "--with", metavar="FILE.toml", help="Tables train and mixture over those of the preset.", rich_help_panel=MODEL
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Start from a checkpoint's weights and tokenizer: a folder, or nano.", rich_help_panel=MODEL),
    ] = None,
    calibrate_only: Annotated[
        str | None,
        typer.Option(
            metavar="CKPT",
            help="Train nothing: calibrate this checkpoint with the preset's scales and table, into --out.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    sets: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The data sets that lie in this folder, beside those of the preset (docs/training.md).",
            rich_help_panel=INPUT,
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Images in all, instead of the preset's length.", rich_help_panel=INPUT)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps, instead of the preset's length.", rich_help_panel=INPUT)
    ] = None,
    overfit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="The first N images again and again, as a check.", rich_help_panel=INPUT),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.", rich_help_panel=OUTPUT)] = False,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.0, help="Stop after so much time, saved to go on with --resume.", rich_help_panel=OUTPUT),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what memory and time the run takes, per GPU.", rich_help_panel=OUTPUT),
    ] = False,
    batch: Annotated[int | None, typer.Option(min=1, help="Images of a step, over all processes.", rich_help_panel=SPEED)] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Images at once on each process.", rich_help_panel=SPEED)] = None,
    deepspeed: Annotated[
        str | None,
        typer.Option(metavar="zero2|zero3|FILE", help="Shard the training's state with DeepSpeed.", rich_help_panel=SPEED),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that load, or generate, images.", rich_help_panel=SPEED)
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads for the model.", rich_help_panel=SPEED)] = None,
) -> None:
    """Train a model, on generated images or on data sets, as the preset says."""
    from agvas_core.model.weights.pretrained_config import resolve_config
    from agvas_core.train.config import parse_mixture_config, parse_train_config

    tables = merged_with(preset, extra)
    given = {"batch": batch, "micro_batch": micro_batch, "deepspeed": deepspeed, "workers": workers}
    settings = parse_train_config(_overridden(tables.get("train", {}), images, steps, given))
    model = resolve_config(tables["model"])
    if calibrate_only is not None:
        none = {"--init": init, "--resume": resume or None, "--images": images, "--steps": steps, "--sets": sets}
        _refuse(none, "--calibrate-only trains nothing")
    if dry_run:
        from agvas_core.train.estimate import estimate

        typer.echo(estimate(model, settings))
        return
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    mixture = None
    if settings.examples == "sets" and calibrate_only is None:
        mixture = parse_mixture_config(_with_sets(dict(tables.get("mixture", {})), sets))
    elif sets is not None:
        raise UsageError(
            f"--sets gives data sets and preset {preset} generates its images: extend it in a file of your own with "
            '[train] examples = "sets"'
        )
    from agvas_core.model.weights.checkpoint import load_checkpoint
    from agvas_core.train.calibration import calibrate_checkpoint
    from agvas_core.train.loop import Progress, train_model

    def make(progress: Progress, calibrating: Callable[[int, int], None]) -> Path:
        if calibrate_only is not None:
            return calibrate_checkpoint(load_checkpoint(calibrate_only), model, settings, out, calibrating)
        return train_model(
            model,
            settings,
            out,
            mixture=mixture,
            init=None if init is None else load_checkpoint(init),
            resume=resume,
            overfit=overfit,
            minutes=minutes,
            progress=progress,
            calibrating=calibrating,
            listed=typer.echo,
        )

    _shown(make, None if calibrate_only is not None else sum(settings.phase_steps))


def _shown(make: Callable[..., Path], steps: int | None) -> None:
    """Makes a checkpoint, and shows how far it is and what came of it; ``steps``: of a training, None for a calibration alone."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from agvas_core.train.calibration import summary
    from agvas_core.train.log import LOG, plot_log
    from agvas_core.train.loop import SKIPPED, Row

    done_steps, skipped = 0, 0
    first = int(os.environ.get("RANK", "0")) == 0  # torchrun and accelerate launch say so
    texts = [TextColumn(f"{{task.{each}}}") for each in ("description", "fields[unit]", "fields[loss]")]
    with Progress(
        texts[0], BarColumn(), MofNCompleteColumn(), texts[1], TimeRemainingColumn(), texts[2], disable=not first
    ) as bar:
        training = bar.add_task("training", total=steps, loss="", unit="steps", visible=steps is not None)
        calibration = bar.add_task("calibrating", total=None, loss="", unit="images", visible=steps is None)

        def show(done: int, total: int, row: Row) -> None:
            nonlocal done_steps, skipped
            done_steps, skipped = done, int(row["skipped"])
            loss = f"loss {row['loss']:.3f}  masks {row['masks']:.3f}  text {row['text']:.3f}"
            bar.update(training, completed=done, loss=loss)

        def show_calibration(seen: int, total: int) -> None:
            bar.update(calibration, completed=seen, total=total, visible=True)

        folder = make(show, show_calibration)
    if not first:
        return
    typer.echo(f"checkpoint: {folder}")
    for line in summary(folder):
        typer.echo(line)
    if steps is not None and plot_log(folder / LOG, folder / "loss.png"):
        typer.echo(f"loss plot:  {folder / 'loss.png'}")
    if skipped:
        typer.echo(f"skipped:    {skipped} times an image that could not be used; {folder / SKIPPED} lists them")
    if steps is not None and 0 < done_steps < steps:
        typer.echo(f"stopped:    after {done_steps} of {steps} steps; the same command with --resume goes on")
        return
    typer.echo(
        f"next:       agvas eval --predictor checkpoint --model {folder} --data DIR, or agvas-export bundle {folder} -o DIR"
    )


def _refuse(given: Mapping[str, object], why: str) -> None:
    if wrong := [name for name, value in given.items() if value is not None]:
        raise UsageError(f"{why}: leave out {', '.join(wrong)}")


def _overridden(table: dict[str, Any], images: int | None, steps: int | None, given: Mapping[str, object]) -> dict[str, Any]:
    """The ``train`` table with what the command line says instead."""
    changed = table | {key: value for key, value in given.items() if value is not None}
    if images is not None or steps is not None:
        changed = {key: value for key, value in changed.items() if key not in ("images", "steps")}
        changed |= {key: value for key, value in (("images", images), ("steps", steps)) if value is not None}
    return changed


def _with_sets(table: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """The mixture with every set that lies in ``folder``, beside those that it names."""
    from agvas_core.data.datasets.catalog import find_training_sets

    named = list(table.get("sets", []))
    if folder is not None:
        seen: set[str] = {str(one.get("label") or one.get("name")) for one in named}
        for found in find_training_sets(folder):
            name = found.adapter.name
            label = name if name not in seen else f"{name} in {found.root}"
            seen.add(label)
            named.append({"name": name, "path": str(found.root), **({} if label == name else {"label": label})})
    if not named:
        raise UsageError(
            "the mixture names no set: pass --sets DIR, the folder in which they lie, or list them under [mixture] sets"
        )
    return table | {"sets": named}


def merged_with(preset: str, extra: Path | None) -> dict[str, Any]:
    """The tables of a preset, with those of a file over them (``--with``): one file of data and schedule serves every ablation.

    Raises:
        UsageError: a table of an earlier version, or in the file another table than train, mixture and model.
    """
    from agvas_core.model.preset import load_preset
    from agvas_core.train.config import refuse_old_tables

    tables = load_preset(preset)
    refuse_old_tables(tables, preset)
    if extra is None:
        return tables
    over = load_preset(f"{extra}" if str(extra).endswith(".toml") else f"{extra}.toml")
    refuse_old_tables(over, str(extra))
    for name, table in over.items():
        if name not in _TABLES:
            raise UsageError(
                f"{extra}: {name} is no table that goes with --with{did_you_mean(name, _TABLES)}; there are {', '.join(_TABLES)}"
            )
        tables[name] = _deep(tables.get(name, {}), table)
    return tables


def _deep(table: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(table)
    for key, value in over.items():
        old = result.get(key)
        result[key] = _deep(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
