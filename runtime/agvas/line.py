"""``agvas line``: one verdict for each part by a recipe, in a ledger, until stopped. ``agvas run --recipe`` does the same."""

import os
import sys
from pathlib import Path

import typer

from agvas_core.contract.defaults import DEFAULT_BACKEND
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
    Limit,
    Lmm,
    LmmFolder,
    Log,
    Metrics,
    Offline,
    Page,
    PageHost,
    PixelFormats,
    Queues,
    Recipes,
    Sinks,
    Sources,
    State,
    Stations,
    Threads,
    Triggers,
    Version,
    Vision,
)
from agvas_runtime.pipeline.options import SegmentOptions, stage_backends

__all__ = ["line"]


def line(
    sources: Sources = None,
    camera: Cameras = None,
    pixel_format: PixelFormats = None,
    limit: Limit = None,
    bits: Bits = None,
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
    offline: Offline = False,
    backend: Backend = DEFAULT_BACKEND,
    vision: Vision = None,
    lmm: Lmm = None,
    decoder: Decoder = None,
    engines: Engines = None,
    adapter: Adapter = None,
    lmm_folder: LmmFolder = None,
    checkpoint: Checkpoint = None,
    threads: Threads = None,
    version: Version = False,
) -> None:
    """Inspects parts on a line: one verdict for each by a recipe, in a ledger, until SIGTERM, Ctrl-C or --limit.

    Secrets are read from the environment: AGVAS_MQTT_PASSWORD, AGVAS_WEBHOOK_SECRET, AGVAS_API_KEY. Exit codes: 0 ended, 2 usage, 3
    environment (model, packages, ledger, port), 5 source lost, 143 ended by SIGTERM.
    """
    if not recipe:
        raise UsageError("a line needs --recipe FILE: agvas recipe new PRODUCT makes one")
    if not sources and not camera:
        raise UsageError("a line needs --camera URI, or files as SOURCE: give one of the two")
    if sources and camera:
        raise UsageError(f"both SOURCE ({sources[0]}) and --camera are given; a line looks at one of them: leave one out")

    from agvas_runtime.line.app.preflight import preflight, secrets_of
    from agvas_runtime.line.app.run import LineJob, run_line
    from agvas_runtime.line.station.source_loop import QueuePolicy

    job = LineJob(
        recipes=tuple(recipe),
        cameras=tuple(camera or ()),
        sources=tuple(sources or ()),
        state=state,
        stations=tuple(station or ()),
        triggers=tuple(trigger or ()),
        policies=tuple(QueuePolicy(one.value) for one in queue or ()),
        pixel_formats=tuple(pixel_format or ()),
        options=SegmentOptions(
            offline=offline,
            **stage_backends(backend, vision=vision, lmm=lmm, decoder=decoder),
            engines=engines,
            adapter=adapter,
            lmm_folder=lmm_folder,
            checkpoint=checkpoint,
            threads=threads,
            bits=bits,
        ),
        sinks=tuple(sinks or ()),
        secrets=secrets_of(os.environ),
        metrics_port=metrics,
        log=log.value if log is not None else "text" if sys.stderr.isatty() else "json",
        limit=limit,
    )
    shown = None
    if page is not None:
        from agvas_runtime.web.line.live import open_live_page

        shown = open_live_page(page_host, page)  # its port is taken before the model is loaded
    raise typer.Exit(preflight(job) if check else run_line(job, page=shown))
