"""``agvas train``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from agvas_core.contract.command_line import INPUT, MODEL, OUTPUT, SPEED

__all__ = ["train"]


def train(
    preset: Annotated[
        str, typer.Option(help="A preset's name, or a .toml file with the tables model and train.", rich_help_panel=MODEL)
    ] = "nano",
    out: Annotated[
        Path, typer.Option(help="Folder of the run: checkpoint, state, log, loss plot.", rich_help_panel=OUTPUT)
    ] = Path("runs/train"),
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
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.", rich_help_panel=OUTPUT)] = False,
    images: Annotated[
        int | None, typer.Option(min=1, help="Generated images in all, instead of the preset's.", rich_help_panel=INPUT)
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads for the model.", rich_help_panel=SPEED)] = None,
    sets: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Train on the data sets that lie in this folder (docs/training.md).", rich_help_panel=INPUT
        ),
    ] = None,
    extra: Annotated[
        Path | None,
        typer.Option(
            "--with", metavar="FILE.toml", help="Tables mixture and fit over those of the preset.", rich_help_panel=MODEL
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="With data sets: optimizer steps.", rich_help_panel=SPEED)] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="With data sets: examples of a step, over all processes.", rich_help_panel=SPEED)
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="With data sets: examples at once on each process.", rich_help_panel=SPEED)
    ] = None,
    deepspeed: Annotated[
        str | None,
        typer.Option(
            metavar="zero2|zero3|FILE", help="With data sets: shard the training's state with DeepSpeed.", rich_help_panel=SPEED
        ),
    ] = None,
    overfit: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="With data sets: the first N examples again and again, as a check.", rich_help_panel=INPUT
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="With data sets: only say what memory and time the run takes, per GPU.", rich_help_panel=OUTPUT
        ),
    ] = False,
) -> None:
    """Train a model: on procedural images, or on the data sets that the preset or --sets names."""
    from agvas_core.train.fit.command import Options, merged_with, train_on_mixture, trains_on_mixture

    tables = merged_with(preset, extra)
    options = Options(sets, steps, batch, micro_batch, deepspeed, overfit, dry_run, resume)
    if trains_on_mixture(tables, options):
        _refuse(
            {"--init": init, "--calibrate-only": calibrate_only, "--images": images}, "belong to training on generated images"
        )
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        train_on_mixture(tables, out, options)
        return
    given = {"--steps": steps, "--batch": batch, "--micro-batch": micro_batch, "--deepspeed": deepspeed, "--overfit": overfit}
    _refuse(given | {"--dry-run": dry_run or None}, f"belong to training on data sets, and {preset} generates its images")
    _train_on_generated(tables, preset, out, init, calibrate_only, resume, images, threads)


def _refuse(given: Mapping[str, object], why: str) -> None:
    from agvas_core.contract.errors import UsageError

    if wrong := [name for name, value in given.items() if value is not None]:
        raise UsageError(f"{', '.join(wrong)}: {', '.join(given)} {why}: leave them out")


def _train_on_generated(
    tables: dict[str, Any],
    preset: str,
    out: Path,
    init: str | None,
    calibrate_only: str | None,
    resume: bool,
    images: int | None,
    threads: int | None,
) -> None:
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from agvas_core.contract.errors import UsageError
    from agvas_core.model.config import parse_config
    from agvas_core.model.weights.checkpoint import load_checkpoint
    from agvas_core.train.calibration import calibrate_checkpoint, summary
    from agvas_core.train.config import parse_train_config
    from agvas_core.train.loop import LogRow, train_model
    from agvas_core.train.plot import plot_log

    if "train" not in tables:
        raise UsageError(
            f"preset {preset} has no [train] table: it cannot be trained from scratch, as nano can; pass --sets DIR to train it on data sets"
        )
    if calibrate_only is not None and (init is not None or resume or images is not None):
        raise UsageError("--calibrate-only trains nothing: leave out --init, --resume and --images")
    if images is not None:
        tables["train"]["images"] = images
    if threads is not None:
        torch.set_num_threads(threads)
    model, recipe = parse_config(tables["model"]), parse_train_config(tables["train"])
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns) as bar:
        training = bar.add_task("training", total=None, loss="", visible=calibrate_only is None)
        calibrating = bar.add_task("calibrating", total=None, loss="", visible=calibrate_only is not None)

        def show(seen: int, total: int, row: LogRow) -> None:
            bar.update(training, completed=seen, total=total, loss=f"loss {row['loss']:.3f}  text {row['text']:.3f}")

        def show_calibration(seen: int, total: int) -> None:
            bar.update(calibrating, completed=seen, total=total, visible=True)

        if calibrate_only is not None:
            folder = calibrate_checkpoint(load_checkpoint(calibrate_only), model, recipe, out, show_calibration)
        else:
            folder = train_model(
                model,
                recipe,
                out,
                init=None if init is None else load_checkpoint(init),
                resume=resume,
                progress=show,
                calibrating=show_calibration,
            )
    typer.echo(f"checkpoint: {folder}")
    for line in summary(folder):
        typer.echo(line)
    if calibrate_only is None and plot_log(folder / "log.jsonl", folder / "loss.png"):
        typer.echo(f"loss plot:  {folder / 'loss.png'}")
    typer.echo(f"next:       agvas-export bundle {folder} -o DIR")
