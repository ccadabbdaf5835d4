"""pycuda beside us: its context is taken in place of the GPU's own, its allocations as views (extra ``pycuda``).

    import pycuda.autoinit
    from agvas_runtime.stages.trt.pycuda_interop import array_on_gpu, settings_in

    segmenter = Segmenter.load(vision="trt", lmm="trt", decoder="trt", settings=settings_in(pycuda.autoinit.context))
    vision, lmm, decoder = segmenter.stages
    view = array_on_gpu(vision, allocation, (1, 512, 512, 3), np.uint8)   # a pycuda.driver.DeviceAllocation, or a GPUArray
    features = vision(semantic, view)                                     # not copied to the host and back

What comes out (``features.f_s``) has ``pointer``, and ``__cuda_array_interface__`` for kernels of yours. pycuda itself is not imported: what it
made is asked.
"""

from dataclasses import replace
from typing import Any, Protocol

from cuda.bindings import driver
from numpy.typing import DTypeLike

from agvas_core.contract.errors import SetupError, UsageError
from agvas_runtime.stages.open import StageSettings
from agvas_runtime.stages.trt.device_array import DeviceArray
from agvas_runtime.stages.trt.stage import TrtVision

__all__ = ["array_on_gpu", "settings_in"]


class Context(Protocol):
    """``pycuda.driver.Context``, as far as it is asked."""

    def push(self) -> None: ...

    @staticmethod
    def pop() -> None: ...


def settings_in(context: Context, settings: StageSettings | None = None) -> StageSettings:
    """Settings whose TensorRT stages work in a pycuda context; keep it alive as long as they.

    Raises:
        SetupError: the context is gone.
    """
    context.push()  # older pycuda does not tell a context's handle, and the current one's can be asked
    try:
        code, handle = driver.cuCtxGetCurrent()
    finally:
        context.pop()
    if int(code) != 0 or not int(handle):
        raise SetupError(f"the pycuda context cannot be used ({code.name}): make one, with import pycuda.autoinit say")
    return replace(settings or StageSettings(), cuda_context=int(handle))


def array_on_gpu(vision: TrtVision, allocation: Any, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
    """What lies in a pycuda allocation, as a stage takes it. Its writing is done: synchronise the stream first.

    Args:
        vision: the stage, whose context is the allocation's.
        allocation: ``DeviceAllocation``, ``GPUArray``, or a pointer as a number; it is kept alive by the array.

    Raises:
        UsageError: it is none of these, or an array of another shape or type.
    """
    cuda = vision.engine.cuda
    if hasattr(allocation, "__cuda_array_interface__"):
        array = DeviceArray.of(cuda, allocation)
        if (array.shape, array.dtype) != (tuple(shape), DeviceArray(cuda, 0, shape, dtype).dtype):
            raise UsageError(
                f"the array is {array.dtype} {list(array.shape)}, and {dtype} {list(shape)} is asked for: give the one that it is"
            )
        return array
    try:
        pointer = int(allocation)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{type(allocation).__name__} is no pycuda allocation: give a DeviceAllocation, a GPUArray or a pointer"
        ) from error
    return DeviceArray(cuda, pointer, shape, dtype, allocation)
