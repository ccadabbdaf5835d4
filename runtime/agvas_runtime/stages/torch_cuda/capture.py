"""CUDA graphs by shape: a function of tensors, captured once and launched with one call from then on."""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from agvas_runtime.stages.recurring import Recurring

__all__ = ["Captured", "Graphs"]

Function = Callable[..., tuple[Tensor, ...]]


class Captured:
    """``function`` at the shapes of ``inputs``, as a graph with buffers of its own.

    Args:
        stream: that it was warmed up on and is captured on; nothing else may use the GPU through this process meanwhile.
    """

    def __init__(self, function: Function, inputs: Sequence[Tensor], stream: torch.cuda.Stream) -> None:
        self._inputs = [given.clone() for given in inputs]
        with torch.cuda.stream(stream):
            function(*self._inputs)  # libraries choose and load their kernels, which cannot be captured
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._outputs = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Copies and launches on the current stream; what comes back is overwritten by the next call."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._outputs


class Graphs:
    """Captured functions by key and shapes.

    Args:
        stream: on which all of them run. None, on a CPU, runs every function as it is.
    """

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self._stream = stream
        self._captured: Recurring[Captured] = Recurring()  # each holds the memory of one run

    def run(self, key: Hashable, function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
        """``function(*inputs)``; the results are good until the next run."""
        stream = self._stream
        if stream is None:
            return function(*inputs)
        at = key, tuple(given.shape for given in inputs)
        captured = self._captured.get(at, lambda: Captured(function, [given.to(stream.device) for given in inputs], stream))
        if captured is None:
            return function(*(given.to(stream.device, non_blocking=True) for given in inputs))
        return captured(*inputs)

    def __len__(self) -> int:
        return len(self._captured)
