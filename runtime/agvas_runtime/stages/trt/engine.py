"""One TensorRT engine on a stream of its own: ``execute_async_v3``, from the second frame of a size on as one CUDA graph.

All its memory is there when it was opened: inputs and outputs of the largest shapes that it was built for, and one scratch area, which the
execution contexts of all sizes share. There is a context for each size, because a captured graph belongs to the one it was captured from.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.engine import error_logger
from agvas_core.contract.errors import ImageError, SetupError, StageError
from agvas_core.contract.manifest import GraphSpec, TensorSpec
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.open import StageSettings
from agvas_runtime.stages.trt.cuda import Cuda, DeviceMemory, PinnedMemory, Repeated
from agvas_runtime.stages.trt.device_array import DeviceArray
from agvas_runtime.stages.trt.engine_file import find_engine, open_engine, refuse_other_graph, remedy

__all__ = ["Array", "Sized", "TrtEngine", "open_engine_of", "tensor_bytes"]

MAX_SIZES = 8  # a context each; a line has one size, a folder of photographs a few

Array = NDArray[Any] | DeviceArray
Shape = tuple[int, ...]

_log = logging.getLogger(__name__)


@dataclass
class Sized:
    """What belongs to one set of input shapes."""

    context: Any
    outputs: dict[str, Shape]
    again: Repeated


class TrtEngine:
    """One stage's engine, on the GPU. Threads that call at once take turns.

    Args:
        library: TensorRT, or TensorRT-RTX.
        stage: ``vision``, ``lmm`` or ``decoder``, for the messages.
        spec: the graph that it was built from, as the manifest has it.
        remedy: the command that builds it again.

    Raises:
        SetupError: it cannot be opened, is of another graph, or the GPU has too little memory.
    """

    def __init__(self, cuda: Cuda, library: Any, file: Path, stage: str, spec: GraphSpec, remedy: str) -> None:
        self.cuda, self.stage, self._library, self._spec, self._remedy = cuda, stage, library, spec, remedy
        self._lock = Lock()
        self._logger = error_logger(library)
        cuda.enter()
        self._runtime, self._engine = open_engine(cuda, library, self._logger, file, stage, remedy)
        refuse_other_graph(library, self._engine, stage, spec, remedy)
        self._stream = cuda.stream()
        self._captures_itself = hasattr(library, "CudaGraphStrategy")  # TensorRT-RTX, once its kernels are compiled
        self.capturable = not self._captures_itself
        self._lent_to: int | None = None
        scratch = int(self._engine.device_memory_size_v2)
        self._scratch = cuda.allocate(scratch, f"scratch memory of the {stage} engine", opening=True)
        self._sized: OrderedDict[tuple[Shape, ...], Sized] = OrderedDict()
        limits = {
            tensor.name: [tuple(shape) for shape in self._engine.get_tensor_profile_shape(tensor.name, 0)]
            for tensor in spec.inputs
        }
        self._least = {name: shapes[0] for name, shapes in limits.items()}
        self._largest = {name: shapes[-1] for name, shapes in limits.items()}
        batches = [self._largest[one.name][axis] for one in spec.inputs if (axis := _batch_axis(one)) is not None]
        self.max_batch = min(batches, default=1)
        self.kinds = {one.name: np.dtype(one.dtype) for one in (*spec.inputs, *spec.outputs)}
        self.memory: dict[str, DeviceMemory] = {}
        self.memory = self._allocate()
        self._pinned: dict[str, PinnedMemory] = {}
        self.input_names, self.output_names = ([one.name for one in part] for part in (spec.inputs, spec.outputs))

    def run(self, inputs: Mapping[str, Array], wanted: Sequence[str], *, on_gpu: bool = False) -> dict[str, Array]:
        """The outputs ``wanted`` of inputs whose batch may be larger than the engine's; then it goes in parts.

        Args:
            on_gpu: leave them there, as ``DeviceArray``.

        Raises:
            ImageError: shapes that the engine was not built for; out of GPU memory.
            StageError: TensorRT or the GPU fails.
        """
        with self.turn():
            if self._lent_to is not None:
                self.cuda.wait(self._lent_to, f"a frame before the {self.stage} engine")
                self._lent_to = None
            first = self._spec.inputs[0]
            batch = inputs[first.name].shape[_batch_axis(first) or 0]
            outputs: dict[str, Array] = {}
            for start in range(0, batch, self.max_batch):
                stop = min(start + self.max_batch, batch)
                part = {one.name: _rows(inputs[one.name], _batch_axis(one), start, stop) for one in self._spec.inputs}
                sized = self._at({name: tuple(array.shape) for name, array in part.items()})
                for name, array in part.items():
                    self._send(name, array)
                self._launch(sized)
                self._receive({name: sized.outputs[name] for name in wanted}, outputs, batch, start, on_gpu)
            return outputs

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One thread at a time, on this GPU."""
        with self._lock:
            self.cuda.enter()
            yield

    def lend_to(self, stream: int) -> None:
        """Work of a foreign stream is under way in the scratch memory; the next ``run`` waits for it. Within a turn."""
        self._lent_to = stream

    def _allocate(self) -> dict[str, DeviceMemory]:
        """Inputs and outputs of the largest shapes."""
        sized = self._at(self._largest)
        shapes = {**self._largest, **sized.outputs}
        found = {}
        for name, shape in shapes.items():
            if min(shape, default=0) < 0:
                raise SetupError(f"TensorRT does not know how large {name} of the {self.stage} engine will be: {self._remedy}")
            found[name] = self.cuda.allocate(
                tensor_bytes(shape, self.kinds[name]), f"{name} of the {self.stage} engine", opening=True
            )
        self._sized.clear()  # made before there were addresses
        return found

    def _at(self, shapes: Mapping[str, Shape]) -> Sized:
        """The context for input shapes, made where there is none; the one that was not used for longest goes."""
        key = tuple(shapes[one.name] for one in self._spec.inputs)
        if (known := self._sized.get(key)) is not None:
            self._sized.move_to_end(key)
            return known
        sized = self.prepared(shapes)
        while len(self._sized) >= MAX_SIZES:
            self._sized.popitem(last=False)
        self._sized[key] = sized
        return sized

    def prepared(self, shapes: Mapping[str, Shape]) -> Sized:
        """A new context for input shapes, with the engine's own memory for all of its tensors.

        Raises:
            ImageError: shapes that the engine was not built for.
            SetupError: TensorRT cannot make one.
        """
        for name, shape in shapes.items():
            least, most = self._least[name], self._largest[name]
            if len(shape) != len(most) or not all(
                low <= side <= high for low, side, high in zip(least, shape, most, strict=True)
            ):
                raise ImageError(
                    f"{name} is {_shown(shape)}; the {self.stage} engine takes {_shown(least)} to {_shown(most)}: {self._remedy}"
                )
        context = self._new_context()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise StageError(
                    f"the {self.stage} engine refuses {name} of shape {_shown(shape)} ({self._logger.last}): {self._remedy}"
                )
        for name, memory in self.memory.items():
            context.set_tensor_address(name, memory.pointer)
        outputs = {one.name: tuple(context.get_tensor_shape(one.name)) for one in self._spec.outputs}
        return Sized(context, outputs, Repeated(self.cuda, self._stream, f"the {self.stage} engine"))

    def _new_context(self) -> Any:
        strategy = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._captures_itself:
            context = self._engine.create_execution_context(strategy)
        else:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.cuda_graph_strategy = self._library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        if context is None:
            raise SetupError(
                f"TensorRT cannot prepare the {self.stage} engine ({self._logger.last or 'no reason given'}); "
                f"{self.cuda.memory_in_words()}: end what else uses the GPU, or build with a smaller --max-batch"
            )
        context.set_device_memory(self._scratch.pointer, self._scratch.size)
        return context

    def _send(self, name: str, array: Array) -> None:
        target, doing = self.memory[name].pointer, f"{name} to the {self.stage} engine"
        if isinstance(array, DeviceArray):
            self.cuda.copy(target, array.pointer, array.nbytes, "DeviceToDevice", self._stream, doing)
        elif array.nbytes:
            pinned = self._staging(name)
            np.copyto(pinned.view(array.shape, array.dtype), array)
            self.cuda.copy(target, pinned.pointer, array.nbytes, "HostToDevice", self._stream, doing)

    def _launch(self, sized: Sized) -> None:
        taken = sized.again.run(lambda: bool(sized.context.execute_async_v3(self._stream)), capture=self.capturable)
        if sized.again.refused and self.capturable:
            self.capturable = False
            _log.warning("the %s engine cannot be captured as a CUDA graph (%s); it runs without", self.stage, self._logger.last)
        if not taken:
            doing = f"the {self.stage} engine"
            self.cuda.wait(self._stream, doing)  # of a GPU that is gone, CUDA knows more than TensorRT
            raise StageError(
                f"{doing} failed ({self._logger.last or 'no reason given'}): start the run again; if it stays, {self._remedy}"
            )

    def _receive(self, shapes: dict[str, Shape], outputs: dict[str, Array], batch: int, start: int, on_gpu: bool) -> None:
        """Rows of outputs to their places in the whole; returns when they are there."""
        doing = f"outputs of the {self.stage} engine"
        for name, shape in shapes.items():
            kind, source, size = self.kinds[name], self.memory[name].pointer, tensor_bytes(shape, self.kinds[name])
            if name not in outputs:
                outputs[name] = self._make((batch, *shape[1:]), kind, doing, on_gpu)
            target = outputs[name]
            if isinstance(target, DeviceArray):
                part = target.rows(start, start + shape[0])
                self.cuda.copy(part.pointer, source, size, "DeviceToDevice", self._stream, doing)
            else:
                self.cuda.copy(self._staging(name).pointer, source, size, "DeviceToHost", self._stream, doing)
        self.cuda.wait(self._stream, doing)
        for name, shape in shapes.items():
            target = outputs[name]
            if not isinstance(target, DeviceArray):
                np.copyto(target[start : start + shape[0]], self._staging(name).view(shape, self.kinds[name]))

    def _make(self, shape: Shape, kind: np.dtype[Any], doing: str, on_gpu: bool) -> Array:
        if not on_gpu:
            return np.empty(shape, kind)
        pointer, keeper = self.cuda.lend(tensor_bytes(shape, kind), doing)
        return DeviceArray(self.cuda, pointer, shape, kind, keeper)

    def _staging(self, name: str) -> PinnedMemory:
        """Page-locked memory as large as the tensor can be, made when the host first reads or writes it."""
        if name not in self._pinned:
            self._pinned[name] = PinnedMemory(self.cuda, self.memory[name].size, f"{name} of the {self.stage} engine")
        return self._pinned[name]


def _batch_axis(spec: TensorSpec) -> int | None:
    """Where the batch is; the first axis where it is a constant. None for what is the same for the whole batch: a scalar, a bank."""
    if "batch" in spec.shape:
        return spec.shape.index("batch")
    return 0 if spec.shape and isinstance(spec.shape[0], int) else None


def _rows(array: Array, axis: int | None, start: int, stop: int) -> Array:
    if axis is None:
        return array
    if isinstance(array, DeviceArray):
        assert axis == 0, "what lies on the GPU has its batch first"
        return array.rows(start, stop)
    part = array[(slice(None),) * axis + (slice(start, stop),)]
    return part


def tensor_bytes(shape: Shape, kind: np.dtype[Any]) -> int:
    """Of a tensor that lies in one piece."""
    return int(np.prod(shape, dtype=np.int64)) * kind.itemsize


def _shown(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def open_engine_of(bundle: Bundle, stage: str, spec: GraphSpec, settings: StageSettings) -> TrtEngine:
    """The engine of one graph of a bundle.

    Raises:
        SetupError: no GPU, no TensorRT, no engine that is for both, or too little memory.
    """
    cuda = Cuda(settings.cuda_context)
    library, file = find_engine(bundle, stage, spec, cuda, settings.engines)
    return TrtEngine(cuda, library, file, stage, spec, remedy(bundle))
