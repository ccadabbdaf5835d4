"""Command line options that several commands share, each declared once, with its panel of the help."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agvas_core.contract.command_line import DECISION, INPUT, LINE, MODEL, OUTPUT, SPEED

__all__ = [
    "Adapter",
    "Backend",
    "Bits",
    "Cameras",
    "Check",
    "Checkpoint",
    "Decoder",
    "Engines",
    "FailOnReject",
    "Limit",
    "Lmm",
    "LmmFolder",
    "Log",
    "LogForm",
    "MaxPixels",
    "Metrics",
    "ModeName",
    "Model",
    "NormalLook",
    "Offline",
    "Page",
    "PageHost",
    "PixelFormats",
    "Prompt",
    "Queue",
    "Queues",
    "Quiet",
    "Recipes",
    "Sinks",
    "Sources",
    "State",
    "Stations",
    "Strict",
    "Threads",
    "Threshold",
    "Tiling",
    "TilingChoice",
    "Triggers",
    "Version",
    "Vision",
]


class LogForm(StrEnum):
    """What a line says while it runs."""

    text = "text"
    json = "json"


class Tiling(StrEnum):
    """Whether large images are cut into tiles."""

    auto = "auto"
    off = "off"


class Queue(StrEnum):
    """What happens while frames come faster than they are judged; ``QueuePolicy`` says it in full."""

    every = "every"
    latest = "latest"
    block = "block"


def _print_version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        from agvas_core import __version__

        print(f"{context.command_path} {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")]

# Input.

Sources = Annotated[
    list[str] | None,
    typer.Argument(metavar="SOURCE", help="Image and video files, folders, globs in quotes, or - for a list of paths on stdin."),
]
Cameras = Annotated[
    list[str] | None,
    typer.Option(
        "--camera",
        metavar="URI",
        help="A camera in place of SOURCE: index, device, rtsp://, http:// (MJPEG), genicam://ID; on a line also watch:FOLDER, and "
        "again for each camera.",
        rich_help_panel=INPUT,
    ),
]
PixelFormats = Annotated[
    list[str] | None,
    typer.Option(
        "--pixel-format",
        metavar="NAME",
        help="With a device as --camera: it sends Mono8, BayerRG8, NV12, YUYV...; read in one pass. On a line once, or for each camera.",
        rich_help_panel=INPUT,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Stop after N images; on a line, after N parts of each camera.", rich_help_panel=INPUT),
]
Bits = Annotated[
    int | None,
    typer.Option(min=9, max=16, metavar="N", help="Bits that 16-bit images use, 12 say; 16 by default.", rich_help_panel=INPUT),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Larger images get NO_VERDICT; 100 million by default.", rich_help_panel=INPUT),
]

# Model.

Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME|FOLDER",
        help="A bundled model, the folder of a bundle or product, or hf:org/name of a hub.",
        rich_help_panel=MODEL,
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option(help="What to look for, in words: 'Segment the scratch at the top left.', in any mode.", rich_help_panel=MODEL),
]
ModeName = Annotated[
    str,
    typer.Option(
        help="How the model answers: direct, the mask alone; describe, words before the mask; describe-plus, the same "
        "after --normal-look; explain, words after it.",
        rich_help_panel=MODEL,
    ),
]
NormalLook = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="How a good part looks, in a sentence; for --mode describe-plus.", rich_help_panel=MODEL),
]

Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        help="Take a model of the hub (hf:org/name) from the cache; open no connection for it.",
        rich_help_panel=MODEL,
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What runs all three stages: onnx, ort-cuda, trt, torch, torch-cuda. --vision, --lmm and --decoder go before it.",
        rich_help_panel=MODEL,
    ),
]
Vision = Annotated[str | None, typer.Option(metavar="BACKEND", help="What runs the image encoders.", rich_help_panel=MODEL)]
Lmm = Annotated[
    str | None,
    typer.Option(
        metavar="BACKEND|URL",
        help="What runs the language model: also vllm, vllm-direct, or the address of agvas serve-lmm.",
        rich_help_panel=MODEL,
    ),
]
Decoder = Annotated[str | None, typer.Option(metavar="BACKEND", help="What runs the mask decoder.", rich_help_panel=MODEL)]
Engines = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="With trt: where agvas export trt -o put the engines, if not the default.", rich_help_panel=MODEL
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="With vLLM: the adapter to answer with; the model's own by default.", rich_help_panel=MODEL
    ),
]
LmmFolder = Annotated[
    Path | None,
    typer.Option(
        "--lmm-folder",
        metavar="DIR",
        help="With vllm: the folder of agvas export vllm, if the bundle has none.",
        rich_help_panel=MODEL,
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="With torch: the checkpoint of the bundle, if it is not nano's.", rich_help_panel=MODEL),
]

# Decision.

Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Spare good parts: the bundle's strict operating point in place of the balanced one.",
        rich_help_panel=DECISION,
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="Every pixel above this score, 0 to 1, is anomalous, in place of the operating point's thresholds.",
        rich_help_panel=DECISION,
    ),
]
FailOnReject = Annotated[
    bool,
    typer.Option("--fail-on-reject", help="Exit with 1 if any image is FAIL or NO_VERDICT.", rich_help_panel=DECISION),
]

# Output.

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=OUTPUT)]

# Speed.

TilingChoice = Annotated[Tiling, typer.Option(help="Cut large images into tiles, or shrink them whole.", rich_help_panel=SPEED)]

Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="CPU threads; all cores by default.", rich_help_panel=SPEED)
]

# Line.

Recipes = Annotated[
    list[Path] | None,
    typer.Option(
        "--recipe",
        metavar="FILE|STORE",
        help="What decides about the parts: one verdict for each, in a ledger, until stopped. Once for all cameras, or for each.",
        rich_help_panel=LINE,
    ),
]
State = Annotated[Path, typer.Option(metavar="DIR", help="The folder of ledger and images.", rich_help_panel=LINE)]
Stations = Annotated[
    list[str] | None,
    typer.Option("--station", metavar="NAME", help="Name of the station; for each camera.", rich_help_panel=LINE),
]
Triggers = Annotated[
    list[str] | None,
    typer.Option(
        "--trigger",
        metavar="ADDRESS",
        help="What asks for parts, free by default: http:PORT, mqtt://HOST/TOPIC, modbus://HOST/COIL. Once, or for each camera.",
        rich_help_panel=LINE,
    ),
]
Queues = Annotated[
    list[Queue] | None,
    typer.Option(
        "--queue",
        help="When frames come too fast: every frame is a part (files, triggers), the latest counts (a camera that runs free), or the "
        "source is blocked. Once, or for each camera.",
        rich_help_panel=LINE,
    ),
]
Sinks = Annotated[
    list[str] | None,
    typer.Option(
        "--sink",
        metavar="ADDRESS",
        help="Where verdicts go, may be given again: jsonl:PATH, mqtt://HOST/TOPIC, opcua://HOST, modbus://HOST/REGISTER, http(s)://...",
        rich_help_panel=LINE,
    ),
]
Metrics = Annotated[
    int | None,
    typer.Option(min=0, max=65535, metavar="PORT", help="Figures for Prometheus on loopback.", rich_help_panel=LINE),
]
Page = Annotated[
    int | None,
    typer.Option(min=0, max=65535, metavar="PORT", help="A page that shows the line; 0 takes a free port.", rich_help_panel=LINE),
]
PageHost = Annotated[
    str,
    typer.Option(
        "--page-host",
        metavar="ADDRESS",
        help="Where --page listens; beyond loopback AGVAS_API_KEY is needed.",
        rich_help_panel=LINE,
    ),
]
Log = Annotated[
    LogForm | None,
    typer.Option(help="Lines for people, or JSON; JSON if stderr is no terminal.", rich_help_panel=LINE),
]
Check = Annotated[
    bool,
    typer.Option("--check", help="Look at camera, recipe, model, disk, sinks and rate, and leave.", rich_help_panel=LINE),
]
