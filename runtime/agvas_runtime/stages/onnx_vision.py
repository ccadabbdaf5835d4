"""Joint 1 on ONNX Runtime: views to features."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.onnx_graph import CPU, CUDA, OnnxGraph
from agvas_runtime.stages.protocol import Features
from agvas_runtime.stages.settings import StageSettings

__all__ = ["OnnxVision", "open_vision_cuda", "open_vision"]


class OnnxVision:
    """Joint 1: views to features."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, providers: Sequence[str] = CPU) -> None:
        self.graph = OnnxGraph(bundle, bundle.manifest.vision, threads, providers)

    def __call__(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Features:
        """uint8 RGB [B, Hs, Ws, 3] and [B, Hp, Wp, 3] to features."""
        outputs = self.graph.run({"semantic_image": semantic_image, "pixel_image": pixel_image})
        return Features(outputs.pop("f_s"), outputs.pop("f_align"), outputs)


def open_vision(bundle: Bundle, settings: StageSettings) -> OnnxVision:
    """Raises SetupError or BundleError, as ``OnnxGraph``."""
    return OnnxVision(bundle, threads=settings.threads)


def open_vision_cuda(bundle: Bundle, settings: StageSettings) -> OnnxVision:
    """On an NVIDIA GPU or not at all; raises as ``open_vision``."""
    return OnnxVision(bundle, threads=settings.threads, providers=CUDA)
