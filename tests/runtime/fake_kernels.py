"""The native core's CUDA kernels for machines without a GPU: device memory is the host's, and the CPU's half of the core does the work.

That the kernels give the same bits is shown by the C++ tests (csrc/tests/test_device.cpp), which run the kernels' own source.
"""

import ctypes
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from agvas_runtime.images.views import PIXEL_FORMAT_PLACES
from agvas_runtime.stages.whole_frame import RULE, SUMMARY

__all__ = ["FakeKernels"]

Run = Callable[[int, Callable[[], None]], None]


def at(pointer: int, shape: tuple[int, ...], dtype: Any) -> Any:
    kind = np.dtype(dtype)
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(pointer), kind).reshape(shape)


class FakeKernels:
    """Stands for ``agvas_runtime._native`` built with CUDA.

    Args:
        core: the one that was built.
        run: takes a stream and work for it.
    """

    def __init__(self, core: ModuleType, run: Run = lambda _, work: work()) -> None:
        self._core, self._run, self.seen, self.judged = core, run, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def cuda_devices(self) -> int:
        return 1

    def CudaViews(self, frame: tuple[int, ...], crop: tuple[int, ...], plans: Sequence[tuple[Any, ...]]) -> "_Views":
        return _Views(self, frame, crop, plans)

    def CudaVerdict(self, tiles: Sequence[Any], height: int, width: int, alpha: float, rest: float, room: int) -> "_Verdict":
        return _Verdict(self, tiles, height, width, alpha, rest)


class _Views:
    def __init__(self, kernels: FakeKernels, frame: tuple[int, ...], crop: tuple[int, ...], plans: Sequence[Any]) -> None:
        self.kernels, self.frame, self.crop, self.plans = kernels, frame, crop, plans

    def run(self, frame: int, outputs: Sequence[int], stream: int) -> None:
        place, height, width, stride = self.frame
        (name,) = (name for name, number in PIXEL_FORMAT_PLACES.items() if number == place)

        def work() -> None:
            self.kernels.seen += 1
            given = []
            for (high, wide, *content, padding), output in zip(self.plans, outputs, strict=True):
                given.append((at(output, (high, wide, 3), np.uint8), *content, padding))
            self.kernels._core.make_views(at(frame, (height, stride), np.uint8), name, height, width, self.crop, given)

        self.kernels._run(stream, work)


class _Verdict:
    def __init__(self, kernels: FakeKernels, tiles: Sequence[Any], height: int, width: int, alpha: float, rest: float) -> None:
        self.kernels, self.size, self.weights = kernels, (height, width), (alpha, rest)
        # The kernels copy the weights, which lie on the host and are gone later.
        self.tiles = [
            (
                *tile[:7],
                None
                if tile[7] == (0, 0)
                else [at(where, (side,), np.float32).copy() for where, side in zip(tile[7], tile[5][2:], strict=True)],
            )
            for tile in tiles
        ]

    def run(self, rule: int, score_map: int, mask: int, summary: int, regions: int, stream: int) -> None:
        def work() -> None:
            self.kernels.judged += 1
            parts, best, finite = [], dict[int, tuple[float, float]](), True
            for look, layers, (answer, refusal), (high, wide, stride), enlarged, place, share, weights in self.tiles:
                nor, ano, seg = (at(layer, (high, stride), np.float32)[:, :wide] for layer in layers)
                parts.append((np.ascontiguousarray(seg), ano - nor, enlarged, place, share, *(weights or (None, None))))
                lean = np.float64(at(answer, (), np.float32)) - (np.float64(at(refusal, (), np.float32)) if refusal else 0.0)
                here = float(np.float32(1.0 / (1.0 + np.exp(np.clip(-lean, -80.0, 80.0)))))
                best[look] = share, max(here, best.get(look, (0.0, 0.0))[1])
                finite &= bool(np.isfinite([*nor.ravel(), *ano.ravel(), *seg.ravel(), lean]).all())
            accept = sum(share * highest for share, highest in best.values())
            told = at(rule, (1,), RULE)[0]
            asked = float(told["threshold"]), float(told["seed"]), float(told["min_area"]), bool(accept >= told["gate"])
            maps = at(score_map, self.size, np.float32), at(mask, self.size, np.uint8)
            score, found = self.kernels._core.judge_parts(parts, *self.weights, asked, *maps)
            at(summary, (1,), SUMMARY)[0] = (len(found), len(found), 0, not finite, score, accept)

        self.kernels._run(stream, work)
