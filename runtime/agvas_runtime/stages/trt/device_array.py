"""An array that lies on the GPU. NumPy reads it as any other (``np.asarray``), which copies; an engine takes it where it lies."""

from typing import Any

import numpy as np
from cuda.bindings import runtime as cudart
from numpy.typing import DTypeLike, NDArray

from agvas_core.contract.errors import UsageError
from agvas_runtime.stages.trt.cuda import Cuda

__all__ = ["DeviceArray"]


class DeviceArray:
    """Elements in one piece, C order, finished: its maker waits for the stream first.

    CuPy, Numba, torch and pycuda's GPUArray read it by ``__cuda_array_interface__``.

    Args:
        pointer: of the GPU's memory; of ``cuda``'s context.
        keeper: whatever must live as long as the memory is used.
    """

    def __init__(self, cuda: Cuda, pointer: int, shape: tuple[int, ...], dtype: DTypeLike, keeper: object = None) -> None:
        self.cuda, self.pointer, self.shape, self.dtype = cuda, pointer, tuple(shape), np.dtype(dtype)
        self._keeper = keeper
        self._read: NDArray[Any] | None = None

    @classmethod
    def of(cls, cuda: Cuda, other: Any) -> "DeviceArray":
        """The array of another library, where it lies.

        Raises:
            UsageError: it is not on a GPU, or not in one piece.
        """
        facts = getattr(other, "__cuda_array_interface__", None)
        if not isinstance(facts, dict):
            raise UsageError(
                f"{type(other).__name__} is no array on a GPU: give one with __cuda_array_interface__, or a NumPy array"
            )
        array = cls(cuda, int(facts["data"][0]), tuple(facts["shape"]), np.dtype(facts["typestr"]), other)
        if facts.get("strides") not in (None, _c_strides(array.shape, array.dtype.itemsize)):
            raise UsageError(
                f"an array of shape {list(array.shape)} lies in pieces (strides {facts['strides']}): make it contiguous first"
            )
        return array

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.pointer, False), "version": 3, "strides": None}

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if self._read is None:
            found = np.empty(self.shape, self.dtype)
            if found.nbytes:
                self.cuda.enter()
                kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
                self.cuda.call("reading an array", cudart.cudaMemcpy, found.ctypes.data, self.pointer, found.nbytes, kind)
            self._read = found
        return self._read.astype(dtype or self.dtype, copy=bool(copy))

    def __getitem__(self, index: Any) -> NDArray[Any]:
        found: NDArray[Any] = np.asarray(self)[index]
        return found

    def rows(self, start: int, stop: int) -> "DeviceArray":
        """``[start:stop]`` of the first axis, where it lies."""
        of_row = self.nbytes // max(1, self.shape[0])
        return DeviceArray(self.cuda, self.pointer + start * of_row, (stop - start, *self.shape[1:]), self.dtype, self)


def _c_strides(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    strides = []
    for length in reversed(shape):
        strides.append(size)
        size *= length
    return tuple(reversed(strides))
