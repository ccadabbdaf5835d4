"""One ONNX graph to one engine.

The network is strongly typed: every precision stands in the graph, as casts or Q/DQ, and the builder changes none. So the same code runs
on TensorRT 10.3 to 11, which dropped the other way, and on TensorRT-RTX.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agvas_core.contract.engine import error_logger
from agvas_core.contract.errors import BundleError, SetupError
from agvas_export.trt.shapes import Shapes

__all__ = ["Built", "Options", "build_engine", "parse_graph"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What the builder may do."""

    workspace_mb: int = 1024
    optimization_level: int = 3
    tf32: bool = False
    """Products of float32 matrices with ten bits of mantissa."""
    timing_cache: Path | None = None
    """Kept from build to build; None: none."""
    rtx_target: str | None = None
    """TensorRT-RTX: the architecture to build for, ``SM80`` say, on a machine without it."""


@dataclass(frozen=True)
class Built:
    """An engine's bytes, and what they cost."""

    data: bytes
    seconds: float
    layers: int


def parse_graph(library: Any, logger: Any, graph: Path) -> tuple[Any, Any, Any]:
    """Builder, network and parser of a graph; the parser owns the weights, so it is kept.

    Raises:
        BundleError: TensorRT refuses the graph; says which nodes.
    """
    builder = library.Builder(logger)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):  # from the file, so that weights beside it are found
        errors = [str(parser.get_error(index)) for index in range(min(3, parser.num_errors))]
        raise BundleError(
            f"TensorRT {library.__version__} cannot read {graph}: {'; '.join(errors) or 'no reason given'}: export the bundle again"
        )
    return builder, network, parser


def build_engine(library: Any, graph: Path, shapes: Shapes, options: Options, say: Say = lambda step: None) -> Built:
    """Parses and builds.

    Raises:
        BundleError: the graph is refused, or takes inputs that ``shapes`` does not have.
        SetupError: the builder fails: memory, driver, an architecture that it does not know.
    """
    logger = error_logger(library)
    builder, network, parser = parse_graph(library, logger, graph)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    config.builder_optimization_level = options.optimization_level
    if hasattr(library.BuilderFlag, "TF32"):
        (config.set_flag if options.tf32 else config.clear_flag)(library.BuilderFlag.TF32)
    _aim(library, config, options.rtx_target)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        if name not in shapes:
            raise BundleError(f"{graph} takes {name}, which the manifest does not have: export the bundle again")
        profile.set_shape(name, *shapes[name])
    config.add_optimization_profile(profile)
    cache = _timing_cache(config, options.timing_cache)
    if (monitor := _monitor(library, say)) is not None:
        config.progress_monitor = monitor
    began = time.perf_counter()
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise SetupError(
            f"TensorRT {library.__version__} could not build {graph.name} ({logger.last or 'no reason given'}): close what else uses the GPU, lower "
            f"workspace_mb ({options.workspace_mb}) in the recipe, or update the driver"
        )
    if cache is not None and options.timing_cache is not None:
        options.timing_cache.parent.mkdir(parents=True, exist_ok=True)
        options.timing_cache.write_bytes(memoryview(cache.serialize()))
    del parser
    return Built(bytes(serialized), time.perf_counter() - began, network.num_layers)


def _aim(library: Any, config: Any, target: str | None) -> None:
    if target is None:
        return
    known = getattr(library, "ComputeCapability", None)
    if known is None or not hasattr(known, target):
        raise SetupError(f"TensorRT {library.__version__} cannot build for {target} ahead of time: build on the machine itself")
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(known, target), 0)


def _timing_cache(config: Any, path: Path | None) -> Any:
    if path is None or not hasattr(config, "create_timing_cache"):
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)  # one of another GPU is refused by TensorRT, and made again
    return cache


def _monitor(library: Any, say: Say) -> Any:
    if not hasattr(library, "IProgressMonitor"):
        return None

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        """Tells each phase and how far it is."""

        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            say(f"{phase_name}: {step + 1} of {self.steps.get(phase_name, 0)}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()
