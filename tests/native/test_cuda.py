"""The CUDA kernels give the CPU reference's bits. Never run where this was written: no GPU was at hand."""

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

from agvas_core.contract.decision import OperatingPoint
from agvas_runtime.images.views import PIXEL_FORMAT_PLACES
from agvas_runtime.masks.regions import native_rule
from agvas_runtime.stages.whole_frame import REGION_BYTES, RULE, SUMMARY, packed_rule

pytestmark = pytest.mark.gpu
REGION = np.dtype(
    [
        *[(name, np.int32) for name in ("first", "left", "top", "right", "bottom")],
        ("area", np.uint32),
        ("sum_x", np.uint64),
        ("sum_y", np.uint64),
        ("sum_score", np.float64),
        ("max_score", np.float32),
        ("counts", np.int32),
    ],
    align=True,
)


class Device:
    """Arrays on the GPU, on a stream of their own."""

    def __init__(self) -> None:
        self.cudart = pytest.importorskip("cuda.bindings.runtime")
        self.stream = self._call(self.cudart.cudaStreamCreate())
        self.held: list[int] = []

    def _call(self, answer: tuple) -> object:
        assert answer[0] == self.cudart.cudaError_t.cudaSuccess, answer[0]
        return answer[1] if len(answer) > 1 else None

    def empty(self, like: np.ndarray) -> int:
        self.held.append(int(self._call(self.cudart.cudaMalloc(like.nbytes))))  # type: ignore[call-overload]
        return self.held[-1]

    def put(self, array: np.ndarray) -> int:
        address = self.empty(array)
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self.cudart.cudaMemcpy(address, np.ascontiguousarray(array).ctypes.data, array.nbytes, kind))
        return address

    def get(self, address: int, like: np.ndarray) -> np.ndarray:
        self._call(self.cudart.cudaStreamSynchronize(self.stream))
        found = np.empty_like(like)
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self.cudart.cudaMemcpy(found.ctypes.data, address, found.nbytes, kind))
        return found

    def close(self) -> None:
        for address in self.held:
            self._call(self.cudart.cudaFree(address))


@pytest.fixture
def device(core: ModuleType) -> Iterator[Device]:
    if "CUDA " not in core.CUDA or core.CUDA.startswith("without") or not core.cuda_devices():
        pytest.skip(f"no GPU to run on ({core.CUDA})")
    opened = Device()
    yield opened
    opened.close()


@pytest.mark.parametrize("pixel_format", [name for name in PIXEL_FORMAT_PLACES if name != "Mono16"])
def test_views_are_the_references_to_the_bit(core: ModuleType, device: Device, pixel_format: str) -> None:
    height, width = 302, 404
    of_pixel = {"RGB8": 3, "BGR8": 3, "YUYV": 2}.get(pixel_format, 1)
    rows = height * 3 // 2 if pixel_format == "NV12" else height
    frame = np.random.default_rng(0).integers(0, 256, (rows, of_pixel * width), np.uint8)
    out = np.zeros((64, 96, 3), np.uint8)
    core.make_views(frame, pixel_format, height, width, (2, 4, 290, 380), [(out, 60, 90, (1, 2, 3))])
    views = core.CudaViews(
        (PIXEL_FORMAT_PLACES[pixel_format], height, width, of_pixel * width),
        (2, 4, 290, 380),
        [(64, 96, 60, 90, (1, 2, 3))],
    )
    found = device.empty(out)
    views.run(device.put(frame), [found], int(device.stream))  # type: ignore[call-overload]
    np.testing.assert_array_equal(device.get(found, out), out)


@pytest.mark.parametrize("seed", range(4))
def test_verdicts_are_the_references(core: ModuleType, device: Device, seed: int) -> None:
    rng, (height, width) = np.random.default_rng(seed), (301, 407)
    layers = rng.normal(-2, 6, (3, 20, 30)).astype(np.float32)
    nor, ano, seg = layers
    point = OperatingPoint(threshold=0.3, seed_threshold=0.6, min_area_fraction=12.0 / (height * width), gate=0.5)
    score_map, mask = np.empty((height, width), np.float32), np.empty((height, width), np.uint8)
    part = (seg, ano - nor, (height, width), (0, 0, height, width), 1.0, None, None)
    score, regions = core.judge_parts([part], 0.5, 0.5, native_rule(point, 1.0, mask.size), score_map, mask)
    first, leans = device.put(layers), device.put(np.array([1.0, 0.5], np.float32))
    tile = (0, tuple(first + 4 * 600 * layer for layer in range(3)), (leans, leans + 4), (20, 30, 30), (height, width))
    verdict = core.CudaVerdict([(*tile, (0, 0, height, width), 1.0, (0, 0))], height, width, 0.5, 0.5, 4096)
    summary, table, rule = np.zeros(1, SUMMARY), np.zeros(4096, REGION), packed_rule(point, mask.size)
    assert (RULE.itemsize, SUMMARY.itemsize) == (core.CUDA_RULE_BYTES, core.CUDA_SUMMARY_BYTES)
    assert core.CUDA_REGION_BYTES == REGION.itemsize == REGION_BYTES
    on_device = [device.empty(each) for each in (score_map, mask, summary, table)]
    verdict.run(device.put(rule), *on_device, int(device.stream))  # type: ignore[call-overload]
    np.testing.assert_array_equal(device.get(on_device[0], score_map), score_map)
    np.testing.assert_array_equal(device.get(on_device[1], mask), mask)
    told = device.get(on_device[2], summary)[0]
    assert told["overflow"] == told["broken"] == 0 and told["score"] == np.float32(score)
    assert told["accept"] == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-7) and told["counting"] == len(regions)
    found = device.get(on_device[3], table)[: told["count"]]
    counted = np.sort(found[found["counts"] == 1], order="first")
    assert [int(each["area"]) for each in counted] == [area for _, area, *_ in regions]
    assert [each["max_score"] for each in counted] == [np.float32(highest) for *_, highest, _, _ in regions]
