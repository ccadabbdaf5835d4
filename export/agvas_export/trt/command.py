"""``agvas-export trt`` from its options to its exit code."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from agvas_core.contract.command_line import printable
from agvas_core.contract.engine import DEFAULT_STORE
from agvas_core.contract.errors import ParityError, UsageError
from agvas_core.contract.gpu import Gpu, cuda_gpu, this_gpu
from agvas_export.check import check_bundle, refuse_failed
from agvas_export.check_command import find_folder
from agvas_export.trt.build import build_plan
from agvas_export.trt.check import CheckedGraph, check_graph, check_plan
from agvas_export.trt.plan import Plan, make_plan
from agvas_export.trt.precision import BUILDER_PRECISIONS
from agvas_export.trt.recipe import Recipe, find_recipe, recipe_for_gpu, recipes
from agvas_export.trt.wide import export_wide

__all__ = ["TrtJob", "run_trt"]

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MAX_IMAGES = 64
CHECKED, CHECKED_FLOAT8 = "a100", "rtx"  # the recipes of --check where no target is named; the first has no float8

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrtJob:
    """What the options ask for."""

    bundle: str
    target: str | None = None
    precision: str | None = None
    stages: tuple[str, ...] | None = None
    """All that the bundle has a graph of where None."""
    max_batch: int | None = None
    images: Path | None = None
    store: Path | None = None
    dry_run: bool = False
    check: bool = False
    parse_only: bool = False
    paper_width: bool = False


def run_trt(job: TrtJob) -> None:
    """Checks, plans or builds; prints what came of it.

    Raises:
        AgvasError: what is missing, or refused, with the remedy.
    """
    folder = find_folder(job.bundle)
    console = Console(highlight=False)
    if job.check:
        _check(job, folder, console)
        return
    gpu = None if job.dry_run and job.target is not None else this_gpu()
    recipe = find_recipe(job.target) if job.target is not None else recipe_for_gpu(gpu.name if gpu else "")
    if job.dry_run:
        precision = None if job.precision == "auto" else job.precision
        for line in make_plan(folder, recipe, precision=precision, stages=job.stages, max_batch=job.max_batch).lines():
            print(line)
        return
    assert gpu is not None
    if gpu.compute_capability not in (recipe.compute_capability, "unknown"):
        raise UsageError(
            f"target {recipe.name} is for compute capability {recipe.compute_capability}, and {gpu.name} has {gpu.compute_capability}: an engine "
            f"is built on its own kind of GPU; targets are {', '.join(each.name for each in recipes())}"
        )
    gpu = cuda_gpu()  # of several the one that CUDA puts first: it builds, and will run
    images = _images(job.images) if job.images is not None else []
    store = job.store or DEFAULT_STORE
    say = _teller(Console(stderr=True, highlight=False))
    if job.precision == "auto":
        built = _build_until_it_passes(job, folder, recipe, gpu, store, images, say)
    else:
        plan = make_plan(folder, recipe, precision=job.precision, stages=job.stages, max_batch=job.max_batch)
        built = build_plan(plan, gpu, store, images=images, say=say)
    print(f"engines: {built}\nnext:    agvas-export check {job.bundle} --backend trt --data YOUR_PICTURES")


def _build_until_it_passes(
    job: TrtJob, folder: Path, recipe: Recipe, gpu: Gpu, store: Path, images: list[NDArray[np.uint8]], say: Say
) -> Path:
    """The fastest precision whose certificate holds; safer ones are tried when it does not."""
    if job.images is None:
        raise UsageError("--precision auto compares each engine with the model on your pictures: give them with --images DIR")
    if store != DEFAULT_STORE:
        raise UsageError(f"--precision auto builds where the runtime looks, in {DEFAULT_STORE}: leave -o out")
    refused = []
    for precision in recipe.precisions:
        try:
            plan: Plan = make_plan(folder, recipe, precision=precision, stages=job.stages, max_batch=job.max_batch)
        except UsageError:
            continue  # the bundle was not exported in it
        built = build_plan(plan, gpu, store, images=images, say=say)
        say(f"comparing the {precision} engines with the model")
        done = check_bundle(folder, job.images, backends=("trt",), limit=MAX_IMAGES, progress=say)
        try:
            refuse_failed(done.certificate, plan.manifest)
        except ParityError as error:
            refused.append(f"{precision}: {error}")
            say(f"{precision} does not hold; a safer one is next")
            continue
        print(f"precision: {precision}" + "".join(f"\nrefused:   {each}" for each in refused))
        return built
    raise ParityError(f"no precision gives the model's verdicts on {job.images}: {'; '.join(refused) or 'none could be built'}")


def _check(job: TrtJob, folder: Path, console: Console) -> None:
    if job.precision == "auto":
        raise UsageError("--check runs no engine, and auto compares them with the model: name one precision")
    recipe = find_recipe(job.target or (CHECKED_FLOAT8 if job.precision == "fp8" else CHECKED))
    if recipe.rtx_target is None:
        able = ", ".join(each.name for each in recipes() if each.rtx_target)
        raise UsageError(f"TensorRT-RTX knows no architecture of target {recipe.name}: check with {able}, or leave --target out")
    target = recipe.rtx_target
    plan = make_plan(folder, recipe, precision=job.precision, stages=job.stages, max_batch=job.max_batch)
    images = _images(job.images) if job.images is not None else []
    say = _teller(Console(stderr=True, highlight=False))
    for done in check_plan(plan, images=images, target=target, build=not job.parse_only, say=say):
        _print(console, f"{plan.manifest.name} {done.name}", done)
    if job.paper_width:
        with tempfile.TemporaryDirectory(prefix="agvas-wide-") as scratch:
            for name, graph, shapes in export_wide(Path(scratch)):
                _print(console, name, check_graph(name, graph, shapes, target=target, build=not job.parse_only, say=say))
    print(f"TensorRT-RTX takes every graph, for {target}. What the engines answer, and how fast, needs the GPU.")


def _print(console: Console, name: str, done: CheckedGraph) -> None:
    size = "parsed" if done.megabytes is None else f"engine of {done.megabytes:.1f} MB in {done.seconds:.0f} s"
    console.print(f"{name:<18}{done.layers:>6} layers, {size}", soft_wrap=True)


def _teller(console: Console) -> Say:
    """Each step once, in a log as on a terminal."""
    last = ""

    def say(step: str) -> None:
        nonlocal last
        phase = step.split(":")[0] if not console.is_terminal else step
        if phase != last:
            last = phase
            console.print(printable(step if console.is_terminal else phase), soft_wrap=True)

    return say


def _images(folder: Path) -> list[NDArray[np.uint8]]:
    """Up to ``MAX_IMAGES`` RGB pictures, evenly over all.

    Raises:
        UsageError: no picture there that can be read.
    """
    paths = sorted(path for path in (folder.rglob("*") if folder.is_dir() else [folder]) if path.suffix.lower() in _PICTURES)
    chosen = [paths[index] for index in np.linspace(0, len(paths) - 1, min(MAX_IMAGES, len(paths))).astype(int)] if paths else []
    read = [cv2.imread(str(path), cv2.IMREAD_COLOR) for path in chosen]
    found = [np.ascontiguousarray(image[:, :, ::-1], np.uint8) for image in read if image is not None]
    if not found:
        raise UsageError(f"no picture in {folder} can be read: give a folder of pictures of your parts with --images")
    return found


PRECISIONS = ("auto", "fp32", "fp16", "bf16", *BUILDER_PRECISIONS)
