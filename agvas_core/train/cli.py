"""``agvas train``."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["train"]


def train(
    preset: Annotated[str, typer.Option(help="A preset's name, or a .toml file with the tables model and train.")] = "nano",
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoint, state, log, loss plot.")] = Path("runs/train"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    images: Annotated[int | None, typer.Option(min=1, help="Images in all, instead of the preset's.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads for the model.")] = None,
) -> None:
    """Train a model from scratch on procedural images."""
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from agvas_core.contract.errors import UsageError
    from agvas_core.model.config import load_preset, parse_config
    from agvas_core.train.config import parse_train_config
    from agvas_core.train.loop import LogRow, train_model
    from agvas_core.train.plot import plot_log

    tables = load_preset(preset)
    if "train" not in tables:
        raise UsageError(
            f"preset {preset} has no [train] table: it cannot be trained from scratch; agvas train --preset nano can"
        )
    if images is not None:
        tables["train"]["images"] = images
    if threads is not None:
        torch.set_num_threads(threads)
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("train", total=None, loss="")

        def show(seen: int, total: int, row: LogRow) -> None:
            bar.update(task, completed=seen, total=total, loss=f"loss {row['loss']:.3f}  text {row['text']:.3f}")

        folder = train_model(
            parse_config(tables["model"]), parse_train_config(tables["train"]), out, resume=resume, progress=show
        )
    typer.echo(f"checkpoint: {folder}")
    if plot_log(folder / "log.jsonl", folder / "loss.png"):
        typer.echo(f"loss plot:  {folder / 'loss.png'}")
    typer.echo(f"next:       agvas-export bundle {folder} -o DIR")
