"""``agvas run``: finds anomalies in files, folders, videos or a camera.

Only options are read here, and nothing heavy is imported before they make sense; ``agvas_runtime.run`` does the work.
"""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Final

import typer

from agvas.line import line
from agvas_core.contract.command_line import INPUT, OUTPUT, SPEED
from agvas_core.contract.defaults import BALANCED, DEFAULT_BACKEND, DEFAULT_MODEL, STRICT
from agvas_core.contract.errors import UsageError
from agvas_runtime.pipeline.cli_options import (
    Adapter,
    Backend,
    Bits,
    Cameras,
    Check,
    Checkpoint,
    Decoder,
    Engines,
    FailOnReject,
    Limit,
    Lmm,
    LmmFolder,
    Log,
    MaxPixels,
    Metrics,
    Model,
    ModeName,
    NormalLook,
    Offline,
    Page,
    PageHost,
    PixelFormats,
    Prompt,
    Queues,
    Quiet,
    Recipes,
    Sinks,
    Sources,
    State,
    Stations,
    Strict,
    Threads,
    Threshold,
    Tiling,
    TilingChoice,
    Triggers,
    Version,
    Vision,
)
from agvas_runtime.pipeline.options import SegmentOptions, stage_backends

__all__ = ["SAVE_DEFAULT", "SAVE_KINDS", "parse_save", "run"]

SAVE_KINDS: Final = ("mask", "overlay", "jsonl", "report", "score", "score-npy", "csv", "coco", "yolo")
SAVE_DEFAULT: Final = "mask,overlay,jsonl,report"


def run(
    context: typer.Context,
    sources: Sources = None,
    camera: Cameras = None,
    pixel_format: PixelFormats = None,
    limit: Limit = None,
    every: Annotated[
        int, typer.Option(min=1, metavar="N", help="Take every N-th image or video frame.", rich_help_panel=INPUT)
    ] = 1,
    max_pixels: MaxPixels = None,
    bits: Bits = None,
    pages: Annotated[
        bool,
        typer.Option(
            "--pages",
            help="Each page of a TIFF is an image of its own; without it the first stands for all.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    model: Model = DEFAULT_MODEL,
    offline: Offline = False,
    prompt: Prompt = None,
    mode: ModeName = SegmentOptions.mode,
    normal_look: NormalLook = None,
    backend: Backend = DEFAULT_BACKEND,
    vision: Vision = None,
    lmm: Lmm = None,
    decoder: Decoder = None,
    engines: Engines = None,
    adapter: Adapter = None,
    lmm_folder: LmmFolder = None,
    checkpoint: Checkpoint = None,
    strict: Strict = False,
    threshold: Threshold = None,
    fail_on_reject: FailOnReject = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for the results; the next free runs/run-001 by default.", rich_help_panel=OUTPUT
        ),
    ] = None,
    save: Annotated[
        str,
        typer.Option(
            metavar="KINDS",
            help="Comma list of mask, overlay, jsonl, report, score (16-bit PNG), score-npy (float32), csv, coco, yolo; or none.",
            rich_help_panel=OUTPUT,
        ),
    ] = SAVE_DEFAULT,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of an earlier run in --out.", rich_help_panel=OUTPUT)
    ] = False,
    json_lines: Annotated[
        bool,
        typer.Option("--json", help="Results as JSON lines on stdout, all else on stderr.", rich_help_panel=OUTPUT),
    ] = False,
    quiet: Quiet = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="A line for every image, with what the model said; how the bundle was compared with its model.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    threads: Threads = None,
    tiling: TilingChoice = Tiling.auto,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure the run: profile.json, profile.html in --out.", rich_help_panel=SPEED)
    ] = False,
    recipe: Recipes = None,
    state: State = Path("line"),
    station: Stations = None,
    trigger: Triggers = None,
    queue: Queues = None,
    sinks: Sinks = None,
    metrics: Metrics = None,
    page: Page = None,
    page_host: PageHost = "127.0.0.1",
    log: Log = None,
    check: Check = False,
    version: Version = False,
) -> None:
    """Finds what does not belong on a part: verdict, mask and report for every image.

    With --recipe it runs a line, as agvas line does; the options of the panel Line need it.

    Exit codes: 0 fine, 1 rejects found (--fail-on-reject), 2 usage, 3 environment (model, packages, output folder), 5 source lost, 130
    interrupted, 143 ended by SIGTERM.
    """
    cameras = tuple(camera or ())
    if not sources and not cameras:
        with redirect_stdout(sys.stderr):  # rich prints the help by itself
            print(context.get_help())
        raise typer.Exit(2)
    if sources and cameras:
        raise UsageError(f"both SOURCE ({sources[0]}) and --camera are given; one run looks at one of them: leave one out")
    if strict and threshold is not None:
        raise UsageError(f"both --strict and --threshold {threshold} say what is anomalous: leave one out")
    if quiet and verbose:
        raise UsageError("both --quiet and --verbose are given: leave one out")
    kinds = parse_save(save)
    if recipe:
        _refuse_beside_recipe(context)
        line(
            sources=sources,
            camera=camera,
            pixel_format=pixel_format,
            limit=limit,
            bits=bits,
            recipe=recipe,
            state=state,
            station=station,
            trigger=trigger,
            queue=queue,
            sinks=sinks,
            metrics=metrics,
            page=page,
            page_host=page_host,
            log=log,
            check=check,
            offline=offline,
            backend=backend,
            vision=vision,
            lmm=lmm,
            decoder=decoder,
            engines=engines,
            adapter=adapter,
            lmm_folder=lmm_folder,
            checkpoint=checkpoint,
            threads=threads,
        )
        return
    _refuse_without_recipe(context)
    if len(cameras) > 1:
        raise UsageError(
            f"{len(cameras)} cameras are given and no --recipe; a line takes several, a run of files one: start one run each"
        )
    if len(pixel_format or ()) > 1:
        raise UsageError(f"--pixel-format is given {len(pixel_format or ())} times and there is one camera: give it once")
    options = SegmentOptions.of(
        model=model,
        offline=offline,
        **stage_backends(backend, vision=vision, lmm=lmm, decoder=decoder),
        engines=engines,
        adapter=adapter,
        lmm_folder=lmm_folder,
        checkpoint=checkpoint,
        threads=threads,
        operating_point=STRICT if strict else BALANCED,
        threshold=threshold,
        prompt=prompt,
        mode=mode,
        normal_look=normal_look,
        tiling=tiling.value,
        max_pixels=max_pixels,
        bits=bits,
    )

    from agvas_runtime.run import Job, inspect  # numpy, OpenCV and ONNX Runtime come with it

    job = Job(
        sources=tuple(sources or ()),
        camera=cameras[0] if cameras else None,
        pixel_format=pixel_format[0] if pixel_format else None,
        options=options,
        limit=limit,
        every=every,
        pages=pages,
        out=out,
        save=kinds,
        overwrite=overwrite,
        fail_on_reject=fail_on_reject,
        json_lines=json_lines,
        quiet=quiet,
        verbose=verbose,
        profile=profile,
        program=context.command_path,
    )
    raise typer.Exit(inspect(job))


def parse_save(text: str) -> tuple[str, ...]:
    """The kinds in a comma list, each once; ``none`` alone saves nothing.

    Raises:
        UsageError: a kind that does not exist.
    """
    kinds = [kind.strip().lower() for kind in text.split(",") if kind.strip()]
    if kinds == ["none"]:
        return ()
    for kind in kinds:
        if kind not in SAVE_KINDS:
            from agvas_core.contract.validation import nearest

            meant = f"did you mean {near}? " if (near := nearest(kind, SAVE_KINDS)) else ""
            raise UsageError(f"--save has {kind!r}: {meant}it takes {', '.join(SAVE_KINDS)}, or none alone")
    if not kinds:
        raise UsageError(f"--save is empty: it takes {', '.join(SAVE_KINDS)}, or none to save nothing")
    return tuple(kind for kind in SAVE_KINDS if kind in kinds)


# The names of the parameters, where they are not the option's.
_OPTION_OF: Final = {"json_lines": "json", "sinks": "sink"}


def _refuse_beside_recipe(context: typer.Context) -> None:
    """Refuses what a recipe decides, and what belongs to a run of files."""
    for name in ("prompt", "mode", "normal_look", "model", "strict", "threshold", "tiling"):
        if _is_given(context, name):
            raise UsageError(f"{_option(name)} and --recipe are given, and the recipe says it: write it into the recipe")
    for name in (
        "out",
        "save",
        "overwrite",
        "fail_on_reject",
        "json_lines",
        "every",
        "pages",
        "max_pixels",
        "quiet",
        "verbose",
        "profile",
    ):
        if _is_given(context, name):
            raise UsageError(f"{_option(name)} has no meaning with --recipe, which keeps a ledger in --state: leave it out")


def _refuse_without_recipe(context: typer.Context) -> None:
    """Refuses what only a line has."""
    for name in ("state", "station", "trigger", "queue", "sinks", "metrics", "page", "page_host", "log", "check"):
        if _is_given(context, name):
            raise UsageError(f"{_option(name)} needs --recipe FILE: agvas recipe new PRODUCT makes one")


def _option(name: str) -> str:
    return "--" + _OPTION_OF.get(name, name).replace("_", "-")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
