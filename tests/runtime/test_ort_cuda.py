"""CUDA asked for and absent is an error, never the CPU in its place."""

from pathlib import Path

import onnxruntime as ort
import pytest

from agvas_core.contract.errors import SetupError
from agvas_runtime.bundle import load_bundle
from agvas_runtime.stages import onnx as onnx_graph
from agvas_runtime.stages.open import backend_names, open_stages

WITHOUT_GPU = pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="onnxruntime-gpu is installed")


@WITHOUT_GPU
@pytest.mark.parametrize("stage", ["vision", "lmm", "decoder"])
def test_cuda_without_its_package_is_refused_and_names_the_extra(tiny_bundle: Path, stage: str) -> None:
    assert "ort-cuda" in backend_names(stage)
    with pytest.raises(SetupError, match=r"no CUDAExecutionProvider.*agvas\[gpu\]"):
        open_stages(load_bundle(tiny_bundle), **{stage: "ort-cuda"})


@WITHOUT_GPU
def test_a_provider_that_onnxruntime_drops_in_silence_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu on a machine without a driver: the provider is listed, and the session comes without it."""
    whole = ort.InferenceSession
    monkeypatch.setattr(onnx_graph.ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(
        onnx_graph.ort,
        "InferenceSession",
        lambda path, options, providers: whole(path, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(SetupError, match=r"would run vision\.onnx on the CPU"):
        open_stages(load_bundle(tiny_bundle), vision="ort-cuda")


@pytest.mark.gpu
def test_cuda_gives_the_answer_of_the_cpu(tiny_bundle: Path) -> None:
    from agvas_runtime.pipeline.segmenter import Segmenter
    from agvas_runtime.profile.session import generated_frame

    frame = generated_frame(96)
    on_cpu, on_gpu = (
        Segmenter.load(tiny_bundle, vision=name, lmm=name, decoder=name).segment(frame) for name in ("onnx", "ort-cuda")
    )
    assert on_cpu.verdict == on_gpu.verdict and on_cpu.score == pytest.approx(on_gpu.score, abs=1e-3)
