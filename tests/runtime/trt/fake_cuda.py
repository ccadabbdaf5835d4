"""CUDA's runtime for machines without a GPU, at the boundary of cuda-bindings and nowhere above: the GPU's memory is memory of the host.

It holds the callers to CUDA's rules: copies stay inside what was allocated, freed memory is not touched, a stream that captures runs
nothing. It says nothing of speed, of races between streams, or of what a GPU computes.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from cuda.bindings import runtime as real

OK = real.cudaError_t.cudaSuccess


class Properties:
    name = b"NVIDIA Test GPU"
    major, minor = 9, 0


class FakeCuda:
    """Stands for ``cuda.bindings.runtime``; the enumerations and the names of errors are the real ones."""

    cudaError_t = real.cudaError_t
    cudaMemcpyKind = real.cudaMemcpyKind
    cudaStreamCaptureMode = real.cudaStreamCaptureMode
    cudaGetErrorName = staticmethod(real.cudaGetErrorName)
    cudaGetErrorString = staticmethod(real.cudaGetErrorString)

    def __init__(self, capacity: int = 4 << 30) -> None:
        self.capacity, self.memory = capacity, dict[int, Any]()
        self.gpus, self.found, self.driver = 1, OK, 13000
        self.lost: Any = None  # the code that every call gives from now on
        self.captures: dict[int, list[Callable[[], None]]] = {}
        self.launches = self.allocations = self.page_locked = 0
        self.streams = 0

    def run(self, stream: int, work: Callable[[], None]) -> None:
        """Now, or in the graph that the stream captures."""
        if stream in self.captures:
            self.captures[stream].append(work)
        else:
            work()

    def inside(self, pointer: int, size: int) -> None:
        assert any(start <= pointer and pointer + size <= start + len(block) for start, block in self.memory.items()), (
            f"{size} bytes at {pointer:#x} are not what was allocated"
        )

    def getLocalRuntimeVersion(self) -> tuple[Any, int]:
        return OK, 13000

    def cudaGetDeviceCount(self) -> tuple[Any, int | None]:
        return (self.found, self.gpus) if self.found == OK else (self.found, None)

    def cudaDriverGetVersion(self) -> tuple[Any, int]:
        return OK, self.driver

    def cudaSetDevice(self, index: int) -> tuple[Any]:
        return (self.lost or OK,)

    def cudaGetDevice(self) -> tuple[Any, int]:
        return OK, 0

    def cudaGetDeviceProperties(self, index: int) -> tuple[Any, Properties]:
        return OK, Properties()

    def cudaGetLastError(self) -> tuple[Any]:
        return (OK,)

    def cudaMemGetInfo(self) -> tuple[Any, int, int]:
        return OK, self.capacity - sum(len(block) for block in self.memory.values()), self.capacity

    def cudaMalloc(self, size: int) -> tuple[Any, int | None]:
        if self.lost or size > self.cudaMemGetInfo()[1]:
            return self.lost or self.cudaError_t.cudaErrorMemoryAllocation, None
        self.allocations += 1
        return OK, self._new(size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, int]:
        self.page_locked += 1
        return OK, self._new(size)

    def cudaFree(self, pointer: int) -> tuple[Any]:
        del self.memory[pointer]
        return (OK,)

    cudaFreeHost = cudaFree

    def cudaMemcpy(self, target: int, source: int, size: int, kind: Any) -> tuple[Any]:
        if kind == self.cudaMemcpyKind.cudaMemcpyDeviceToHost:
            self.inside(source, size)
        ctypes.memmove(target, source, size)
        return (self.lost or OK,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> tuple[Any]:
        self.inside(target, size)  # page-locked memory is in the table, too, and any other would make the copy wait
        self.inside(source, size)
        self.run(stream, lambda: ctypes.memmove(target, source, size) and None)
        return (self.lost or OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, int]:
        self.streams += 1
        return OK, self.streams

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        assert stream not in self.captures, "a stream that captures cannot be waited for"
        return (self.lost or OK,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Any, object]:
        return OK, object()

    def cudaEventRecord(self, event: object, stream: int) -> tuple[Any]:
        assert stream not in self.captures, "an event of a capture belongs to its graph"
        return (self.lost or OK,)

    def cudaEventSynchronize(self, event: object) -> tuple[Any]:
        return (self.lost or OK,)

    def cudaEventDestroy(self, event: object) -> tuple[Any]:
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Any]:
        self.captures[stream] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, Any]:
        return OK, self.captures.pop(stream)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, Any]:
        return OK, list(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any]:
        graph.clear()
        return (OK,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Any]:
        return self.cudaGraphDestroy(graph)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[Any]:
        self.launches += 1
        for work in graph:
            work()
        return (self.lost or OK,)

    def _new(self, size: int) -> int:
        block = (ctypes.c_uint8 * size)()
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)
