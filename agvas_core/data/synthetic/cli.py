"""``agvas synth``: a folder of synthetic images in the MVTec layout, to look at, to test with, to demonstrate on."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agvas_core.contract.errors import OutputError, UsageError
from agvas_core.data.synthetic.captions import describe
from agvas_core.data.synthetic.synthesis import DEFAULT_SPEC, Sample, SynthesisSpec, synthesize

__all__ = ["synth"]

CATEGORY = "synthetic"


def synth(
    out: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Which endless set of images.")] = 0,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT in pixels, sides 96 to 2048.")] = "256x256",
    start: Annotated[int, typer.Option(min=0, help="Index of the first image.")] = 0,
    normal_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of images without a defect.")
    ] = DEFAULT_SPEC.normal_fraction,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar, no summary.")] = False,
) -> None:
    """Write synthetic images with masks and captions: OUT/synthetic/test/KIND/NNN.png and so on."""
    width, height = parse_size(size)
    check_empty(out)
    spec = SynthesisSpec(normal_fraction=normal_fraction)
    console = Console(stderr=True)
    entries: list[dict[str, Any]] = []
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet) as progress:
        for position in progress.track(range(count)):
            sample = synthesize(seed, start + position, (height, width), spec)
            entries.append(_written(out, position, sample))
    _write(out / f"meta_{CATEGORY}.json", json.dumps(entries, indent=1).encode())
    if not quiet:
        bad = sum(entry["anomaly"] for entry in entries)
        console.print(f"{count} images, {bad} with a defect, in {out}", highlight=False, soft_wrap=True)


def parse_size(text: str) -> tuple[int, int]:
    """ "640x480" -> (640, 480)."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise UsageError(f"--size is {text!r}; it must be WIDTHxHEIGHT in pixels, such as 256x256")
    return int(width), int(height)


def check_empty(out: Path) -> None:
    """Refuses a file and a folder with anything in it: it may hold a user's data."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a new or empty folder")
    if out.is_dir() and (found := len(list(out.iterdir()))):
        raise UsageError(
            f"{out} holds {found} entries; synth writes only into a new or empty folder: name another one, or empty it"
        )


def _written(out: Path, position: int, sample: Sample) -> dict[str, Any]:
    """Writes one image and its mask; returns its line of the index."""
    kinds = sorted({defect.kind for defect in sample.defects})
    species = "good" if not kinds else kinds[0] if len(kinds) == 1 else "combined"
    name = f"{position:03d}"
    entry: dict[str, Any] = {
        "img_path": f"{CATEGORY}/test/{species}/{name}.png",
        "category": CATEGORY,
        "specie": species,
        "anomaly": int(bool(kinds)),
        "caption": describe(sample.defects),
        "scene": sample.scene,
        "defects": [asdict(defect) for defect in sample.defects],
    }
    _write(out / entry["img_path"], _png(sample.image[..., ::-1]))
    if kinds:
        entry["mask_path"] = f"{CATEGORY}/ground_truth/{species}/{name}_mask.png"
        _write(out / entry["mask_path"], _png(np.where(sample.mask, 255, 0).astype(np.uint8)))
    return entry


def _png(image: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", np.ascontiguousarray(image))[1])


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose a folder with space and write permission") from error
