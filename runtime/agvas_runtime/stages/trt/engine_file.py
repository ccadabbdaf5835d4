"""Engines in the store, and one of them opened: found by GPU, TensorRT and graph, or refused with the command that builds it."""

from pathlib import Path
from typing import Any

import numpy as np

from agvas_core.contract.engine import (
    DEFAULT_STORE,
    Flavour,
    engine_folder,
    engine_sets,
    installed_flavours,
    open_library,
    read_engines,
    refuse_foreign,
)
from agvas_core.contract.errors import SetupError
from agvas_core.contract.manifest import GraphSpec
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.trt.cuda import Cuda

__all__ = ["find_engine", "open_engine", "refuse_other_graph", "remedy"]


def find_engine(bundle: Bundle, stage: str, spec: GraphSpec, cuda: Cuda, store: Path | None) -> tuple[Any, Path]:
    """TensorRT, or TensorRT-RTX where that is what there are engines for, and the file of the engine.

    Args:
        store: where engines lie; ``DEFAULT_STORE`` where None.

    Raises:
        SetupError: TensorRT is not installed; no engine for this GPU, this TensorRT and this graph, or one that was changed.
    """
    store = store or DEFAULT_STORE
    libraries: dict[Flavour, Any] = {flavour: open_library(flavour) for flavour in installed_flavours() or ("tensorrt",)}
    for flavour, library in libraries.items():
        version = str(library.__version__)
        folder = engine_folder(store, bundle.manifest, bundle.folder, cuda.name, flavour, version)
        if folder.is_dir():
            engines = read_engines(folder)
            graph = bundle.folder / spec.file
            return library, refuse_foreign(folder, engines, stage, graph, gpu=cuda.name, flavour=flavour, version=version)
    here = " and ".join(f"{flavour} {library.__version__}" for flavour, library in libraries.items())
    others = [read_engines(folder) for folder in engine_sets(store, bundle.manifest, bundle.folder)]
    for_others = ", ".join(f"{each.gpu} with {each.flavour} {each.version}" for each in others)
    raise SetupError(
        f"{store} has no engines of {bundle.identity} for {cuda.name} with {here}"
        + (f" (it has some for {for_others}, which cannot run here)" if others else "")
        + f": {remedy(bundle)}"
    )


def remedy(bundle: Bundle) -> str:
    """What builds engines again, for the end of a message."""
    return f"build them here with agvas-export trt {bundle.folder}"


def open_engine(cuda: Cuda, library: Any, logger: Any, file: Path, stage: str, again: str) -> tuple[Any, Any]:
    """TensorRT's runtime, which must live as long, and the engine, its weights on the GPU.

    Raises:
        SetupError: TensorRT refuses it, or the GPU has no room for its weights.
    """
    size = file.stat().st_size
    runtime = library.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(file.read_bytes())
    if engine is not None:
        return runtime, engine
    free, _ = cuda.memory()
    if free < size:
        raise SetupError(
            f"the {stage} engine has {size / 1e6:.1f} MB of weights; {cuda.memory_in_words()}: end what else uses the GPU, or build the "
            "engines in a lower precision"
        )
    raise SetupError(f"TensorRT {library.__version__} cannot open {file} ({logger.last or 'no reason given'}): {again}")


def refuse_other_graph(library: Any, engine: Any, stage: str, spec: GraphSpec, again: str) -> None:
    """Raises SetupError where names or types of the tensors are not those of the manifest."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = {name for name in names if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT}
    if (inputs, set(names) - inputs) != ({one.name for one in spec.inputs}, {one.name for one in spec.outputs}):
        raise SetupError(f"the {stage} engine has the tensors {', '.join(names)}, the manifest others: {again}")
    for one in (*spec.inputs, *spec.outputs):
        kind = np.dtype(library.nptype(engine.get_tensor_dtype(one.name)))
        if kind != np.dtype(one.dtype):
            raise SetupError(f"{one.name} of the {stage} engine is {kind}, the manifest says {one.dtype}: {again}")
