"""The precision of a graph, and the others that can be built from it."""

from pathlib import Path
from typing import Final

import numpy as np
import onnx

from agvas_export.trt.quantise import QUANTISED_PRECISIONS

__all__ = ["BUILDER_PRECISIONS", "FLOAT8_SINCE", "graph_precision"]

BUILDER_PRECISIONS: Final = ("tf32", *QUANTISED_PRECISIONS)
"""What can be had of any fp32 graph without exporting it again."""
FLOAT8_SINCE: Final = "8.9"
"""The first compute capability with float8."""


def graph_precision(graph: Path) -> str:
    """``fp32``, ``fp16`` or ``bf16``: what most of the graph's weights are."""
    model = onnx.load(str(graph), load_external_data=False)
    kinds = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
    sizes: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type in kinds:
            kind = kinds[tensor.data_type]
            sizes[kind] = sizes.get(kind, 0) + int(np.prod(tensor.dims, dtype=np.int64))
    return max(sizes, key=lambda kind: sizes[kind]) if sizes else "fp32"
