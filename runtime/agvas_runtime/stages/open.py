"""Opening the three stages of a bundle, each by the name of its backend.

    stages = open_stages(load_bundle("nano"), lmm="torch")
    stages = open_stages(load_bundle("nano"), lmm="http://127.0.0.1:8000")

A backend is a line in ``BACKENDS`` and a function ``open_stage(bundle, settings)`` in a module of its own, which is imported when it is
asked for and not before: that module may need torch, vLLM or TensorRT. Whoever must not import the runtime finds both functions by
their entry points (group ``agvas.backends``).
"""

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

from agvas_core.contract.command_line import missing_package
from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import nearest
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.protocol import DecoderStage, LmmStage, ReferenceStage, VisionStage
from agvas_runtime.stages.settings import StageSettings

__all__ = [
    "BACKENDS",
    "DEFAULT_BACKEND",
    "REFERENCE_BACKENDS",
    "Stages",
    "backend_names",
    "open_references",
    "open_stages",
]

DEFAULT_BACKEND: Final = "onnx"

BACKENDS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "vision": {
            "onnx": "agvas_runtime.stages.onnx_vision",
            "ort-cuda": "agvas_runtime.stages.onnx_vision:open_cuda",
            "trt": "agvas_runtime.stages.trt.stage:open_vision",
            "torch": "agvas_runtime.stages.reference.vision",
            "torch-cuda": "agvas_runtime.stages.torch_cuda.stages:open_vision",
            "torch-cuda-fp8": "agvas_runtime.stages.torch_cuda.stages:open_vision_fp8",
        },
        "lmm": {
            "onnx": "agvas_runtime.stages.onnx_lmm",
            "ort-cuda": "agvas_runtime.stages.onnx_lmm:open_cuda",
            "trt": "agvas_runtime.stages.trt.stage:open_lmm",
            "torch": "agvas_runtime.stages.reference.lmm",
            "torch-cuda": "agvas_runtime.stages.torch_cuda.stages:open_lmm",
            "torch-cuda-fp8": "agvas_runtime.stages.torch_cuda.stages:open_lmm_fp8",
            "vllm": "agvas_runtime.stages.vllm_lmm",
            "vllm-direct": "agvas_runtime.stages.vllm_direct_lmm",
            "http": "agvas_runtime.stages.http_lmm",
        },
        "decoder": {
            "onnx": "agvas_runtime.stages.onnx_decoder",
            "ort-cuda": "agvas_runtime.stages.onnx_decoder:open_cuda",
            "trt": "agvas_runtime.stages.trt.stage:open_decoder",
            "torch": "agvas_runtime.stages.reference.decoder",
            "torch-cuda": "agvas_runtime.stages.torch_cuda.stages:open_decoder",
            "torch-cuda-fp8": "agvas_runtime.stages.torch_cuda.stages:open_decoder_fp8",
        },
    }
)
"""Stage -> backend -> the module whose ``open_stage`` opens it, or the function named after the colon."""


REFERENCE_BACKENDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "onnx": "agvas_runtime.stages.onnx_references",
        "ort-cuda": "agvas_runtime.stages.onnx_references:open_cuda",
        "trt": "agvas_runtime.stages.trt.references",
        "torch": "agvas_runtime.stages.reference.distances",
        "torch-cuda": "agvas_runtime.stages.reference.distances:open_cuda",
    }
)
"""Of the reference stage, which a bundle may lack: as in ``BACKENDS``."""


class Stages(NamedTuple):
    """The three stages of a bundle."""

    vision: VisionStage
    lmm: LmmStage
    decoder: DecoderStage


def backend_names(stage: str) -> tuple[str, ...]:
    """The backends of ``vision``, ``lmm`` or ``decoder``; whether what they need is installed shows when they are opened."""
    return tuple(BACKENDS[stage])


def open_stages(
    bundle: Bundle,
    *,
    vision: str = DEFAULT_BACKEND,
    lmm: str = DEFAULT_BACKEND,
    decoder: str = DEFAULT_BACKEND,
    settings: StageSettings | None = None,
) -> Stages:
    """Opens each stage on the backend named for it; ``lmm`` may be the address of a server (``http://host:port``), too.

    Raises:
        UsageError: no such backend.
        SetupError: a package that is not installed, a server that does not answer, weights that are not there.
        BundleError: what the backend reads does not belong to this bundle.
    """
    settings = settings or StageSettings()
    return Stages(
        cast(VisionStage, _open("vision", vision, bundle, settings)),
        cast(LmmStage, _open("lmm", lmm, bundle, settings)),
        cast(DecoderStage, _open("decoder", decoder, bundle, settings)),
    )


def open_references(bundle: Bundle, backend: str = DEFAULT_BACKEND, settings: StageSettings | None = None) -> ReferenceStage:
    """Opens the reference stage.

    Raises:
        BundleError: the bundle has no references graph.
        UsageError, SetupError: as ``open_stages``.
    """
    return cast(ReferenceStage, _open("references", backend, bundle, settings or StageSettings()))


def _open(stage: str, backend: str, bundle: Bundle, settings: StageSettings) -> Any:
    backends = REFERENCE_BACKENDS if stage == "references" else BACKENDS[stage]
    if "://" in backend and "http" in backends:
        backend, settings = "http", replace(settings, lmm_url=backend)
    if backend not in backends:
        meant = f"did you mean {near}? " if (near := nearest(backend, backends)) else ""
        address = ", or the address of a server" if "http" in backends else ""
        raise UsageError(f"{stage} is {backend!r}: {meant}it can be {', '.join(backends)}{address}")
    try:
        place, _, function = backends[backend].partition(":")
        module = import_module(place)
    except ModuleNotFoundError as error:
        raise missing_package(error) or error from error
    return getattr(module, function or "open_stage")(bundle, settings)
