"""The precision of a graph, and the pixel encoder of a vision graph in int8 from a user's own images.

int8 by Q/DQ nodes (ONNX Runtime's static quantiser): they stand in the graph, as a strongly typed engine wants it. Only the pixel encoder is
quantised: what leads to f_p and f_detail and not to f_s.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from agvas_core.contract.errors import BundleError, UsageError
from agvas_core.contract.manifest import Manifest
from agvas_core.contract.preprocess import make_view

__all__ = ["BUILDER_PRECISIONS", "graph_precision", "pixel_encoder_nodes", "quantise_pixel_encoder"]

BUILDER_PRECISIONS = ("tf32", "int8")
"""What can be had of any fp32 graph without exporting it again."""
MIN_IMAGES = 8
_QUANTISED = ("Conv", "ConvTranspose", "MatMul", "Gemm")


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


def pixel_encoder_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that f_p and f_detail need, and f_s does not."""
    outputs = [value.name for value in model.graph.output]
    pixel = _ancestors(model, [name for name in outputs if name in ("f_p", "f_detail")])
    return [node.name for node in model.graph.node if node.name in pixel - _ancestors(model, ["f_s"])]


def quantise_pixel_encoder(graph: Path, manifest: Manifest, images: Sequence[NDArray[np.uint8]], out: Path) -> int:
    """Writes the vision graph with its pixel encoder in int8; returns how many nodes became int8.

    Args:
        images: RGB frames [H, W, 3] of the user's parts, whose ranges the scales are taken from.

    Raises:
        UsageError: too few images.
        BundleError: there is nothing to quantise.
    """
    if len(images) < MIN_IMAGES:
        raise UsageError(
            f"{len(images)} images for int8; its ranges need {MIN_IMAGES} at least: give more pictures of your parts with --images"
        )
    model = onnx.load(str(graph))
    wanted = set(pixel_encoder_nodes(model))
    weights = {tensor.name for tensor in model.graph.initializer}
    # Products with a weight only: a product of two activations (attention, the prior's statistics) has no range that holds for all images.
    nodes = [
        node.name
        for node in model.graph.node
        if node.op_type in _QUANTISED and node.name in wanted and any(name in weights for name in node.input[1:2])
    ]
    if not nodes:
        raise BundleError(f"{graph} has no layer that int8 would be for: choose another precision")
    quantize_static(
        str(graph),
        str(out),
        _Views(manifest, images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=nodes,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},  # as TensorRT wants it
    )
    return len(nodes)


class _Views(CalibrationDataReader):  # type: ignore[misc]
    """The two views of each image, one after the other."""

    def __init__(self, manifest: Manifest, images: Sequence[NDArray[np.uint8]]) -> None:
        self._views: Iterator[dict[str, Any]] = (
            {
                "semantic_image": make_view(manifest.semantic_view, image).pixels[None],
                "pixel_image": make_view(manifest.pixel_view, image).pixels[None],
            }
            for image in images
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._views, None)


def _ancestors(model: onnx.ModelProto, values: list[str]) -> set[str]:
    """Names of the nodes that make these values."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    found: set[str] = set()
    waiting = list(values)
    while waiting:
        node = made_by.get(waiting.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            waiting += node.input
    return found
