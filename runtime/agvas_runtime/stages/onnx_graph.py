"""One ONNX graph on ONNX Runtime.

A session may be run from several threads at once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from agvas_core.contract.errors import BundleError, ImageError, SetupError
from agvas_core.contract.manifest import GraphSpec, TensorSpec
from agvas_runtime.bundle import Bundle

__all__ = ["CPU", "CUDA", "OnnxGraph"]

CPU = ("CPUExecutionProvider",)
CUDA = ("CUDAExecutionProvider",)
_UNREADABLE = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)
_FAILED = (ort_state.Fail, ort_state.RuntimeException)  # not InvalidArgument: a wrong shape or dtype is a bug of ours


class OnnxGraph:
    """One graph of a bundle, opened and compared with the manifest.

    Args:
        threads: CPU threads; all cores where None.
        providers: ONNX Runtime's execution providers, the preferred one first.

    Raises:
        SetupError: this onnxruntime lacks a provider.
        BundleError: not a graph, or not the one that the manifest describes.
    """

    def __init__(self, bundle: Bundle, spec: GraphSpec, threads: int | None, providers: Sequence[str]) -> None:
        if missing := sorted(set(providers) - set(ort.get_available_providers())):
            raise SetupError(
                f"this onnxruntime has no {missing[0]} (it has {', '.join(ort.get_available_providers())}): pip install 'agvas[gpu]'"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 4  # nothing: warnings are for exporters, and what fails is in our own error
        options.intra_op_num_threads = threads or 0  # 0: as many as there are cores
        options.inter_op_num_threads = 1
        # Three sessions take turns: threads that keep spinning after a run would slow the next one down.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.path = bundle.folder / spec.file
        try:
            self.session = ort.InferenceSession(str(self.path), options, providers=list(providers))
        except _UNREADABLE as error:
            raise BundleError(
                f"{self.path} cannot be opened by onnxruntime {ort.__version__} ({error}): export the bundle again"
            ) from error
        # ONNX Runtime goes on without a provider that it cannot start, on the CPU; who asked for a GPU would never learn of it.
        if lost := [name for name in providers if name not in self.session.get_providers()]:
            raise SetupError(
                f"onnxruntime {ort.__version__} cannot start {lost[0]} and would run {self.path.name} on the CPU: install the CUDA and cuDNN that "
                "it was built for, and a driver, or choose the backend onnx"
            )
        self._check("input", spec.inputs, self.session.get_inputs())
        self._check("output", spec.outputs, self.session.get_outputs())
        self.input_names = [tensor.name for tensor in spec.inputs]
        self.output_names = [tensor.name for tensor in spec.outputs]

    def run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name.

        Raises:
            ImageError: the graph fails on these inputs.
        """
        try:
            outputs = self.session.run(self.output_names, {name: np.asarray(value) for name, value in inputs.items()})
        except _FAILED as error:
            raise ImageError(
                f"{self.path.name} failed on this image ({' '.join(str(error).split())}): try a smaller image, or free memory"
            ) from error
        return dict(zip(self.output_names, outputs, strict=True))

    def _check(self, kind: str, specs: tuple[TensorSpec, ...], nodes: list[Any]) -> None:
        """A graph may be freer than its manifest (a name where that has a number), never other or narrower."""
        actual = {node.name: node for node in nodes}
        if actual.keys() != {spec.name for spec in specs}:
            raise self._differs(f"{kind}s", sorted(actual), sorted(spec.name for spec in specs))
        for spec in specs:
            node = actual[spec.name]
            if node.type != _ORT_TYPES[spec.dtype]:
                raise self._differs(spec.name, node.type, _ORT_TYPES[spec.dtype])
            fits = len(node.shape) == len(spec.shape) and all(
                there == said or not isinstance(there, int) for there, said in zip(node.shape, spec.shape, strict=True)
            )
            if not fits:
                raise self._differs(spec.name, list(node.shape), list(spec.shape))

    def _differs(self, what: str, graph: object, manifest: object) -> BundleError:
        return BundleError(
            f"{self.path}: {what} in the graph: {graph}, in the manifest: {manifest}; the two are from different exports: "
            "export the bundle again"
        )


_ORT_TYPES = {"uint8": "tensor(uint8)", "int64": "tensor(int64)", "float16": "tensor(float16)", "float32": "tensor(float)"}
