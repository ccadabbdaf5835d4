"""The GPU that torch computes on, or the reason why there is none; and what its errors mean for a frame."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import torch

from agvas_core.contract.errors import ImageError, SetupError, StageError

__all__ = ["PRECISIONS", "Precision", "cuda_errors", "open_device"]

Precision = Literal["fp32", "bf16", "fp8"]
PRECISIONS: Final[tuple[Precision, ...]] = ("fp32", "bf16", "fp8")
_NEEDS: Final = {"fp32": (5, 0), "bf16": (8, 0), "fp8": (8, 9)}  # compute capability
_SINCE: Final = {"fp32": "Maxwell", "bf16": "Ampere", "fp8": "Ada and Hopper"}
_OTHERS: Final = "choose the backend onnx or torch, which run on a CPU"


def open_device(precision: Precision = "bf16", index: int = 0) -> torch.device:
    """The GPU ``index``; never the CPU in its place.

    Raises:
        SetupError: a torch without CUDA, no driver or one that is too old, no such GPU, or one that lacks the precision.
    """
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        raise SetupError(
            f"torch {torch.__version__} is built without CUDA, which torch-cuda needs: install a CUDA build of torch, or {_OTHERS}"
        )
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        count = torch.cuda.device_count()
    except (RuntimeError, AssertionError) as error:  # no driver, or one that is older than this torch
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SetupError(
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU ({first}): see nvidia-smi, update the driver, or {_OTHERS}"
        ) from error
    if not 0 <= index < count:
        raise SetupError(f"GPU {index} is asked for and there are {count}: see nvidia-smi and CUDA_VISIBLE_DEVICES, or {_OTHERS}")
    found = torch.cuda.get_device_capability(index)
    if found < _NEEDS[precision]:
        raise SetupError(
            f"{torch.cuda.get_device_name(index)} (compute capability {found[0]}.{found[1]}) has no {precision}, which GPUs have from "
            f"{_SINCE[precision]} on: take {'torch-cuda in place of torch-cuda-fp8' if precision == 'fp8' else 'another GPU'}, or {_OTHERS}"
        )
    return torch.device("cuda", index)


@contextmanager
def cuda_errors(what: str) -> Iterator[None]:
    """What CUDA raises inside, as what it means for this frame.

    Raises:
        ImageError: the GPU's memory does not hold this frame; the next, smaller one may be judged.
        StageError: the GPU is gone, or a kernel failed; so will all that follow.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        asked = ". ".join(str(error).split(". ")[:2])  # what it is, and how much was asked for
        raise ImageError(
            f"the GPU's memory is full in {what} ({asked}): give smaller images, lower the batch of tiles, or end what else uses the GPU"
        ) from error
    except RuntimeError as error:
        if "CUDA" not in str(error):
            raise
        raise StageError(
            f"the GPU failed in {what} ({str(error).splitlines()[0]}): see nvidia-smi and dmesg, then start the run again"
        ) from error
