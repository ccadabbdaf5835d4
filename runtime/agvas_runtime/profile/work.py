"""How much work a frame is: FLOP and bytes of each stage's ONNX graph, counted on the graph as it runs, not estimated.

The rule. The bundle's graphs run once on this very frame, on the CPU, with all of ONNX Runtime's optimisations off, so that each node of
the export stands for itself; ONNX Runtime tells the shapes that each node saw. FLOP are twice the multiply-adds of matrix products and
convolutions, and nothing else counts. Bytes are the weights (once per call), and the inputs and outputs of the graph: what passes between
two nodes may stay in a cache, so a floor leaves it out. All scales and tiles of the frame are in it.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from agvas_runtime.pipeline.references import open_references
from agvas_runtime.pipeline.scorer import Clock, Scorer
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.profile.record import Machine, Quantiles, StageWork
from agvas_runtime.stages.onnx import OnnxDecoder, OnnxGraph, OnnxLmm, OnnxReferences, OnnxVision

__all__ = ["MAX_COUNTED_BYTES", "count_work", "node_flop", "recorded", "with_floors"]

MAX_COUNTED_BYTES = 4 << 30  # of graphs: beyond it, running them on a CPU takes minutes

Shapes = Sequence[Sequence[int]]

_CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
"""Operator -> which input is its weight, [out, in / groups, kernel...]."""
_PRODUCTS = ("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm", "MatMulNBits")


class Recorder:
    """Stands in for a graph's session, and keeps what it was asked."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.calls: list[tuple[list[str], dict[str, NDArray[Any]]]] = []
        self.io_bytes = 0

    def run(self, names: list[str], inputs: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = self.session.run(names, inputs)
        self.calls.append((names, inputs))
        self.io_bytes += sum(array.nbytes for array in (*inputs.values(), *outputs))
        return outputs


@contextmanager
def recorded(graph: OnnxGraph, session: Any = None) -> Iterator[Recorder]:
    """Inside, every run of ``graph`` is kept; on ``session`` in place of its own where one is given."""
    before = graph.session
    recorder = Recorder(session or before)
    graph.session = recorder
    try:
        yield recorder
    finally:
        graph.session = before


def count_work(segmenter: Segmenter, image: NDArray[np.uint8]) -> dict[str, StageWork]:
    """Work per stage of one RGB frame [H, W, 3], asked and cut up as the segmenter does."""
    bundle, tiles = segmenter.bundle, segmenter.counts.tiles
    vision, lmm, decoder = OnnxVision(bundle), OnnxLmm(bundle), OnnxDecoder(bundle)
    opened = {"vision": vision.graph, "lmm": lmm.graph, "decoder": decoder.graph}
    references = open_references(bundle, vision)
    if references is not None and isinstance(references.cells.stage, OnnxReferences):
        opened["references"] = references.cells.stage.graph
    graphs = {name: graph for name, graph in opened.items() if isinstance(graph, OnnxGraph)}
    shared_view = None if references is None else references.cells.shared_view
    scorer = Scorer(bundle.manifest, vision, lmm, decoder, tiled=segmenter.tiled, tiles=tiles, shared_view=shared_view)
    with tempfile.TemporaryDirectory(prefix="agvas-profile-") as folder, ExitStack() as stack:
        sessions, recorders = dict[str, Any](), dict[str, Recorder]()
        for name, graph in graphs.items():
            sessions[name] = _tracing(graph.path, Path(folder) / name)
            recorders[name] = stack.enter_context(recorded(graph, sessions[name]))
        scored = scorer.score(image, segmenter.prompt, Clock(), segmenter.question.mode)
        if references is not None:
            prepared = references.cells.prepare(image, scored.whole)
            references.cells.compare(prepared, references.bank, references.product.colour_weight)
        found = {}
        for name, session in sessions.items():
            flop, weights = _sum(json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")))
            calls = len(recorders[name].calls)
            found[name] = StageWork(calls=calls, flop=flop, weight_bytes=weights * calls, io_bytes=recorders[name].io_bytes)
        return found


def with_floors(work: dict[str, StageWork], machine: Machine, stages: dict[str, Quantiles]) -> dict[str, StageWork]:
    """The same with floors at the machine's measured rates, and how near each stage's median comes to its own."""
    if machine.matmul_gflops is None or machine.copy_gbs is None:
        return work
    found = {}
    for name, each in work.items():
        compute_ms = each.flop / machine.matmul_gflops / 1e6
        memory_ms = (each.weight_bytes + each.io_bytes) / machine.copy_gbs / 1e6
        floor_ms = max(compute_ms, memory_ms)
        taken = stages[name].p50 if name in stages else 0.0
        found[name] = each.model_copy(
            update={
                "floor_ms": floor_ms,
                "share": floor_ms / taken if taken else None,
                "bound": "compute" if compute_ms >= memory_ms else "memory",
            }
        )
    return found


def node_flop(operator: str, inputs: Shapes, outputs: Shapes) -> int:
    """FLOP of one node; 0 for whatever is neither a matrix product nor a convolution."""
    out = prod(outputs[0]) if outputs else 0
    if operator in _CONVOLUTIONS:
        return 2 * out * prod(inputs[_CONVOLUTIONS[operator]][1:])
    if operator == "ConvTranspose":  # weight [in, out / groups, kernel...]
        return 2 * prod(inputs[0]) * prod(inputs[1][1:])
    if operator in _PRODUCTS:
        # A is [..., M, K], or [K, M] in a Gemm that transposes it; the result is [..., M, N] either way.
        inner = prod(inputs[0]) // max(1, outputs[0][0]) if operator == "Gemm" else inputs[0][-1]
        return 2 * out * inner
    return 0


def _tracing(path: Path, prefix: Path) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _sum(events: list[dict[str, Any]]) -> tuple[float, float]:
    """FLOP of all calls, and bytes of weights of one."""
    flop, weights = 0.0, defaultdict[str, float](float)
    for event in events:
        told = event.get("args", {})
        if event.get("cat") != "Node" or "op_name" not in told:
            continue
        flop += node_flop(told["op_name"], _shapes(told["input_type_shape"]), _shapes(told["output_type_shape"]))
        read = (
            told["output_size"] if told["op_name"] == "Gather" else told["parameter_size"]
        )  # of an embedding, the rows asked for
        weights[told["node_index"]] = float(read)
    return flop, sum(weights.values())


def _shapes(told: list[dict[str, list[int]]]) -> list[list[int]]:
    return [shape for tensor in told for shape in tensor.values()]
