"""``agvas batch``: the options; nothing heavy is imported before they make sense."""

import os
from pathlib import Path
from typing import Annotated

import typer

from agvas_core.contract.command_line import DECISION, OUTPUT, SPEED
from agvas_core.contract.defaults import BALANCED, DEFAULT_MODEL, STRICT
from agvas_core.contract.errors import EXIT_OK, EXIT_REJECTS, UsageError
from agvas_runtime.pipeline.cli_options import (
    Bits,
    FailOnReject,
    MaxPixels,
    Model,
    ModeName,
    NormalLook,
    Prompt,
    Quiet,
    Strict,
    Threshold,
    Tiling,
    TilingChoice,
)
from agvas_runtime.pipeline.options import SegmentOptions

__all__ = ["batch"]


def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder tree, a text file with an image a line, - for that on stdin, or s3://bucket/folder and the like.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="DIR", help="Plan and results; given again, it goes on where it was.", rich_help_panel=OUTPUT
        ),
    ],
    model: Model = DEFAULT_MODEL,
    prompt: Prompt = None,
    mode: ModeName = SegmentOptions.mode,
    normal_look: NormalLook = None,
    strict: Strict = False,
    threshold: Threshold = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A recipe whose words, rules and thresholds decide, as on the line.", rich_help_panel=DECISION
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Processes with a bundle each; half the cores by default.", rich_help_panel=SPEED),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="CPU threads of each; cores / workers by default.", rich_help_panel=SPEED),
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Workers on Ray: the cluster of RAY_ADDRESS, or this machine.", rich_help_panel=SPEED)
    ] = False,
    shard: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Images per shard; 256, or fewer of few, by default.", rich_help_panel=SPEED),
    ] = None,
    max_pixels: MaxPixels = None,
    bits: Bits = None,
    tiling: TilingChoice = Tiling.auto,
    fail_on_reject: FailOnReject = False,
    quiet: Quiet = False,
) -> None:
    """Inspects images by the million: in shards, by several workers, on one machine or a Ray cluster, with results as Parquet."""
    if strict and threshold is not None:
        raise UsageError(f"both --strict and --threshold {threshold} say what is anomalous: leave one out")
    words = {"--prompt": prompt, "--normal-look": normal_look, "--threshold": threshold, "--strict": strict or None}
    if recipe is not None and (
        given := [name for name, value in words.items() if value is not None] + ["--mode"] * (mode != SegmentOptions.mode)
    ):
        raise UsageError(f"{given[0]} is given beside --recipe, which says it already: leave one of the two out")

    from agvas_runtime.batch.batch_run import run_batch
    from agvas_runtime.batch.plan import BatchJob
    from agvas_runtime.bundle import load_bundle
    from agvas_runtime.line.recipe.file import read_recipe
    from agvas_runtime.pipeline.instruction import ask
    from agvas_runtime.this_machine import usable_cores

    text = None
    if recipe is not None:
        version = read_recipe(recipe)
        text, model = version.text, version.recipe.model
    options = SegmentOptions.of(
        model=model,
        prompt=prompt,
        mode=mode,
        normal_look=normal_look,
        operating_point=STRICT if strict else BALANCED,
        threshold=threshold,
        tiling=tiling.value,
        max_pixels=max_pixels,
        bits=bits,
    )
    bundle = load_bundle(model)
    if recipe is None:  # a wrong prompt or mode is refused before millions of names are read
        ask(bundle.manifest.prompt, prompt=prompt, mode=mode, normal_look=normal_look)
    cores = usable_cores()
    workers = workers or max(1, cores // 2)
    job = BatchJob(
        source=source,
        base=os.getcwd(),
        bundle=bundle.identity,
        options=options,
        recipe=text,
    )
    verdicts = run_batch(
        job, out, workers=workers, threads=threads or max(1, cores // workers), shard_images=shard, on_ray=ray, quiet=quiet
    )
    rejects = verdicts["FAIL"] + verdicts["NO_VERDICT"]  # NO_VERDICT is never PASS
    raise typer.Exit(EXIT_REJECTS if fail_on_reject and rejects else EXIT_OK)
