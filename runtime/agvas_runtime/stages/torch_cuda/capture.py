"""CUDA graphs by shape: a function of tensors, captured once and launched with one call from then on."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Final

import torch
from torch import Tensor

__all__ = ["Captured", "Graphs"]

MOST: Final = 8
"""Graphs that are kept; each holds the memory of one run."""
AT_COMING: Final = 2
"""A shape is captured when it comes again: pictures of ever new sizes are not captured for nothing."""
REMEMBERED: Final = 1000

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
    """Captured functions by key and shapes, of which the most recently used are kept, and with each its key.

    Args:
        stream: on which all of them run. None, on a CPU, runs every function as it is.
    """

    def __init__(self, stream: torch.cuda.Stream | None, most: int = MOST) -> None:
        self._stream, self._most = stream, most
        self._captured: OrderedDict[Hashable, Captured] = OrderedDict()
        self._seen: Counter[Hashable] = Counter()

    def run(self, key: Hashable, function: Function, *inputs: Tensor) -> tuple[Tensor, ...]:
        """``function(*inputs)``; the results are good until the next run."""
        if self._stream is None:
            return function(*inputs)
        at = key, tuple(given.shape for given in inputs)
        if (captured := self._captured.get(at)) is None:
            if len(self._seen) > REMEMBERED:
                self._seen.clear()
            self._seen[at] += 1
            if self._seen[at] < AT_COMING:
                return function(*(given.to(self._stream.device, non_blocking=True) for given in inputs))
            while len(self._captured) >= self._most:
                self._captured.popitem(last=False)
            captured = self._captured[at] = Captured(function, [given.to(self._stream.device) for given in inputs], self._stream)
        self._captured.move_to_end(at)
        return captured(*inputs)

    def __len__(self) -> int:
        return len(self._captured)
