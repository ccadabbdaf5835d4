"""The stages on OpenVINO, on the CPU: ``openvino`` in float32, ``openvino-bf16`` in bfloat16 where the CPU computes in it.

Nothing is rounded unless it is asked for: OpenVINO itself would take bfloat16 on a CPU with AMX.
"""

import threading
from functools import partial
from typing import Any, Final

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from agvas_core.contract.errors import BundleError, ImageError, SetupError
from agvas_core.contract.manifest import GraphSpec
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.onnx import OnnxDecoder, OnnxHead, OnnxLmm, OnnxReferences, OnnxVision, OpenGraph
from agvas_runtime.stages.open import StageSettings

__all__ = [
    "OpenVinoGraph",
    "open_decoder",
    "open_decoder_bf16",
    "open_head",
    "open_lmm",
    "open_lmm_bf16",
    "open_references",
    "open_references_bf16",
    "open_vision",
    "open_vision_bf16",
]


class OpenVinoGraph:
    """One graph of a bundle, as ``stages.onnx.Graph``; each thread has an inference request of its own.

    Args:
        threads: CPU threads; all cores where None.
        precision: what it computes in: ``f32``, or ``bf16``.

    Raises:
        SetupError: this CPU does not compute in that precision.
        BundleError: not a graph, or not the one that the manifest describes.
    """

    def __init__(self, bundle: Bundle, spec: GraphSpec, threads: int | None, precision: str = "f32") -> None:
        core = ov.Core()
        able = list(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        if precision == "bf16" and "BF16" not in able:
            raise SetupError(f"OpenVINO computes in {', '.join(able)} on this CPU, and not in BF16: choose the backend openvino")
        self.path = bundle.folder / spec.file
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self.compiled = core.compile_model(str(self.path), "CPU", settings)
        except RuntimeError as error:
            raise BundleError(
                f"{self.path} cannot be opened by openvino {ov.__version__} ({' '.join(str(error).split())[:300]}): "
                "choose the backend onnx, or export the bundle again"
            ) from error
        self.input_names = [tensor.name for tensor in spec.inputs]
        self.output_names = [tensor.name for tensor in spec.outputs]
        there = {port.get_any_name() for port in (*self.compiled.inputs, *self.compiled.outputs)}
        if there != {*self.input_names, *self.output_names}:
            raise BundleError(
                f"{self.path} has the tensors {sorted(there)}, the manifest {sorted((*self.input_names, *self.output_names))}; the two are "
                "from different exports: export the bundle again"
            )
        self._own = threading.local()

    def run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name.

        Raises:
            ImageError: the graph fails on these inputs.
        """
        if not hasattr(self._own, "request"):
            self._own.request = self.compiled.create_infer_request()
        try:
            found = self._own.request.infer({name: np.asarray(value, order="C") for name, value in inputs.items()})
        except RuntimeError as error:
            raise ImageError(
                f"{self.path.name} failed on this image ({' '.join(str(error).split())[:300]}): try a smaller image, or free memory"
            ) from error
        return {name: np.array(found[name]) for name in self.output_names}


in_bfloat16: Final[OpenGraph] = partial(OpenVinoGraph, precision="bf16")


def open_vision(bundle: Bundle, settings: StageSettings) -> OnnxVision:
    """Raises SetupError or BundleError, as ``OpenVinoGraph``; so do the others."""
    return OnnxVision(bundle, threads=settings.threads, open_graph=OpenVinoGraph)


def open_lmm(bundle: Bundle, settings: StageSettings) -> OnnxLmm:
    """The language model."""
    return OnnxLmm(bundle, threads=settings.threads, open_graph=OpenVinoGraph)


def open_decoder(bundle: Bundle, settings: StageSettings) -> OnnxDecoder:
    """The decoder."""
    return OnnxDecoder(bundle, threads=settings.threads, open_graph=OpenVinoGraph)


def open_references(bundle: Bundle, settings: StageSettings) -> OnnxReferences:
    """Distances to good images."""
    return OnnxReferences(bundle, threads=settings.threads, open_graph=OpenVinoGraph)


def open_head(bundle: Bundle, settings: StageSettings) -> OnnxHead:
    """A product's fitted head."""
    return OnnxHead(bundle, threads=settings.threads, open_graph=OpenVinoGraph)


def open_vision_bf16(bundle: Bundle, settings: StageSettings) -> OnnxVision:
    """Views to features in bfloat16."""
    return OnnxVision(bundle, threads=settings.threads, open_graph=in_bfloat16)


def open_lmm_bf16(bundle: Bundle, settings: StageSettings) -> OnnxLmm:
    """The language model in bfloat16."""
    return OnnxLmm(bundle, threads=settings.threads, open_graph=in_bfloat16)


def open_decoder_bf16(bundle: Bundle, settings: StageSettings) -> OnnxDecoder:
    """The decoder in bfloat16."""
    return OnnxDecoder(bundle, threads=settings.threads, open_graph=in_bfloat16)


def open_references_bf16(bundle: Bundle, settings: StageSettings) -> OnnxReferences:
    """Distances to good images in bfloat16."""
    return OnnxReferences(bundle, threads=settings.threads, open_graph=in_bfloat16)
