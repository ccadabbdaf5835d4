"""Reference distances on ONNX Runtime."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.onnx import CPU, CUDA, OnnxGraph
from agvas_runtime.stages.open import StageSettings
from agvas_runtime.stages.protocol import Features, ReferenceDistances
from agvas_runtime.stages.reference_inputs import empty_bank, reference_inputs, references_of

__all__ = ["OnnxReferences", "open_cuda", "open_stage"]

Float = NDArray[np.float32]


class OnnxReferences:
    """``ReferenceStage`` on ONNX Runtime."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, providers: Sequence[str] = CPU) -> None:
        self.spec = references_of(bundle)
        self.graph = OnnxGraph(bundle, self.spec, threads, providers)

    def embed(self, image: NDArray[np.uint8], features: Features | None = None) -> Float:
        """As of ``ReferenceStage``."""
        return self(image, empty_bank(self.spec), features).embedding

    def __call__(
        self, image: NDArray[np.uint8], bank: Float, features: Features | None = None, *, colour_weight: float = 1.0
    ) -> ReferenceDistances:
        """As of ``ReferenceStage``."""
        found = self.graph.run(reference_inputs(self.spec, image, bank, features, colour_weight))
        return ReferenceDistances(found["embedding"], found["deep"], found["joint"])


def open_stage(bundle: Bundle, settings: StageSettings) -> OnnxReferences:
    """Raises BundleError where the bundle has no references graph; SetupError or BundleError, as ``OnnxGraph``."""
    return OnnxReferences(bundle, threads=settings.threads)


def open_cuda(bundle: Bundle, settings: StageSettings) -> OnnxReferences:
    """On an NVIDIA GPU or not at all; raises as ``open_stage``."""
    return OnnxReferences(bundle, threads=settings.threads, providers=CUDA)
