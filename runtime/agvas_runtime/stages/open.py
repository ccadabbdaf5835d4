"""Opening the three stages of a bundle, each by the name of its backend.

    stages = open_stages(load_bundle("nano"), lmm="torch")
    stages = open_stages(load_bundle("nano"), lmm="http://127.0.0.1:8000")

A backend is a line in ``BACKENDS``: the function ``open(bundle, settings)`` as ``module:function``. The module is imported when the backend is
asked for and not before, because it may need torch, vLLM or TensorRT.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

from agvas_core.contract.command_line import needs_packages
from agvas_core.contract.defaults import DEFAULT_BACKEND
from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import nearest
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.protocol import DecoderStage, HeadStage, LmmStage, ReferenceStage, VisionStage

__all__ = [
    "BACKENDS",
    "DEFAULT_BACKEND",
    "HEAD_BACKENDS",
    "REFERENCE_BACKENDS",
    "StageSettings",
    "Stages",
    "backend_names",
    "open_head",
    "open_references",
    "open_stages",
]


# What the backends of the stages are told when they are opened.


@dataclass(frozen=True)
class StageSettings:
    """One set for all backends; each reads what concerns it."""

    threads: int | None = None
    """CPU threads per stage; all cores where None."""
    checkpoint: Path | None = None
    """Torch: the checkpoint that the bundle was exported from, where it is not a bundled one."""
    lmm_folder: Path | None = None
    """vLLM in process: the folder of ``agvas-export vllm``, where it is not inside the bundle."""
    lmm_url: str | None = None
    """vLLM over HTTP: where ``agvas serve-lmm`` listens."""
    adapter: str | None = None
    """vLLM: the adapter to answer with; the folder's own where None."""
    engines: Path | None = None
    """TensorRT: the store that ``agvas-export trt -o`` wrote to, where it is not the default one."""
    cuda_context: int | None = None
    """TensorRT: handle of the CUDA context to use, where it is not the GPU's own (``stages.trt.pycuda_interop``)."""


BACKENDS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "vision": {
            "onnx": "agvas_runtime.stages.onnx:open_vision",
            "ort-cuda": "agvas_runtime.stages.onnx:open_vision_cuda",
            "openvino": "agvas_runtime.stages.openvino:open_vision",
            "openvino-bf16": "agvas_runtime.stages.openvino:open_vision_bf16",
            "trt": "agvas_runtime.stages.trt.stage:open_vision",
            "torch": "agvas_runtime.stages.torch_reference:open_vision",
            "torch-cuda": "agvas_runtime.stages.torch_cuda.stages:open_vision",
            "torch-cuda-fp8": "agvas_runtime.stages.torch_cuda.stages:open_vision_fp8",
        },
        "lmm": {
            "onnx": "agvas_runtime.stages.onnx:open_lmm",
            "ort-cuda": "agvas_runtime.stages.onnx:open_lmm_cuda",
            "openvino": "agvas_runtime.stages.openvino:open_lmm",
            "openvino-bf16": "agvas_runtime.stages.openvino:open_lmm_bf16",
            "trt": "agvas_runtime.stages.trt.stage:open_lmm",
            "torch": "agvas_runtime.stages.torch_reference:open_lmm",
            "torch-cuda": "agvas_runtime.stages.torch_cuda.stages:open_lmm",
            "torch-cuda-fp8": "agvas_runtime.stages.torch_cuda.stages:open_lmm_fp8",
            "vllm": "agvas_runtime.stages.vllm.lmm:open_vllm",
            "vllm-direct": "agvas_runtime.stages.vllm.lmm:open_vllm_direct",
            "http": "agvas_runtime.stages.vllm.http:open_http",
        },
        "decoder": {
            "onnx": "agvas_runtime.stages.onnx:open_decoder",
            "ort-cuda": "agvas_runtime.stages.onnx:open_decoder_cuda",
            "openvino": "agvas_runtime.stages.openvino:open_decoder",
            "openvino-bf16": "agvas_runtime.stages.openvino:open_decoder_bf16",
            "trt": "agvas_runtime.stages.trt.stage:open_decoder",
            "torch": "agvas_runtime.stages.torch_reference:open_decoder",
            "torch-cuda": "agvas_runtime.stages.torch_cuda.stages:open_decoder",
            "torch-cuda-fp8": "agvas_runtime.stages.torch_cuda.stages:open_decoder_fp8",
        },
    }
)
"""Stage -> backend -> the function that opens it, as module:function."""


REFERENCE_BACKENDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "onnx": "agvas_runtime.stages.onnx:open_references",
        "ort-cuda": "agvas_runtime.stages.onnx:open_references_cuda",
        "openvino": "agvas_runtime.stages.openvino:open_references",
        "openvino-bf16": "agvas_runtime.stages.openvino:open_references_bf16",
        "trt": "agvas_runtime.stages.trt.references:open_stage",
        "torch": "agvas_runtime.stages.torch_reference:open_references",
        "torch-cuda": "agvas_runtime.stages.torch_reference:open_references_cuda",
    }
)
"""Of the reference stage, which a bundle may lack: as in ``BACKENDS``."""


HEAD_BACKENDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "onnx": "agvas_runtime.stages.onnx:open_head",
        "openvino": "agvas_runtime.stages.openvino:open_head",
        "trt": "agvas_runtime.stages.trt.references:open_head",
        "torch": "agvas_runtime.stages.torch_reference:open_head",
    }
)
"""Of a product's fitted head, a millisecond on a CPU: as in ``BACKENDS``."""


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


def open_head(bundle: Bundle, backend: str = DEFAULT_BACKEND, settings: StageSettings | None = None) -> HeadStage:
    """Opens the fitted head of a product.

    Raises:
        BundleError: it has none.
        UsageError, SetupError: as ``open_stages``.
    """
    return cast(HeadStage, _open("head", backend, bundle, settings or StageSettings()))


def _open(stage: str, backend: str, bundle: Bundle, settings: StageSettings) -> Any:
    backends = {"references": REFERENCE_BACKENDS, "head": HEAD_BACKENDS}.get(stage) or BACKENDS[stage]
    if "://" in backend and "http" in backends:
        backend, settings = "http", replace(settings, lmm_url=backend)
    if backend not in backends:
        meant = f"did you mean {near}? " if (near := nearest(backend, backends)) else ""
        address = ", or the address of a server" if "http" in backends else ""
        raise UsageError(f"{stage} is {backend!r}: {meant}it can be {', '.join(backends)}{address}")
    place, _, function = backends[backend].partition(":")
    with needs_packages():  # some modules import their engine when they are asked for it
        return getattr(import_module(place), function)(bundle, settings)
