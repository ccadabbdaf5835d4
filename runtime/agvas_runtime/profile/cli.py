"""``agvas profile``: the options; nothing heavy is imported before they make sense."""

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from agvas_core.contract.command_line import INPUT, OUTPUT, SPEED, interrupt_code, printable
from agvas_core.contract.defaults import DEFAULT_BACKEND, DEFAULT_MODEL
from agvas_core.contract.errors import EXIT_OK, EXIT_REJECTS, OutputError, UsageError
from agvas_runtime.pipeline.cli_options import (
    Backend,
    Bits,
    Checkpoint,
    Decoder,
    Engines,
    Lmm,
    Model,
    ModeName,
    Prompt,
    Threads,
    Vision,
)
from agvas_runtime.pipeline.options import SegmentOptions, stage_backends

__all__ = ["duration_s", "profile", "rate_per_s"]

_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


def rate_per_s(text: str) -> float:
    """``600/min``, ``10/s``, ``10`` (per second) -> frames per second.

    Raises:
        UsageError: not a rate, or not above zero.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:/\s*(s|sec|min|m|h))?\s*", text)
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"--rate is {text!r}: it takes frames per time, 600/min, 10/s or 36000/h say")
    return float(found[1]) / _UNITS[found[2] or "s"]


def duration_s(text: str) -> float:
    """``10m``, ``90s``, ``1h``, ``90`` (seconds) -> seconds.

    Raises:
        UsageError: not a duration, or not above zero.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|min|m|h)?\s*", text)
    if found is None or float(found[1]) <= 0:
        raise UsageError(f"--soak is {text!r}: it takes a time, 10m, 90s or 1h say")
    return float(found[1]) * _UNITS[found[2] or "s"]


def profile(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE", help="Pictures, folders, globs, videos; a generated picture where there is none."),
    ] = None,
    model: Model = DEFAULT_MODEL,
    backend: Backend = DEFAULT_BACKEND,
    vision: Vision = None,
    lmm: Lmm = None,
    decoder: Decoder = None,
    engines: Engines = None,
    checkpoint: Checkpoint = None,
    frames: Annotated[
        int, typer.Option(min=2, metavar="N", help="Frames that are measured one after the other.", rich_help_panel=SPEED)
    ] = 100,
    warmup: Annotated[
        int, typer.Option(min=0, metavar="N", help="Frames before that, which do not count.", rich_help_panel=SPEED)
    ] = 10,
    size_px: Annotated[
        int, typer.Option(min=32, max=8192, metavar="PX", help="Side of the generated picture.", rich_help_panel=INPUT)
    ] = 512,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="RATE",
            help="Can this line run at this rate? 600/min, 10/s; answers yes (exit 0) or no (1).",
            rich_help_panel=SPEED,
        ),
    ] = None,
    soak: Annotated[
        str, typer.Option(metavar="TIME", help="For how long the rate is tried: 10m, 90s, 1h.", rich_help_panel=SPEED)
    ] = "60s",
    deadline_ms: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            metavar="MS",
            help="A verdict may come so late after its frame; one period by default.",
            rich_help_panel=SPEED,
        ),
    ] = None,
    offered: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Frames at each of five offered rates; 0 leaves them out.", rich_help_panel=SPEED),
    ] = 24,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Measure how many tiles a launch and passes ahead are fastest here, and keep them: every command takes them.",
            rich_help_panel=SPEED,
        ),
    ] = False,
    count: Annotated[
        bool,
        typer.Option("--count/--no-count", help="Count the work, and measure what the machine can do.", rich_help_panel=SPEED),
    ] = True,
    prompt: Prompt = None,
    mode: ModeName = SegmentOptions.mode,
    threads: Threads = None,
    bits: Bits = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An earlier profile.json; the new one is compared with it.", rich_help_panel=OUTPUT),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="OLD NEW", help="Compare two profile.json, and measure nothing.", rich_help_panel=OUTPUT),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder for profile.json and profile.html.", rich_help_panel=OUTPUT),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier profile in --out.", rich_help_panel=OUTPUT)
    ] = False,
    json_out: Annotated[
        bool, typer.Option("--json", help="The profile as JSON on stdout, all else on stderr.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Measure how fast a bundle runs here: latencies, rates, memory, and how near each stage is to the machine's limits.

    Writes profile.json and profile.html; with --tune a file in agvas' cache. Exit codes: 0 fine; 1 the rate of --rate was not held.
    """
    if tune:
        _refuse_beside_tune(context)
    wanted = rate_per_s(rate) if rate is not None else None
    soak_s = duration_s(soak)
    if deadline_ms is not None and wanted is None:
        raise UsageError(f"--deadline-ms {deadline_ms:g} needs --rate: say at which rate the frames come")
    if compare is not None and (sources or against is not None or wanted is not None):
        raise UsageError("--compare measures nothing: leave SOURCE, --rate and --against out")

    from rich.console import Console

    from agvas_runtime.profile.compare import compare_profiles
    from agvas_runtime.profile.record import read
    from agvas_runtime.profile.table import print_comparison, print_profile, print_tuning

    screen, progress = Console(stderr=json_out, highlight=False), Console(stderr=True, highlight=False)

    def note(text: str) -> None:
        progress.print(printable(text), style="yellow", markup=False, soft_wrap=True)

    if compare is not None:
        old, new = read(compare[0]), read(compare[1])
        print_comparison(screen, compare_profiles(old, new))
        folder = _write(out, overwrite, {"compare.html": _page(new, old)}) if out is not None else None
        if folder is not None:
            screen.print(f"page  {folder / 'compare.html'}", soft_wrap=True)
        return
    earlier = read(against) if against is not None else None
    target = _claim(out, overwrite) if not tune else None

    import time

    from agvas_runtime.pipeline.batching import keep_tuning
    from agvas_runtime.pipeline.segmenter import Segmenter
    from agvas_runtime.profile.session import Plan, generated_frame, load_frames
    from agvas_runtime.profile.session import profile as measure
    from agvas_runtime.sources.camera import without_secrets

    plan = Plan(
        frames=frames,
        warmup=warmup,
        offered_frames=offered,
        rate_per_s=wanted,
        soak_s=soak_s,
        deadline_ms=deadline_ms,
        count=count,
    )
    options = SegmentOptions(
        model,
        **stage_backends(backend, vision=vision, lmm=lmm, decoder=decoder),
        engines=engines,
        checkpoint=checkpoint,
        threads=threads,
        prompt=prompt,
        mode=mode,
    )
    command = shlex.join(["agvas", "profile", *map(without_secrets, sys.argv[2:])])
    if tune:
        from agvas_runtime.profile.tune import tune_here

        shown = load_frames(sources, bits=bits, note=note) if sources else [generated_frame(size_px)]
        with progress.status("starting") as status:
            tuning = tune_here(options, shown, command=command, say=status.update)
        print_tuning(screen, tuning)
        screen.print(f"kept in  {keep_tuning(tuning)}", soft_wrap=True)
        if json_out:
            typer.echo(tuning.model_dump_json(indent=1))
        return
    began = time.perf_counter()
    segmenter = Segmenter.open(options)
    load_s = time.perf_counter() - began
    shown = load_frames(sources, bits=bits, note=note) if sources else [generated_frame(size_px)]
    facts = {
        "backend": " ".join(dict.fromkeys(map(without_secrets, options.backends))),
        "threads": threads,
        "load_s": load_s,
        "command": command,
    }
    with progress.status("starting") as status:
        done, stopped = measure(segmenter, shown, plan, facts=facts, say=status.update)
    assert target is not None
    folder = _write(target, True, {"profile.json": done.to_json(), "profile.html": _page(done, earlier)})
    print_profile(screen, done)
    if earlier is not None:
        print_comparison(screen, compare_profiles(earlier, done))
    screen.print(f"profile  {folder / 'profile.json'}\npage     {folder / 'profile.html'}", soft_wrap=True)
    if json_out:
        typer.echo(done.to_json(), nl=False)
    if stopped is not None:
        raise typer.Exit(interrupt_code(stopped))
    raise typer.Exit(EXIT_REJECTS if done.line is not None and not done.line.held else EXIT_OK)


def _refuse_beside_tune(context: typer.Context) -> None:
    """What --tune does not measure, or writes elsewhere.

    Raises:
        UsageError: it was given.
    """
    taken = {"sources", "model", "backend", "vision", "lmm", "decoder", "engines", "checkpoint", "size_px", "prompt", "threads"}
    for name in context.params.keys() - taken - {"tune", "json_out"}:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise UsageError(f"--{name.replace('_', '-')} has no meaning with --tune, which finds and keeps counts: leave it out")


def _page(profile: object, earlier: object) -> str:
    from agvas_runtime.profile.page import render
    from agvas_runtime.profile.record import Profile

    assert isinstance(profile, Profile) and (earlier is None or isinstance(earlier, Profile))
    return render(profile, earlier)


def _claim(out: Path | None, overwrite: bool) -> Path:
    """The folder to write, known to be free before minutes of measuring."""
    if out is None:
        taken = {path.name for path in Path("runs").glob("profile-*")}
        return Path("runs") / next(name for number in range(1, 10**6) if (name := f"profile-{number:03d}") not in taken)
    if out.is_file():
        raise UsageError(f"{out} is a file; a profile needs a folder: choose another name with --out DIR")
    if (out / "profile.json").exists() and not overwrite:
        raise UsageError(f"{out} has a profile in it: choose another name with --out DIR, or say --overwrite to replace it")
    return out


def _write(out: Path, overwrite: bool, files: dict[str, str]) -> Path:
    from agvas_core.contract.durable import write_whole

    for name in files:
        if (out / name).exists() and not overwrite:
            raise UsageError(f"{out / name} exists: choose another folder with --out DIR, or say --overwrite to replace it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_whole(out / name, text)
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror}): choose another folder with --out DIR") from error
    return out
