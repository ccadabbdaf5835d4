"""CUDA through cuda-bindings: one GPU, its memory and streams. Every call goes through ``Cuda.call``, which says what failed and what helps.

A foreign context (pycuda's, for example) is used in place of CUDA's own where its handle is given: memory belongs to a context.
"""

import ctypes
from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import finalize

import numpy as np
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

from agvas_core.contract.errors import AgvasError, ImageError, SetupError, StageError
from agvas_core.contract.gpu import cuda_version, jetson_model, refuse_without_gpu

__all__ = ["Cuda", "DeviceMemory", "Event", "Graph", "PinnedMemory", "Repeated"]

LEAST_BYTES = 256  # TensorRT wants an address of every tensor, of an empty one too, at a multiple of this
_NON_BLOCKING = 1  # cudaStreamNonBlocking: no waiting for the legacy stream, which belongs to everybody
_NO_TIMING = 2  # cudaEventDisableTiming
_PORTABLE = 1  # cudaHostAllocPortable: page-locked for every context


class Cuda:
    """The first GPU that CUDA shows.

    Args:
        context: handle (``CUcontext``) of a context to use in place of the GPU's primary one.

    Raises:
        SetupError: no driver, one that is too old, no GPU.
    """

    def __init__(self, context: int | None = None) -> None:
        refuse_without_gpu(cudart)
        self._context = context
        self._index = 0
        self._free: dict[int, deque[DeviceMemory]] = {}
        self.name: str = "GPU"  # until it is known, for the messages
        self.enter()
        if context is not None:
            self._index = self.call("finding the GPU of the context", cudart.cudaGetDevice)
        properties = self.call("asking for its name", cudart.cudaGetDeviceProperties, self._index)
        self.name = jetson_model() or properties.name.decode().rstrip("\0")
        self.compute_capability = f"{properties.major}.{properties.minor}"
        self.driver = cuda_version(self.call("asking for the driver", cudart.cudaDriverGetVersion))

    def enter(self) -> None:
        """Makes GPU and context those of the calling thread; each thread has its own."""
        if self._context is None:
            self.call("choosing the GPU", cudart.cudaSetDevice, self._index)
            return
        from cuda.bindings import driver

        (code,) = driver.cuCtxSetCurrent(driver.CUcontext(self._context))
        if int(code) != 0:
            raise SetupError(f"the CUDA context {self._context:#x} cannot be used ({code.name}): give one that is alive")

    def call(self, doing: str, function: Callable[..., tuple[Any, ...]], *given: Any, opening: bool = False) -> Any:
        """What a function of CUDA's runtime gives.

        Args:
            doing: in words, for the message.
            opening: nothing runs yet, so that a lack of memory ends the program; else it ends the frame.

        Raises:
            SetupError, ImageError: out of memory on the GPU.
            StageError: everything else; a GPU that is gone, above all.
        """
        code, *found = function(*given)
        if int(code) != 0:
            raise self._fault(doing, code, opening)
        return found[0] if found else None

    def memory(self) -> tuple[int, int]:
        """Free and whole memory in bytes."""
        code, *found = cudart.cudaMemGetInfo()
        return (int(found[0]), int(found[1])) if int(code) == 0 else (0, 0)

    def memory_in_words(self) -> str:
        """``1.2 of 79.6 GB are free on NVIDIA H100``."""
        free, whole = self.memory()
        return f"{free / 1e9:.2f} of {whole / 1e9:.2f} GB are free on {self.name}"

    def allocate(self, size: int, doing: str, *, opening: bool = False) -> "DeviceMemory":
        """Memory of its own, freed with the object."""
        return DeviceMemory(self, max(size, LEAST_BYTES), doing, opening)

    def lend(self, size: int, doing: str) -> tuple[int, object]:
        """Pointer to at least ``size`` bytes, and what keeps them: when that is gone, the next one gets them.

        So that a run allocates nothing once it has seen its sizes, which are rounded up to powers of two.
        """
        bucket = 1 << (max(size, LEAST_BYTES) - 1).bit_length()
        waiting = self._free.setdefault(bucket, deque())
        memory = waiting.pop() if waiting else self.allocate(bucket, doing)
        keeper = _Loan()
        finalize(keeper, waiting.append, memory).atexit = False
        return memory.pointer, keeper

    def stream(self) -> int:
        """A new stream, as long as the process lives."""
        return int(self.call("making a stream", cudart.cudaStreamCreateWithFlags, _NON_BLOCKING, opening=True))

    def wait(self, stream: int, doing: str) -> None:
        """Until all work of a stream is done; its errors come here."""
        self.call(doing, cudart.cudaStreamSynchronize, stream)

    def event(self) -> "Event":
        """A mark for a stream's work."""
        return Event(self)

    def record(self, event: "Event", stream: int, doing: str) -> None:
        """The event is there when all work so far of the stream is done."""
        self.call(doing, cudart.cudaEventRecord, event.handle, stream)

    def wait_for(self, event: "Event", doing: str) -> None:
        """Until it is there; errors of the work before it come here."""
        self.call(doing, cudart.cudaEventSynchronize, event.handle)

    def captured(self, stream: int, doing: str, work: Callable[[], bool]) -> "Graph | None":
        """What ``work`` puts on the stream as a graph; None where something in it cannot be captured, or says False."""
        self.wait(stream, doing)
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call(doing, cudart.cudaStreamBeginCapture, stream, mode)
        try:
            taken = work()
        finally:
            code, graph = cudart.cudaStreamEndCapture(stream)
        if not taken or int(code) != 0:
            cudart.cudaGetLastError()  # forgets it: the work is done without a graph
            return None
        made = Graph(self.call(doing, cudart.cudaGraphInstantiate, graph, 0))
        self.call(doing, cudart.cudaGraphDestroy, graph)
        return made

    def launch(self, graph: "Graph", stream: int, doing: str) -> None:
        """All of it with one call."""
        self.call(doing, cudart.cudaGraphLaunch, graph.handle, stream)

    def copy(self, target: int, source: int, size: int, kind: str, stream: int, doing: str) -> None:
        """``kind``: HostToDevice, DeviceToHost or DeviceToDevice; in the order of the stream."""
        if size:
            direction = getattr(cudart.cudaMemcpyKind, f"cudaMemcpy{kind}")
            self.call(doing, cudart.cudaMemcpyAsync, target, source, size, direction, stream)

    def _fault(self, doing: str, code: Any, opening: bool) -> AgvasError:
        name = cudart.cudaGetErrorName(code)[1].decode()
        if name == "cudaErrorMemoryAllocation":
            kind = SetupError if opening else ImageError
            return kind(
                f"{doing}: out of GPU memory; {self.memory_in_words()}: end what else uses it, build the engines with a smaller "
                "--max-batch or a lower precision, or give smaller images"
            )
        told = cudart.cudaGetErrorString(code)[1].decode()
        return StageError(
            f"{doing}: {self.name} failed ({name}: {told}): look for Xid in dmesg, at power and temperature, and start the run again"
        )


class Event:
    """A mark on a stream, dropped with the object."""

    def __init__(self, cuda: Cuda) -> None:
        self.handle = cuda.call("making an event", cudart.cudaEventCreateWithFlags, _NO_TIMING)
        finalize(self, cudart.cudaEventDestroy, self.handle).atexit = False


class Graph:
    """A captured graph, dropped with the object."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        finalize(self, cudart.cudaGraphExecDestroy, handle).atexit = False


class Repeated:
    """Work on a stream, again and again: from its second run on one graph, where that is wanted and possible.

    Args:
        what: in words, for the messages.
    """

    def __init__(self, cuda: Cuda, stream: int, what: str) -> None:
        self.refused = False
        """It cannot be captured."""
        self._cuda, self._stream, self._what = cuda, stream, what
        self._runs = 0
        self._graph: Graph | None = None

    def run(self, work: Callable[[], bool], *, capture: bool) -> bool:
        """Puts ``work``, the same each time, on the stream; False where it says so."""
        self._runs += 1
        if self._runs == 2 and capture:  # the first run settles what is put off until then
            self._graph = self._cuda.captured(self._stream, f"capturing {self._what}", work)
            self.refused = self._graph is None
        if self._graph is None:
            return work()
        self._cuda.launch(self._graph, self._stream, self._what)
        return True


class _Loan:
    """Lent memory, while it is held."""


class DeviceMemory:
    """Bytes on the GPU, freed when nothing refers to them any more."""

    def __init__(self, cuda: Cuda, size: int, doing: str, opening: bool) -> None:
        self.size = size
        self.pointer = int(cuda.call(f"{doing}, {size / 1e6:.1f} MB", cudart.cudaMalloc, size, opening=opening))
        finalize(self, cudart.cudaFree, self.pointer).atexit = False  # the process's end frees what is left


class PinnedMemory:
    """Page-locked bytes of the host: copies to and from the GPU go on beside everything else."""

    def __init__(self, cuda: Cuda, size: int, doing: str) -> None:
        size = max(size, LEAST_BYTES)
        self.pointer = int(cuda.call(f"{doing}, {size / 1e6:.1f} MB page-locked", cudart.cudaHostAlloc, size, _PORTABLE))
        self._bytes: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.pointer))
        finalize(self, cudart.cudaFreeHost, self.pointer).atexit = False

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Its beginning as an array; not to be kept, for the next copy overwrites it."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        found: NDArray[Any] = self._bytes[:size].view(dtype).reshape(shape)
        return found
