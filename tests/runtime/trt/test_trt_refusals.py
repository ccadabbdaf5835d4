"""What TensorRT's backend says where something is missing, foreign, too small or gone; and that the interface we fake is the real one."""

import json
from collections.abc import Callable
from pathlib import Path

import fake_cuda
import fake_tensorrt
import numpy as np
import pytest
from cuda.bindings import driver, runtime
from fake_bench import Bench
from numpy.typing import NDArray

from agvas_core.contract.engine import ENGINES_NAME, open_library
from agvas_core.contract.errors import BundleError, SetupError, UsageError
from agvas_runtime import Segmenter, Verdict
from agvas_runtime.bundle import load_bundle
from agvas_runtime.images.frame import Frame
from agvas_runtime.stages.open import open_stages
from agvas_runtime.stages.trt.device_array import DeviceArray
from agvas_runtime.stages.trt.pycuda_interop import array_on_gpu, settings_in

MakePart = Callable[..., NDArray[np.uint8]]
TRT = {"vision": "trt", "lmm": "trt", "decoder": "trt"}
ERRORS = runtime.cudaError_t
WITHOUT_GPU = pytest.mark.skipif(int(runtime.cudaGetDeviceCount()[0]) == 0, reason="there is a GPU here")


@WITHOUT_GPU
@pytest.mark.parametrize("joint", ["vision", "lmm", "decoder"])
def test_without_a_gpu_it_is_refused_and_never_the_cpu_in_its_place(tiny_bundle: Path, joint: str) -> None:
    """The real cuda-bindings."""
    with pytest.raises(SetupError, match=r"no NVIDIA driver here.*choose the backend onnx"):
        open_stages(load_bundle(tiny_bundle), **{joint: "trt"})


def test_a_driver_that_is_too_old_is_told_with_both_versions(bench: Bench) -> None:
    bench.cuda.found, bench.cuda.driver = ERRORS.cudaErrorInsufficientDriver, 12040
    with pytest.raises(SetupError, match=r"driver is for CUDA 12\.4.*needs 13\.0.*cuda-bindings==12"):
        Segmenter.load(bench.bundle, **TRT)
    bench.cuda.found, bench.cuda.driver = ERRORS.cudaErrorNoDevice, 13000
    with pytest.raises(SetupError, match=r"no GPU is visible.*CUDA_VISIBLE_DEVICES"):
        Segmenter.load(bench.bundle, **TRT)


def test_engines_of_another_gpu_or_tensorrt_are_named_and_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cuda.Properties, "name", b"NVIDIA Other GPU")
    with pytest.raises(
        SetupError, match=r"for NVIDIA Other GPU with tensorrt 10.13.0 \(it has some for NVIDIA Test GPU.*agvas-export trt"
    ):
        Segmenter.load(bench.bundle, **TRT)


def test_engines_of_another_tensorrt_are_refused(bench: Bench) -> None:
    bench.tensorrt.__version__ = "10.3.0"
    with pytest.raises(
        SetupError, match=r"with tensorrt 10.3.0 \(it has some for NVIDIA Test GPU with tensorrt 10.13.0.*build them here"
    ):
        Segmenter.load(bench.bundle, **TRT)


def test_an_engine_of_another_graph_is_refused(bench: Bench) -> None:
    (record,) = bench.store.rglob(ENGINES_NAME)
    engines = json.loads(record.read_text(encoding="utf-8"))
    engines["engines"]["lmm"]["graph_sha256"] = "0" * 64
    record.write_text(json.dumps(engines), encoding="utf-8")
    with pytest.raises(SetupError, match=r"lmm engine in .* was built for the graph 000000000000.*agvas-export trt"):
        Segmenter.load(bench.bundle, **TRT)


def test_an_engine_that_does_not_open_says_what_tensorrt_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.tensorrt.Runtime, "deserialize_cuda_engine", lambda self, data: self.logger.log(1, "Magic tag"))
    with pytest.raises(SetupError, match=r"cannot open .*vision\.engine \(Magic tag\).*agvas-export trt"):
        Segmenter.load(bench.bundle, **TRT)


def test_an_engine_with_other_tensors_than_the_manifest_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fake_tensorrt.TYPES, "tensor(uint8)", np.int8)
    with pytest.raises(SetupError, match=r"semantic_image of the vision engine is int8, the manifest says uint8"):
        Segmenter.load(bench.bundle, **TRT)


def test_too_little_memory_says_for_what_how_much_and_what_to_lower(bench: Bench, make_part: MakePart) -> None:
    bench.cuda.capacity = 1000
    with pytest.raises(SetupError, match=r"vision engine has 0\.\d MB of weights; 0\.00 of 0\.00 GB are free on NVIDIA Test GPU"):
        Segmenter.load(bench.bundle, **TRT)
    bench.cuda.capacity = 100_000
    with pytest.raises(
        SetupError, match=r"of the (vision|lmm|decoder) engine, \d+\.\d MB: out of GPU memory.*smaller --max-batch"
    ):
        Segmenter.load(bench.bundle, **TRT)
    bench.cuda.capacity = 4 << 30
    segmenter = Segmenter.load(bench.bundle, **TRT)
    bench.cuda.capacity = 0  # somebody else took it in mid-run
    result = segmenter.segment(Frame("part", 0, image=make_part()))
    assert result.verdict is Verdict.NO_VERDICT and "outputs of the vision engine" in str(result.error)
    bench.cuda.capacity = 4 << 30
    assert segmenter.segment(Frame("part", 1, image=make_part())).verdict is Verdict.PASS


@pytest.mark.parametrize(
    "code", [ERRORS.cudaErrorLaunchFailure, ERRORS.cudaErrorECCUncorrectable, ERRORS.cudaErrorDevicesUnavailable]
)
def test_a_gpu_that_vanishes_leaves_no_part_without_a_verdict(
    bench: Bench, make_part: MakePart, code: runtime.cudaError_t
) -> None:
    segmenter = Segmenter.load(bench.bundle, **TRT)
    frames = (Frame(str(index), index, image=make_part()) for index in range(5))
    verdicts = []
    for result in segmenter.stream(frames, overlap=False):
        verdicts.append(result.verdict)
        bench.cuda.lost = code if len(verdicts) >= 2 else None
        if len(verdicts) > 2:
            assert code.name in str(result.error) and "Xid in dmesg" in str(result.error)
    assert verdicts == [Verdict.PASS] * 2 + [Verdict.NO_VERDICT] * 3


def test_a_bundle_without_a_graph_of_its_language_model_names_other_ways(bench: Bench) -> None:
    bundle = load_bundle(bench.bundle)
    without = type(bundle)(
        folder=bundle.folder, manifest=bundle.manifest.model_copy(update={"lmm": None}), identity=bundle.identity
    )
    with pytest.raises(BundleError, match="--lmm vllm"):
        open_stages(without, **TRT)


class FakeContext:
    """pycuda.driver.Context, which cannot be had here: pycuda does not build without a toolkit."""

    depth = 0

    def push(self) -> None:
        FakeContext.depth += 1

    @staticmethod
    def pop() -> None:
        FakeContext.depth -= 1


def test_a_pycuda_context_and_its_allocations_are_taken(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(driver, "cuCtxGetCurrent", lambda: (driver.CUresult(0), driver.CUcontext(0x5EED)))
    monkeypatch.setattr(driver, "cuCtxSetCurrent", lambda context: chosen.append(int(context)) or (driver.CUresult(0),))
    settings = settings_in(FakeContext())
    assert settings.cuda_context == 0x5EED and FakeContext.depth == 0
    vision = open_stages(load_bundle(bench.bundle), **TRT, settings=settings).vision
    assert set(chosen) == {0x5EED}

    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    _, pointer = bench.cuda.cudaMalloc(image.nbytes)
    bench.cuda.memory[pointer][:] = image.tobytes()
    semantic = np.zeros((1, 32, 32, 3), np.uint8)

    class Allocation:
        """pycuda.driver.DeviceAllocation."""

        def __int__(self) -> int:
            return int(pointer)

    class GpuArray:
        __cuda_array_interface__ = DeviceArray(vision.engine.cuda, pointer, image.shape, np.uint8).__cuda_array_interface__

    wanted = vision(semantic, image)
    for held in (Allocation(), GpuArray(), pointer):
        seen = vision(semantic, array_on_gpu(vision, held, image.shape, np.uint8))
        np.testing.assert_array_equal(seen.decoder["f_p"], wanted.decoder["f_p"])
    with pytest.raises(UsageError, match="no pycuda allocation"):
        array_on_gpu(vision, "here", image.shape, np.uint8)
    with pytest.raises(UsageError, match="is asked for"):
        array_on_gpu(vision, GpuArray(), (1, 32, 64, 3), np.uint8)
    monkeypatch.setattr(driver, "cuCtxGetCurrent", lambda: (driver.CUresult.CUDA_ERROR_INVALID_CONTEXT, driver.CUcontext(0)))
    with pytest.raises(SetupError, match="pycuda context cannot be used"):
        settings_in(FakeContext())


def test_what_is_faked_of_cuda_is_there_in_cuda_bindings() -> None:
    names = [name for name in vars(fake_cuda.FakeCuda) if name.startswith(("cuda", "get"))]
    assert len(names) > 20
    assert [name for name in names if name != "getLocalRuntimeVersion" and not hasattr(runtime, name)] == []


@WITHOUT_GPU
def test_cuda_bindings_takes_pointers_and_streams_as_the_numbers_that_we_give() -> None:
    """Each call comes back with the code for a missing driver, and none with a TypeError."""
    graph, executable = runtime.cudaGraph_t(0), runtime.cudaGraphExec_t(0)
    to_gpu, capturing = (
        runtime.cudaMemcpyKind.cudaMemcpyHostToDevice,
        runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
    )
    for function, given in (
        (runtime.cudaSetDevice, (0,)),
        (runtime.cudaGetDeviceProperties, (0,)),
        (runtime.cudaMalloc, (256,)),
        (runtime.cudaHostAlloc, (256, 1)),
        (runtime.cudaMemcpyAsync, (4096, 8192, 16, to_gpu, 7)),
        (runtime.cudaMemcpy, (4096, 8192, 16, to_gpu)),
        (runtime.cudaStreamCreateWithFlags, (1,)),
        (runtime.cudaStreamSynchronize, (7,)),
        (runtime.cudaEventCreateWithFlags, (2,)),
        (runtime.cudaEventRecord, (runtime.cudaEvent_t(0), 7)),
        (runtime.cudaEventSynchronize, (runtime.cudaEvent_t(0),)),
        (runtime.cudaEventDestroy, (runtime.cudaEvent_t(0),)),
        (runtime.cudaStreamBeginCapture, (7, capturing)),
        (runtime.cudaStreamEndCapture, (7,)),
        (runtime.cudaGraphInstantiate, (graph, 0)),
        (runtime.cudaGraphLaunch, (executable, 7)),
        (runtime.cudaFree, (4096,)),
        (runtime.cudaFreeHost, (4096,)),
    ):
        code, *_ = function(*given)
        assert code == ERRORS.cudaErrorInsufficientDriver, function.__name__
    assert int(runtime.cudaStream_t(7)) == 7


def test_what_is_faked_of_tensorrt_is_there_in_tensorrt_rtx() -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: make trt-check")
    library = open_library("tensorrt-rtx")
    module = fake_tensorrt.fake_tensorrt(fake_cuda.FakeCuda())
    assert [name for name in vars(module) if not name.startswith("__") and not hasattr(library, name)] == []
    ours = {"inputs", "outputs", "tensors", "known"}
    for fake, real in (
        ("Engine", "ICudaEngine"),
        ("Context", "IExecutionContext"),
        ("Network", "INetworkDefinition"),
        ("Builder", "Builder"),
    ):
        names = [name for name in vars(getattr(fake_tensorrt, fake)) if not name.startswith("_") and name not in ours]
        assert names and [name for name in names if name != "model" and not hasattr(getattr(library, real), name)] == []
