"""Joint 3 on ONNX Runtime: anchor states and pixel features to mask logits."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.onnx_graph import CPU, CUDA, OnnxGraph
from agvas_runtime.stages.protocol import Features
from agvas_runtime.stages.settings import StageSettings

__all__ = ["OnnxDecoder", "open_decoder_cuda", "open_decoder"]

Float = NDArray[np.float32]


class OnnxDecoder:
    """Joint 3: anchor states and pixel features to mask logits."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, providers: Sequence[str] = CPU) -> None:
        self.graph = OnnxGraph(bundle, bundle.manifest.decoder, threads, providers)

    def __call__(self, anchor_states: Float, features: Features) -> Float:
        """Logits float32 [B, 3, Hm, Wm] in anchor order, covering the whole pixel view."""
        given = {"anchor_states": anchor_states, **features.decoder}
        outputs = self.graph.run({name: given[name] for name in self.graph.input_names})
        return np.asarray(outputs["logits"], np.float32)


def open_decoder(bundle: Bundle, settings: StageSettings) -> OnnxDecoder:
    """Raises SetupError or BundleError, as ``OnnxGraph``."""
    return OnnxDecoder(bundle, threads=settings.threads)


def open_decoder_cuda(bundle: Bundle, settings: StageSettings) -> OnnxDecoder:
    """On an NVIDIA GPU or not at all; raises as ``open_decoder``."""
    return OnnxDecoder(bundle, threads=settings.threads, providers=CUDA)
