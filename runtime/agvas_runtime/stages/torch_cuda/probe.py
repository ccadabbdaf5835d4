"""Times by CUDA events, and what the device can do at best. On a CPU, for tests, the clock of the process."""

import time
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from agvas_core.model.encoders.encoders import PixelFeatures
from agvas_runtime.stages.prompt_tokenizer import Words
from agvas_runtime.stages.torch_cuda.engine import Engine, Views

__all__ = ["limits", "stage_times"]

WARMUP: Final = 3  # the second round captures
MATRIX: Final = {"cuda": 8192, "cpu": 256}
COPY_BYTES: Final = {"cuda": 4 << 30, "cpu": 16 << 20}


def stage_times(engine: Engine, views: Views, words: Words, count: int) -> dict[str, list[float]]:
    """Milliseconds of one batch of views, ``count`` times each: copies, the stages one by one, each a graph of its own, and all as one launch.

    What one graph gives is copied into the next one's buffers; that is in the stage which takes it.
    """
    names = ("copy in", "vision", "lmm", "decoder", "copy out", "one launch")
    found: dict[str, list[float]] = {name: [] for name in names}
    eyes, reader, graphs = engine.direct.eyes, engine.direct.reader, engine.graphs
    with engine.turn("the profile"):
        prompt = engine.prompt(words)
        held = [_held(torch.from_numpy(view.copy()), engine) for view in views]

        def vision(semantic: Tensor, pixel: Tensor) -> tuple[Tensor, ...]:
            f_s, features = eyes.semantic(semantic), eyes.pixel(pixel)
            seen = f_s, eyes.align(f_s, features.f_p), features.f_p
            return seen if features.f_detail is None else (*seen, features.f_detail)

        def decoder(anchors: Tensor, f_p: Tensor, f_detail: Tensor | None = None) -> tuple[Tensor, ...]:
            return (eyes.masks(anchors, PixelFeatures(f_p, f_detail)),)

        def lmm(f_s: Tensor, f_align: Tensor) -> tuple[Tensor, ...]:
            return reader(prompt, f_s, f_align)

        def whole(*given: Tensor) -> tuple[Tensor, ...]:
            return engine.direct(prompt, *given)

        for turn in range(WARMUP + count):
            marks = [_mark(engine)]
            shown = [view.to(engine.device, non_blocking=True) for view in held]
            marks.append(_mark(engine))
            f_s, f_align, *maps = graphs.run("profile: vision", vision, *shown)
            marks.append(_mark(engine))
            anchors, _ = graphs.run(("profile: lmm", prompt), lmm, f_s, f_align)
            marks.append(_mark(engine))
            (logits,) = graphs.run("profile: decoder", decoder, anchors, *maps)
            marks.append(_mark(engine))
            _held(logits, engine)
            marks.append(_mark(engine))
            graphs.run(("profile: direct", prompt), whole, *shown)
            marks.append(_mark(engine))
            if engine.stream is not None:
                engine.stream.synchronize()
            if turn >= WARMUP:
                for name, begun, ended in zip(names, marks, marks[1:], strict=False):
                    found[name].append(begun.elapsed_time(ended))
    return found


def limits(engine: Engine) -> tuple[str, float, float]:
    """See ``ProbedVision``; the best of five."""
    device = engine.device
    dtype = torch.float32 if engine.precision == "fp32" else torch.bfloat16
    with engine.turn("the profile"):
        side = MATRIX[device.type]
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        product_ms = min(_spent(engine, lambda: torch.mm(a, b)) for _ in range(5))
        source = torch.ones(COPY_BYTES[device.type] // 4, dtype=torch.int32, device=device)
        target = torch.zeros_like(source)
        copy_ms = min(_spent(engine, lambda: target.copy_(source)) for _ in range(5))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    words = f"{name}, {str(dtype).removeprefix('torch.')}"
    return words, 2e3 * side**3 / product_ms, 2e3 * source.nbytes / copy_ms


class _Clock:
    """An event where there is no stream."""

    def __init__(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, later: "_Clock") -> float:
        return (later.at - self.at) * 1000


def _mark(engine: Engine) -> Any:
    if engine.stream is None:
        return _Clock()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(engine.stream)
    return event


def _spent(engine: Engine, work: Callable[[], object]) -> float:
    begun = _mark(engine)
    work()
    ended = _mark(engine)
    if engine.stream is not None:
        engine.stream.synchronize()
    return max(float(begun.elapsed_time(ended)), 1e-6)


def _held(tensor: Tensor, engine: Engine) -> Tensor:
    """In the CPU's memory, page-locked where there is a GPU."""
    if engine.stream is None:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
