"""What ``agvas train`` does where the preset trains on a mixture: tables and options to a run, and what the terminal shows of it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import did_you_mean
from agvas_core.data.datasets.catalog import find_training_sets
from agvas_core.model.preset import load_preset
from agvas_core.model.weights.pretrained_config import resolve_config
from agvas_core.train.fit.config import parse_fit_config, parse_mixture_config

__all__ = ["Options", "merged_with", "train_on_mixture", "trains_on_mixture"]


@dataclass(frozen=True)
class Options:
    """Of the command line; None leaves what the preset says."""

    sets: Path | None = None
    steps: int | None = None
    batch: int | None = None
    micro_batch: int | None = None
    deepspeed: str | None = None
    overfit: int | None = None
    dry_run: bool = False
    resume: bool = False


def trains_on_mixture(tables: dict[str, Any], options: Options) -> bool:
    """Whether the preset, or the command line, speaks of data sets; otherwise images are generated."""
    return "mixture" in tables or "fit" in tables or options.sets is not None or (options.dry_run and "train" not in tables)


def train_on_mixture(tables: dict[str, Any], out: Path, options: Options) -> None:
    """Trains, or says with ``dry_run`` what that would take.

    Raises:
        UsageError: no set, or as :func:`fit_model`.
    """
    model = resolve_config(tables["model"])
    fit = parse_fit_config(_overridden(tables.get("fit", {}), options))
    if options.dry_run:
        from agvas_core.train.fit.estimate import estimate

        typer.echo(estimate(model, fit))
        return
    mixture = parse_mixture_config(_with_sets(dict(tables.get("mixture", {})), options.sets))
    from agvas_core.train.fit.loop import SKIPPED, Row, fit_model
    from agvas_core.train.plot import plot_log

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    skipped, first = 0, int(os.environ.get("RANK", "0")) == 0  # torchrun and accelerate launch say so
    with Progress(*columns, disable=not first) as bar:
        task = bar.add_task("training", total=fit.steps, loss="")

        def show(done: int, total: int, row: Row) -> None:
            nonlocal skipped
            skipped = int(row["skipped"])
            bar.update(task, completed=done, loss=f"loss {row['loss']:.3f}  masks {row['masks']:.3f}  text {row['text']:.3f}")

        folder = fit_model(model, mixture, fit, out, resume=options.resume, overfit=options.overfit, progress=show)
    if not first:
        return
    typer.echo(f"checkpoint: {folder}")
    if plot_log(folder / "log.jsonl", folder / "loss.png"):
        typer.echo(f"loss plot:  {folder / 'loss.png'}")
    if skipped:
        typer.echo(f"skipped:    {skipped} times an image that could not be used; {folder / SKIPPED} lists them")
    typer.echo(
        f"next:       agvas eval --predictor checkpoint --model {folder} --data DIR, or agvas-export bundle {folder} -o DIR"
    )


def _overridden(table: dict[str, Any], options: Options) -> dict[str, Any]:
    given = {"steps": options.steps, "batch": options.batch, "micro_batch": options.micro_batch, "deepspeed": options.deepspeed}
    return table | {key: value for key, value in given.items() if value is not None}


def _with_sets(table: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """The mixture with every set that lies in ``folder``, beside those that it names."""
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
        UsageError: the file has another table than fit and mixture.
    """
    tables = load_preset(preset)
    if extra is None:
        return tables
    over = load_preset(f"{extra}" if str(extra).endswith(".toml") else f"{extra}.toml")
    known = ("fit", "mixture", "model")
    for name, table in over.items():
        if name not in known:
            raise UsageError(
                f"{extra}: {name} is no table that goes with --with{did_you_mean(name, known)}; there are {', '.join(known)}"
            )
        tables[name] = _deep(tables.get(name, {}), table)
    return tables


def _deep(table: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(table)
    for key, value in over.items():
        old = result.get(key)
        result[key] = _deep(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
