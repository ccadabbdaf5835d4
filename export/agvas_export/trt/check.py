"""``agvas-export trt --check``: every graph is parsed and built ahead of time with TensorRT-RTX, on a machine without a GPU.

It shows that TensorRT takes the graphs: their operators, their open shapes, their types. It does not show that the engines give the
model's answer, nor how fast they are: for that a GPU is needed, and ``agvas-export check --backend trt`` on it.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.engine import open_library
from agvas_export.trt.build import graph_to_build
from agvas_export.trt.builder import Options, build_engine, parse_graph
from agvas_export.trt.plan import Plan
from agvas_export.trt.shapes import Shapes

__all__ = ["DEFAULT_TARGET", "CheckedGraph", "check_graph", "check_plan"]

DEFAULT_TARGET = "SM80"
WORKSPACE_MB = 8192  # of a GPU that is not here; SAM ViT-B asks for 1.4 GB
Say = Callable[[str], None]


@dataclass(frozen=True)
class CheckedGraph:
    """One graph that TensorRT-RTX took."""

    name: str
    layers: int
    megabytes: float | None
    """Of the engine; None where it was parsed only."""
    seconds: float


def check_plan(
    plan: Plan,
    *,
    images: Sequence[NDArray[np.uint8]] = (),
    target: str = DEFAULT_TARGET,
    build: bool = True,
    say: Say = lambda step: None,
) -> Iterator[CheckedGraph]:
    """Checks every graph of a plan, in order.

    Args:
        images: for the ranges of int8 and fp8.

    Raises:
        UsageError: too few images for them.
        SetupError: TensorRT-RTX is not installed, or could not build.
        BundleError: it refuses a graph.
    """
    with tempfile.TemporaryDirectory(prefix="agvas-trt-") as scratch:
        for step in plan.steps:
            graph = graph_to_build(plan, step, images, Path(scratch), say)
            say(f"{'building' if build else 'parsing'} {step.stage}")
            yield check_graph(step.stage, graph, step.shapes, target=target, build=build, say=say)


def check_graph(
    name: str, graph: Path, shapes: Shapes, *, target: str = DEFAULT_TARGET, build: bool = True, say: Say = lambda step: None
) -> CheckedGraph:
    """Parses one graph and, by default, builds it for ``target``; raises as ``check_plan``."""
    library = open_library("tensorrt-rtx")
    if not build:
        _, network, _ = parse_graph(library, library.Logger(library.Logger.Severity.ERROR), graph)
        return CheckedGraph(name, network.num_layers, None, 0.0)
    built = build_engine(library, graph, shapes, Options(rtx_target=target, workspace_mb=WORKSPACE_MB), say)
    return CheckedGraph(name, built.layers, len(built.data) / 1e6, built.seconds)
