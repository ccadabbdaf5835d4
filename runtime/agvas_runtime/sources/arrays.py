"""NumPy arrays as a source."""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sized

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.contract.images.rgb import to_rgb
from agvas_runtime.images.frame import Frame

__all__ = ["ArraySource"]

Array = NDArray[np.generic]


class ArraySource:
    """One array (grey [H, W], RGB [H, W, 3], RGBA [H, W, 4]), a batch [N, H, W, C], or an iterable of arrays and Frames.

    uint8, uint16, float 0..1 or bool; ``rgb`` has the rules. Frames are named ``array-000007``; a Frame keeps its name.
    """

    live = False

    def __init__(self, arrays: Array | Iterable[Array | Frame], *, every: int = 1, bits: int | None = None) -> None:
        if every < 1:
            raise UsageError(f"every is {every}; 1 is the least: 1 reads every frame")
        self.notes: list[str] = []
        self._arrays: Iterable[Array | Frame] = [arrays] if isinstance(arrays, np.ndarray) and arrays.ndim < 4 else arrays
        self._every, self._bits = every, bits

    @property
    def total(self) -> int | None:
        """None for an iterator."""
        return -(-len(self._arrays) // self._every) if isinstance(self._arrays, Sized) else None

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        for number, item in enumerate(self._arrays):
            if number % self._every == 0:
                yield self._frame(item, number, index)
                index += 1

    def _frame(self, item: Array | Frame, number: int, index: int) -> Frame:
        if isinstance(item, Frame):
            return dataclasses.replace(item, index=index)
        name = f"array-{number:06d}"
        if not isinstance(item, np.ndarray):
            raise UsageError(
                f"item {number} of the source is {type(item).__name__}; arrays and frames can be mixed, nothing else"
            )
        start = time.perf_counter()
        try:
            image = to_rgb(item, bits=self._bits)
        except ImageError as error:
            return Frame(name, index, error=error)
        return Frame(name, index, image=image, read_ms=(time.perf_counter() - start) * 1000)

    def close(self) -> None:
        """Nothing to do."""

    def __enter__(self) -> "ArraySource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
