"""The pixel encoder of a vision graph in int8 or float8, its ranges from a user's own images.

By Q/DQ nodes: they stand in the graph, as a strongly typed engine wants it. Only the pixel encoder is quantised, what leads to f_p and f_detail
and not to f_s, and of it products with a weight: a product of two activations (attention, the prior's statistics) has no range that holds
for all images. Layers that see pixels stay as they are: nano's prior lives of small differences between them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from agvas_core.contract.errors import BundleError, UsageError
from agvas_core.contract.manifest import Manifest
from agvas_core.contract.preprocess import make_view

__all__ = ["QUANTISED_PRECISIONS", "pixel_encoder_nodes", "quantise_pixel_encoder"]

QUANTISED_PRECISIONS: Final = ("int8", "fp8")
MIN_IMAGES: Final = 8
_PIXEL_CHANNELS: Final = 3
_LAYERS: Final = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_HIGHEST: Final = 448.0  # of float8 E4M3
_LEAST_OPSET: Final = 19  # the first whose QuantizeLinear knows float8

Rgb = NDArray[np.uint8]


def pixel_encoder_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that f_p and f_detail need, and f_s does not."""
    outputs = [value.name for value in model.graph.output]
    pixel = _ancestors(model, [name for name in outputs if name in ("f_p", "f_detail")])
    return [node.name for node in model.graph.node if node.name in pixel - _ancestors(model, ["f_s"])]


def quantise_pixel_encoder(precision: str, graph: Path, manifest: Manifest, images: Sequence[Rgb], out: Path) -> int:
    """Writes the vision graph with its pixel encoder in ``precision``; returns how many layers were quantised.

    Args:
        precision: ``int8``: a scale for each channel of a weight. ``fp8`` (E4M3, compute capability 8.9 or later): one for each tensor.
        images: RGB frames [H, W, 3] of the user's parts, whose ranges the scales are taken from.

    Raises:
        UsageError: too few images, or no such precision.
        BundleError: nothing can be quantised.
    """
    if precision not in QUANTISED_PRECISIONS:
        raise UsageError(f"{precision!r} is no quantised precision: they are {', '.join(QUANTISED_PRECISIONS)}")
    if len(images) < MIN_IMAGES:
        raise UsageError(
            f"{len(images)} images for {precision}; its ranges need {MIN_IMAGES} at least: give more pictures of your parts with --images"
        )
    model = onnx.load(str(graph))
    wanted = set(pixel_encoder_nodes(model))
    inputs = {tensor.name: _input_channels(tensor) for tensor in model.graph.initializer}
    layers = [
        node
        for node in model.graph.node
        if node.op_type in _LAYERS
        and node.name in wanted
        and any(inputs.get(name, 0) > _PIXEL_CHANNELS for name in node.input[1:2])
    ]
    if not layers:
        raise BundleError(f"{graph} has no layer that {precision} would be for: choose another precision")
    views = _Views(manifest, images)
    if precision == "fp8":
        _to_float8(model, layers, views, out)
    else:
        quantize_static(
            str(graph),
            str(out),
            views,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=[node.name for node in layers],
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},  # as TensorRT wants it
        )
    return len(layers)


def _to_float8(model: onnx.ModelProto, layers: list[onnx.NodeProto], views: "_Views", out: Path) -> None:
    """ONNX Runtime's own quantiser takes float8 scales from the spread of the values, which cuts off what nano's features live of; these are
    the largest value seen over the largest that float8 has."""
    (opset,) = (each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if opset < _LEAST_OPSET:
        raise BundleError(f"the vision graph has opset {opset}, and float8 needs {_LEAST_OPSET}: export the bundle again")
    quantised_names = {node.name for node in layers}
    entering = list(dict.fromkeys(node.input[0] for node in layers))
    peaks = _peaks(model, entering, views)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in entering:
        scale, zero = _scale(model, name, _step(peaks[name]))
        quantised, back = f"{name}_float8", f"{name}_from_float8"
        nodes = (
            helper.make_node("QuantizeLinear", [name, scale, zero], [quantised], name=quantised),
            helper.make_node("DequantizeLinear", [quantised, scale, zero], [back], name=back),
        )
        at = min(index for index, node in enumerate(model.graph.node) if node.name in quantised_names and node.input[0] == name)
        for offset, node in enumerate(nodes):
            model.graph.node.insert(at + offset, node)
    for node in [each for each in model.graph.node if each.name in quantised_names]:
        node.input[0] = f"{node.input[0]}_from_float8"
        weight = node.input[1]
        back = f"{weight}_from_float8"
        if weight in stored:
            values = numpy_helper.to_array(stored.pop(weight))
            step = _step(float(np.abs(values).max()))
            scale, zero = _scale(model, weight, step)
            small = (values / step).astype(ml_dtypes.float8_e4m3fn)
            model.graph.initializer.append(numpy_helper.from_array(small, f"{weight}_float8"))
            model.graph.node.insert(0, helper.make_node("DequantizeLinear", [f"{weight}_float8", scale, zero], [back], name=back))
        node.input[1] = back
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.checker.check_model(model)
    onnx.save(model, str(out))


def _step(peak: float) -> np.float32:
    """The scale of a tensor whose largest value is ``peak``."""
    return np.float32(max(peak, 1e-12) / _HIGHEST)


def _scale(model: onnx.ModelProto, name: str, step: np.float32) -> tuple[str, str]:
    """Adds the scale of a tensor, and its zero point; their names."""
    scale, zero = f"{name}_float8_scale", f"{name}_float8_zero"
    model.graph.initializer.append(numpy_helper.from_array(np.array(step), scale))
    model.graph.initializer.append(helper.make_tensor(zero, TensorProto.FLOAT8E4M3FN, [], [0.0]))
    return scale, zero


def _peaks(model: onnx.ModelProto, names: list[str], views: "_Views") -> dict[str, float]:
    """The largest absolute value of each tensor over all views."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    known = {value.name for value in probed.graph.output}
    probed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    session = onnxruntime.InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict.fromkeys(names, 0.0)
    while (given := views.get_next()) is not None:
        for name, values in zip(names, session.run(names, given), strict=True):
            found[name] = max(found[name], float(np.abs(values).max()))
    return found


class _Views(CalibrationDataReader):  # type: ignore[misc]
    """The two views of each image, one after the other."""

    def __init__(self, manifest: Manifest, images: Sequence[Rgb]) -> None:
        self._views: Iterator[dict[str, Any]] = (
            {
                "semantic_image": make_view(manifest.semantic_view, image).pixels[None],
                "pixel_image": make_view(manifest.pixel_view, image).pixels[None],
            }
            for image in images
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._views, None)


def _input_channels(weight: TensorProto) -> int:
    """Of one filter of a convolution [out, in, ...]; of a product [in, out] its rows."""
    if len(weight.dims) < 2:
        return 0
    return int(weight.dims[1] if len(weight.dims) > 2 else weight.dims[0])


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
