"""A plan to a folder of engines."""

import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.engine import EngineSet, EngineSpec, engine_folder, open_library, parse_version, write_engines
from agvas_core.contract.errors import OutputError, SetupError
from agvas_core.contract.gpu import Gpu
from agvas_core.contract.manifest import sha256_of
from agvas_export.trt.builder import Options, build_engine
from agvas_export.trt.plan import Plan, Step
from agvas_export.trt.quantise import QUANTISED_PRECISIONS, quantise_pixel_encoder

__all__ = ["build_plan", "graph_to_build"]

Say = Callable[[str], None]


def graph_to_build(plan: Plan, step: Step, images: Sequence[NDArray[np.uint8]], scratch: Path, say: Say) -> Path:
    """The graph of a step, or, where the plan quantises it, that one in ``scratch``.

    Raises:
        UsageError: too few images for its ranges.
        BundleError: nothing can be quantised.
    """
    if plan.precision not in QUANTISED_PRECISIONS or step.stage != "vision":
        return step.graph
    say(f"{plan.precision} ranges from the images")
    graph = scratch / f"vision-{plan.precision}.onnx"
    quantise_pixel_encoder(plan.precision, step.graph, plan.manifest, images, graph)
    return graph


def build_plan(
    plan: Plan, gpu: Gpu, store: Path, *, images: Sequence[NDArray[np.uint8]] = (), say: Say = lambda step: None
) -> Path:
    """Builds every engine of the plan and returns their folder in ``store``; the record is written last.

    Args:
        images: of the user's parts; int8 and fp8 take their ranges from them.

    Raises:
        SetupError: TensorRT is missing or too old, or could not build.
        BundleError: TensorRT refuses a graph.
        OutputError: the store cannot be written.
    """
    recipe = plan.recipe
    library = open_library(recipe.flavour)
    if parse_version(library.__version__) < parse_version(recipe.min_version):
        raise SetupError(
            f"target {recipe.name} needs {recipe.flavour} {recipe.min_version}; this is {library.__version__}: update it"
        )
    folder = engine_folder(store, plan.manifest, plan.bundle, gpu.name, recipe.flavour, library.__version__)
    engines: dict[str, EngineSpec] = {}
    with tempfile.TemporaryDirectory(prefix="agvas-trt-") as scratch:
        for step in plan.steps:
            graph = graph_to_build(plan, step, images, Path(scratch), say)
            say(f"building the {step.stage} engine")
            options = Options(
                workspace_mb=recipe.workspace_mb,
                optimization_level=recipe.optimization_level,
                tf32=plan.precision == "tf32",
                timing_cache=folder / "timing.cache",
            )
            built = build_engine(library, graph, step.shapes, options, lambda each, stage=step.stage: say(f"{stage}: {each}"))  # type: ignore[misc]
            path = folder / f"{step.stage}.engine"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_bytes(built.data)
            except OSError as error:
                raise OutputError(f"{path} cannot be written ({error.strerror}): choose another store with -o DIR") from error
            engines[step.stage] = EngineSpec(
                file=path.name,
                sha256=sha256_of(path),
                graph_sha256=sha256_of(step.graph),
                shapes=step.shapes,
                build_s=built.seconds,
            )
    record = EngineSet(
        bundle=plan.manifest.name,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        flavour=recipe.flavour,
        version=library.__version__,
        precision=plan.precision,
        recipe=recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        engines=engines,
    )
    write_engines(folder, record)
    return folder
