"""A bfloat16 graph as float32, for machines whose engine has no bfloat16: the same operations on the same rounded weights.

What it does not show is the rounding between the operations; only an engine that computes in bfloat16 does.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, TensorProto, numpy_helper

__all__ = ["write_twin"]


def write_twin(path: Path, folder: Path) -> Path:
    """Writes the graph in ``path`` with float32 for bfloat16 into ``folder``."""
    model = onnx.load(path)
    for tensor in _tensors(model.graph):
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    del model.graph.value_info[:]
    out = folder / path.name
    onnx.save(model, out, save_as_external_data=model.ByteSize() > 1 << 30, location=f"{path.name}.data")
    return out


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
