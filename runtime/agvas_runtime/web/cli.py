"""``agvas serve``: the options of the server, and nothing heavy before they make sense."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from agvas_core.contract.command_line import DECISION, INPUT, MODEL, OUTPUT, SPEED
from agvas_core.contract.defaults import BALANCED, DEFAULT_BACKEND, DEFAULT_MODEL, STRICT
from agvas_core.contract.errors import UsageError
from agvas_core.contract.network import KEY_VARIABLE
from agvas_runtime.pipeline.cli_options import (
    Adapter,
    Bits,
    Checkpoint,
    LmmFolder,
    Model,
    Offline,
    Strict,
)
from agvas_runtime.pipeline.options import SegmentOptions

__all__ = ["serve"]

MIB = 1 << 20


def serve(
    given: Annotated[
        str | None, typer.Argument(metavar="[NAME|FOLDER]", help="The model, as --model names it.", show_default=False)
    ] = None,
    model: Model = DEFAULT_MODEL,
    offline: Offline = False,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback an API key is needed.", rich_help_panel=OUTPUT)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.", rich_help_panel=OUTPUT)] = 8080,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help=f"File with the API key; {KEY_VARIABLE} in the environment otherwise.", rich_help_panel=OUTPUT
        ),
    ] = None,
    lmm: Annotated[
        str,
        typer.Option(
            metavar="BACKEND|URL",
            help="What runs the language model: onnx, torch, vllm, or the address of serve-lmm.",
            rich_help_panel=MODEL,
        ),
    ] = DEFAULT_BACKEND,
    adapter: Adapter = None,
    lmm_folder: LmmFolder = None,
    checkpoint: Checkpoint = None,
    workers: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="Images judged at the same time.", rich_help_panel=SPEED)
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="CPU threads of each; all cores by default.", rich_help_panel=SPEED)
    ] = None,
    queue: Annotated[
        int,
        typer.Option(
            min=1, max=10000, metavar="N", help="Images that may wait; more are refused with 429.", rich_help_panel=SPEED
        ),
    ] = 16,
    max_mb: Annotated[
        int, typer.Option(min=1, max=1024, metavar="MB", help="Size of a request's body at most.", rich_help_panel=INPUT)
    ] = 32,
    max_pixels: Annotated[
        int, typer.Option(min=1, metavar="N", help="Width times height of an image at most.", rich_help_panel=INPUT)
    ] = 25_000_000,
    bits: Bits = None,
    recipe: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE|STORE",
            help="A recipe that requests may name by its product; may be given again.",
            rich_help_panel=DECISION,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What to look for where a request does not say.", rich_help_panel=MODEL)
    ] = None,
    strict: Strict = False,
    threshold: Annotated[
        float | None, typer.Option(help="Where a request has none: pixels above this are anomalous.", rich_help_panel=DECISION)
    ] = None,
) -> None:
    """Serve a model over HTTP: images and words in, verdicts and masks out, with a page to try it on.

    Ctrl-C or SIGTERM ends it after what is in work is done. Exit codes: 0 ended, 2 usage, 3 a port that is taken, a broken bundle, a package
    that is missing.
    """
    if given is not None and model not in (DEFAULT_MODEL, given):
        raise UsageError(f"{given} and --model {model} name two models: give one")
    if strict and threshold is not None:
        raise UsageError(f"both --strict and --threshold {threshold} say what is anomalous: leave one out")

    from agvas_runtime.pipeline.segmenter import Segmenter
    from agvas_runtime.web.app import build_app
    from agvas_runtime.web.recipes import Recipes
    from agvas_runtime.web.serving import address_of, listen
    from agvas_runtime.web.serving import serve as run
    from agvas_runtime.web.settings import Settings

    settings = Settings(
        host=host,
        port=port,
        api_key=_api_key(api_key_file),
        workers=workers,
        queue=queue,
        max_body_bytes=max_mb * MIB,
        max_pixels=max_pixels,
        bits=bits,
        upload_bytes=max(256, max_mb) * MIB,
    )
    options = SegmentOptions(
        given or model,
        offline=offline,
        lmm=lmm,
        adapter=adapter,
        checkpoint=checkpoint,
        lmm_folder=lmm_folder,
        threads=threads,
        operating_point=STRICT if strict else BALANCED,
        threshold=threshold,
        prompt=prompt,
        max_pixels=settings.max_pixels,
    )
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s")
    with listen(settings) as opened:
        segmenter = Segmenter.open(options)
        app = build_app(segmenter, settings, Recipes.read(segmenter.bundle, recipe or ()))
        print(f"{address_of(opened)} serves {segmenter.bundle.identity}; Ctrl-C ends it", flush=True)
        run(app, opened, settings)
    print("ended; everything that was in work is answered", file=sys.stderr)


def _api_key(file: Path | None) -> str | None:
    """Of a file, or of the environment; never an argument, which every user of the machine can read."""
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"--api-key-file {file} cannot be read ({error}): check path and permissions") from error
