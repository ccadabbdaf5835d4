"""Pictures that are in memory as a source: NumPy arrays, images of Pillow, tensors of torch."""

import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.contract.images.metadata import to_srgb
from agvas_core.contract.images.rare import pillow_image
from agvas_core.contract.images.rgb import to_rgb
from agvas_runtime.images.frame import Frame

__all__ = ["ArraySource", "is_pillow", "is_tensor"]

Array = NDArray[np.generic]

CHANNELS = (1, 3, 4)  # of a tensor whose channels come first


def is_pillow(item: object) -> bool:
    """Whether it is an image of Pillow."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(item, module.Image)


def is_tensor(item: object) -> bool:
    """Whether it is a tensor of torch, which is not imported for that: where there is a tensor, it is imported."""
    module = sys.modules.get("torch")
    return module is not None and isinstance(item, module.Tensor)


class ArraySource:
    """Pictures in memory: one, a batch, or an iterable of them and of Frames.

    * array: grey [H, W], RGB [H, W, 3], RGBA [H, W, 4]; uint8, uint16, float 0..1 or bool; ``rgb`` has the rules; a batch is [N, H, W, C]
    * image of Pillow: any mode, turned as EXIF says
    * tensor of torch, on any device: [C, H, W] as torchvision has it, or [H, W, C]; a batch is [N, C, H, W] or [N, H, W, C]

    Frames are named ``array-000007``; a Frame keeps its name, an image of Pillow that of its file.
    """

    live = False

    def __init__(self, arrays: Any, *, every: int = 1, bits: int | None = None) -> None:
        if every < 1:
            raise UsageError(f"every is {every}; 1 is the least: 1 reads every frame")
        self.notes: list[str] = []
        if is_tensor(arrays):
            arrays = _array_of_tensor(arrays)
        alone = is_pillow(arrays) or (isinstance(arrays, np.ndarray) and arrays.ndim < 4)
        self._arrays: Iterable[Any] = [arrays] if alone else arrays
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

    def _frame(self, item: object, number: int, index: int) -> Frame:
        if isinstance(item, Frame):
            return dataclasses.replace(item, index=index)
        name = str(getattr(item, "filename", "") or f"array-{number:06d}") if is_pillow(item) else f"array-{number:06d}"
        if not (isinstance(item, np.ndarray) or is_pillow(item) or is_tensor(item)):
            raise UsageError(
                f"item {number} of the source is {type(item).__name__}; arrays, images of Pillow, tensors of torch and frames can be "
                "mixed, nothing else"
            )
        start = time.perf_counter()
        try:
            image = self._rgb(item)
        except ImageError as error:
            return Frame(name, index, error=error)
        return Frame(name, index, image=image, read_ms=(time.perf_counter() - start) * 1000)

    def _rgb(self, item: Any) -> NDArray[np.uint8]:
        """RGB uint8 [H, W, 3] of one picture."""
        if is_pillow(item):
            pixels, profile = pillow_image(item)
            image = to_rgb(pixels, bits=self._bits)
            return to_srgb(image, profile, None) if profile else image
        return to_rgb(_array_of_tensor(item) if is_tensor(item) else item, bits=self._bits)

    def close(self) -> None:
        """Nothing to do."""

    def __enter__(self) -> "ArraySource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _array_of_tensor(tensor: Any) -> Array:
    """A tensor as an array on the CPU, channels last: [H, W], [H, W, C] or [N, H, W, C]."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.element_size() < 4:
        tensor = tensor.float()  # NumPy has no bfloat16
    array: Array = tensor.numpy()
    if array.ndim in (3, 4) and array.shape[-3] in CHANNELS:
        array = np.moveaxis(array, -3, -1)
    return array
