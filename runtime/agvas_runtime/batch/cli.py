"""``agvas batch``: the options; nothing heavy is imported before they make sense."""

import os
from pathlib import Path
from typing import Annotated

import typer

from agvas_core.contract.errors import EXIT_OK, EXIT_REJECTS, UsageError

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
        Path, typer.Option("--out", "-o", metavar="DIR", help="Plan and results; given again, it goes on where it was.")
    ],
    model: Annotated[str, typer.Option(metavar="NAME|FOLDER", help="A bundled model, or the folder of a bundle.")] = "nano",
    prompt: Annotated[str | None, typer.Option(help="What to look for, in words.")] = None,
    mode: Annotated[str, typer.Option(help="How the model answers: direct, describe, describe-plus, explain.")] = "direct",
    normal_look: Annotated[str | None, typer.Option(help="How a good part looks, for describe-plus.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="The bundle's strict operating point.")] = False,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="In place of the operating point's thresholds.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A recipe whose words, rules and thresholds decide, as on the line.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes with a bundle each; half the cores by default.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="CPU threads of each; cores / workers by default.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Workers on Ray: the cluster of RAY_ADDRESS, or this machine.")] = False,
    shard: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Images per shard; 256, or fewer of few, by default.")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Larger images get NO_VERDICT; 100 million by default.")
    ] = None,
    bits: Annotated[
        int | None, typer.Option(min=9, max=16, metavar="N", help="Bits that 16-bit images use; 16 by default.")
    ] = None,
    tiling: Annotated[str, typer.Option(help="auto: cut large images into tiles; off: shrink them whole.")] = "auto",
    fail_on_reject: Annotated[
        bool, typer.Option("--fail-on-reject", help="Exit with 1 if any image is FAIL or NO_VERDICT.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Inspects images by the million: in shards, by several workers, on one machine or a Ray cluster, with results as Parquet."""
    if strict and threshold is not None:
        raise UsageError(f"both --strict and --threshold {threshold} say what is anomalous: leave one out")
    if tiling not in ("auto", "off"):
        raise UsageError(f"tiling is {tiling!r}; it can be auto or off")
    words = {"--prompt": prompt, "--normal-look": normal_look, "--threshold": threshold, "--strict": strict or None}
    if recipe is not None and (
        given := [name for name, value in words.items() if value is not None] + ["--mode"] * (mode != "direct")
    ):
        raise UsageError(f"{given[0]} is given beside --recipe, which says it already: leave one of the two out")

    from agvas_core.contract.prompts import Mode
    from agvas_runtime.batch.batch_run import run_batch
    from agvas_runtime.batch.job import BatchJob
    from agvas_runtime.bundle import load_bundle
    from agvas_runtime.images.read import MAX_PIXELS
    from agvas_runtime.line.recipe.file import read_recipe
    from agvas_runtime.pipeline.instruction import ask
    from agvas_runtime.this_machine import usable_cores

    text, from_recipe = None, None
    if recipe is not None:
        version = read_recipe(recipe)
        text, model = version.text, version.recipe.model
        from_recipe = version.recipe.bits
    bundle = load_bundle(model)
    if recipe is None:  # what cannot be asked is refused before millions of names are read
        ask(bundle.manifest.prompt, prompt=prompt, mode=mode, normal_look=normal_look)
        mode = str(Mode(mode))
    cores = usable_cores()
    workers = workers or max(1, cores // 2)
    job = BatchJob(
        source=source,
        base=os.getcwd(),
        model=model,
        bundle=bundle.identity,
        prompt=prompt,
        mode=mode,
        normal_look=normal_look,
        operating_point="strict" if strict else "balanced",
        threshold=threshold,
        tiling=tiling,
        max_pixels=max_pixels or MAX_PIXELS,
        bits=bits or from_recipe,
        recipe=text,
    )
    verdicts = run_batch(
        job, out, workers=workers, threads=threads or max(1, cores // workers), shard_images=shard, on_ray=ray, quiet=quiet
    )
    rejects = verdicts["FAIL"] + verdicts["NO_VERDICT"]  # NO_VERDICT is never PASS
    raise typer.Exit(EXIT_REJECTS if fail_on_reject and rejects else EXIT_OK)
