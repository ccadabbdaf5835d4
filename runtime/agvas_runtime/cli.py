"""``agvas-run``: finds anomalies in files, folders, videos or a camera.

Only options are read here, and nothing heavy is imported before they are known to make sense; ``inspection`` does the work.
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from agvas_core import __version__
from agvas_core.contract.command_line import run_command
from agvas_core.contract.defaults import BALANCED, STRICT
from agvas_core.contract.errors import UsageError
from agvas_runtime.pipeline.options import SegmentOptions
from agvas_runtime.recipe_options import refuse_beside_recipe, refuse_without_recipe
from agvas_runtime.save_kinds import SAVE_DEFAULT, parse_save

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class LogForm(StrEnum):
    """What a line says while it runs."""

    text = "text"
    json = "json"


class Queue(StrEnum):
    """What happens while frames come faster than they are judged; ``line.queue_policy`` has it in full."""

    every = "every"
    latest = "latest"
    block = "block"


class Tiling(StrEnum):
    """Whether large images are cut into tiles."""

    auto = "auto"
    off = "off"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"agvas-run {__version__}")
        raise typer.Exit


def _open_page(port: int | None, host: str) -> Any:
    """The page of a line on its port, or None where none was asked for."""
    if port is not None:
        from agvas_runtime.web.line.live import open_live_page

        return open_live_page(host, port)


@app.command()
def run(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE", help="Image and video files, folders, globs in quotes, or - for a list of paths on stdin."
        ),
    ] = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URI",
            help="A camera in place of SOURCE: index, device, rtsp://, http:// (MJPEG), genicam://ID, or with --recipe watch:FOLDER. With "
            "--recipe, again for each camera.",
        ),
    ] = None,
    pixel_format: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="With a device as --camera: it sends Mono8, BayerRG8, NV12, YUYV...; read in one pass. With --recipe once, or for each camera.",
        ),
    ] = None,
    recipe: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE|STORE",
            help="On the line: one verdict for each part by this recipe, in a ledger, until stopped. Once for all cameras, or for each.",
        ),
    ] = None,
    state: Annotated[Path, typer.Option(metavar="DIR", help="With --recipe: the folder of ledger and images.")] = Path("line"),
    station: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="With --recipe: how the station is called; for each camera.")
    ] = None,
    trigger: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="With --recipe: what asks for parts, free by default: http:PORT, mqtt://HOST/TOPIC, modbus://HOST/COIL. Once, or for each camera.",
        ),
    ] = None,
    queue: Annotated[
        list[Queue] | None,
        typer.Option(
            help="With --recipe: what is done when frames come too fast: every frame is a part (files, triggers), the latest counts (a "
            "camera that runs free), or the source is blocked. Once, or for each camera."
        ),
    ] = None,
    sinks: Annotated[
        list[str] | None,
        typer.Option(
            "--sink",
            metavar="ADDRESS",
            help="With --recipe, may be given again: jsonl:PATH, mqtt://HOST/TOPIC, opcua://HOST, modbus://HOST/REGISTER, http(s)://...",
        ),
    ] = None,
    metrics: Annotated[
        int | None, typer.Option(min=0, max=65535, metavar="PORT", help="With --recipe: figures for Prometheus on loopback.")
    ] = None,
    page: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="PORT", help="With --recipe: a page that shows the line; 0 takes a free port."),
    ] = None,
    page_host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="With --page: where it listens; beyond loopback AGVAS_API_KEY is needed.")
    ] = "127.0.0.1",
    log: Annotated[
        LogForm | None, typer.Option(help="With --recipe: lines for people, or JSON; JSON where stderr is no terminal.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="With --recipe: look at camera, recipe, model, disk, sinks and rate, and leave.")
    ] = False,
    prompt: Annotated[
        str | None, typer.Option(help="What to look for, in words: 'Segment the scratch at the top left.', in any mode.")
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="How the model answers: direct, the mask alone; describe, words before the mask; describe-plus, so too after "
            "--normal-look; explain, words after it."
        ),
    ] = "direct",
    normal_look: Annotated[
        str | None, typer.Option(metavar="TEXT", help="How a good part looks, in a sentence; for --mode describe-plus.")
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME|FOLDER", help="A bundled model, a folder, or hf:org/name of a hub.")
    ] = "nano",
    offline: Annotated[
        bool, typer.Option("--offline", help="Take a model of the hub (hf:org/name) from the cache; open no connection for it.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Spare good parts: the bundle's strict operating point in place of the balanced one.")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Every pixel above this score, 0 to 1, is anomalous, whatever the operating point says.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the results; the next free runs/run-001 by default.")
    ] = None,
    save: Annotated[
        str,
        typer.Option(
            metavar="KINDS", help="Comma list of mask, overlay, jsonl, report, score (16-bit PNG), score-npy (float32); or none."
        ),
    ] = SAVE_DEFAULT,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of an earlier run in --out.")] = False,
    fail_on_reject: Annotated[
        bool, typer.Option("--fail-on-reject", help="Exit with 1 if any image is FAIL or NO_VERDICT.")
    ] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="Results as JSON lines on stdout, all else on stderr.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after N images.")] = None,
    every: Annotated[int, typer.Option(min=1, metavar="N", help="Take every N-th image or video frame.")] = 1,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Larger images get NO_VERDICT; 100 million by default.")
    ] = None,
    bits: Annotated[
        int | None, typer.Option(min=9, max=16, metavar="N", help="Bits that 16-bit images use, 12 say; 16 by default.")
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What runs all three stages: onnx, ort-cuda, trt, torch. The next three have the last word."
        ),
    ] = "onnx",
    vision: Annotated[str | None, typer.Option(metavar="BACKEND", help="What runs the image encoders.")] = None,
    lmm: Annotated[
        str | None,
        typer.Option(
            metavar="BACKEND|URL",
            help="What runs the language model: also vllm, vllm-direct, or the address of agvas serve-lmm.",
        ),
    ] = None,
    decoder: Annotated[str | None, typer.Option(metavar="BACKEND", help="What runs the mask decoder.")] = None,
    engines: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With trt: where agvas-export trt -o put the engines; its default otherwise."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="NAME", help="With vLLM: the adapter to answer with; the model's own by default.")
    ] = None,
    lmm_folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With vllm: the folder of agvas-export vllm, where the bundle has none.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With torch: the checkpoint of the bundle, where it is not nano's.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads; all cores by default.")] = None,
    tiling: Annotated[Tiling, typer.Option(help="Cut large images into tiles, or shrink them whole.")] = Tiling.auto,
    profile: Annotated[bool, typer.Option("--profile", help="Measure the run: profile.json, profile.html in --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line for every image, with what the model said.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Finds what does not belong on a part: verdict, mask and report for every image.

    Exit codes: 0 fine, 1 rejects found (--fail-on-reject), 2 usage, 3 environment (model, packages, output folder), 5 source lost, 130
    interrupted, 143 told to end (SIGTERM).
    """
    cameras, recipes = tuple(camera or ()), tuple(recipe or ())
    if not sources and not cameras:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)
    if sources and cameras:
        raise UsageError(f"both SOURCE ({sources[0]}) and --camera are given; one run looks at one of them: leave one out")
    if strict and threshold is not None:
        raise UsageError(f"both --strict and --threshold {threshold} say what is anomalous: leave one out")
    if quiet and verbose:
        raise UsageError("both --quiet and --verbose are given: leave one out")
    kinds = parse_save(save)
    stages = {"vision": vision or backend, "lmm": lmm or backend, "decoder": decoder or backend}
    if recipes:
        refuse_beside_recipe(context)
        from agvas_runtime.line.app.preflight import run_with_options

        form = log.value if log is not None else "text" if sys.stderr.isatty() else "json"
        options: dict[str, Any] = {
            "recipes": recipes,
            "cameras": cameras,
            "sources": tuple(sources or ()),
            "state": state,
            "stations": tuple(station or ()),
            "triggers": tuple(trigger or ()),
            "policies": tuple(one.value for one in queue or ()),
            "pixel_formats": tuple(pixel_format or ()),
            "sinks": tuple(sinks or ()),
            "metrics_port": metrics,
            "log": form,
            "limit": limit,
            "options": SegmentOptions.of(threads=threads, engines=engines, bits=bits, **stages),
        }
        raise typer.Exit(run_with_options(options, check=check, page=_open_page(page, page_host)))
    refuse_without_recipe(context)
    if len(cameras) > 1:
        raise UsageError(
            f"{len(cameras)} cameras are given and no --recipe; a line takes several, a run of files one: start one run each"
        )

    if len(pixel_format or ()) > 1:
        raise UsageError(f"--pixel-format is given {len(pixel_format or ())} times and there is one camera: give it once")

    from agvas_runtime.run import Job, inspect  # numpy, OpenCV and ONNX Runtime come with it

    job = Job(
        sources=tuple(sources or ()),
        camera=cameras[0] if cameras else None,
        pixel_format=pixel_format[0] if pixel_format else None,
        options=SegmentOptions.of(
            model=model,
            offline=offline,
            prompt=prompt,
            mode=mode,
            normal_look=normal_look,
            operating_point=STRICT if strict else BALANCED,
            threshold=threshold,
            **stages,
            engines=engines,
            adapter=adapter,
            lmm_folder=lmm_folder,
            checkpoint=checkpoint,
            threads=threads,
            tiling=tiling.value,
            max_pixels=max_pixels,
            bits=bits,
        ),
        limit=limit,
        every=every,
        out=out,
        save=kinds,
        overwrite=overwrite,
        fail_on_reject=fail_on_reject,
        json_lines=json_lines,
        quiet=quiet,
        verbose=verbose,
        profile=profile,
    )
    raise typer.Exit(inspect(job))


def _load() -> Any:
    return app


def main() -> NoReturn:
    """Entry point of ``agvas-run``."""
    run_command(_load, name="agvas-run")


if __name__ == "__main__":
    main()
