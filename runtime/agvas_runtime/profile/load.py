"""Load generation: frames one after the other or at a fixed rate, and the latency of each."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_runtime.images.frame import Frame
from agvas_runtime.masks.result import Result, Verdict
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.profile.record import LineAnswer, Offered, Overhead, Quantiles
from agvas_runtime.profile.work import recorded
from agvas_runtime.stages.onnx import OnnxGraph

__all__ = ["Samples", "answer_line", "closed_loop", "offer", "overhead"]

TAIL_NEEDS = 1000  # frames before p99.9 is anything but the slowest one

Tick = Callable[[int], None]


@dataclass
class Samples:
    """Latencies in ms, in the order of measuring, and what the stages took of them."""

    latencies: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    elapsed_s: float = 0.0
    cpu_s: float = 0.0

    def add(self, result: Result, ms: float) -> None:
        """Takes note of one frame.

        Raises:
            ImageError: it has no verdict; how long that took says nothing.
        """
        if result.verdict is Verdict.NO_VERDICT:
            raise ImageError(f"{result.name}: {result.error}: profile with pictures that can be judged")
        self.latencies.append(ms)
        for stage, spent in result.timing.items():
            if stage != "total":
                self.stages.setdefault(stage, []).append(spent)

    def quantiles(self) -> dict[str, Quantiles]:
        """Of each stage."""
        return {name: Quantiles.of(values) for name, values in self.stages.items()}

    @property
    def drift(self) -> float:
        """Median of the second half over that of the first, less one."""
        half = len(self.latencies) // 2
        if not half:
            return 0.0
        return float(np.median(self.latencies[half:]) / np.median(self.latencies[:half]) - 1)

    @property
    def jitter_ms(self) -> float:
        """Mean difference between one latency and the next."""
        return float(np.abs(np.diff(self.latencies)).mean()) if len(self.latencies) > 1 else 0.0


def closed_loop(
    segmenter: Segmenter, frames: Sequence[Frame], count: int, samples: Samples, tick: Tick = lambda done: None
) -> None:
    """``count`` frames one after the other, each as soon as the one before is judged; ``samples`` holds what an interrupt leaves."""
    began, began_cpu = time.perf_counter(), time.process_time()
    for number, frame in enumerate(_numbered(frames, count)):
        start = time.perf_counter()
        result = segmenter.segment(frame)
        samples.add(result, (time.perf_counter() - start) * 1000)
        samples.elapsed_s, samples.cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
        tick(number + 1)


def offer(
    segmenter: Segmenter,
    frames: Sequence[Frame],
    rate_per_s: float,
    count: int,
    latencies: list[float],
    tick: Tick = lambda done: None,
    *,
    give_up_ms: float = math.inf,
) -> Offered:
    """``count`` frames at a fixed rate, whether or not the one before is judged; a latency counts from when the frame was due.

    So a slow frame makes those after it late as well, as on a line; a loop that waits for each answer would hide that.

    Args:
        latencies: takes them, so that an interrupt leaves what was measured.
        give_up_ms: ends early where a verdict comes so late.
    """
    began = time.perf_counter() + 0.01
    first = done = began
    with closing(segmenter.stream(_paced(frames, rate_per_s, count, began))) as results:
        for number, result in enumerate(results):
            done = time.perf_counter()
            first = done if number == 0 else first
            if result.verdict is Verdict.NO_VERDICT:
                raise ImageError(f"{result.name}: {result.error}: profile with pictures that can be judged")
            latencies.append((done - began - number / rate_per_s) * 1000)
            tick(number + 1)
            if latencies[-1] > give_up_ms:
                break
    return Offered(
        offered_per_s=rate_per_s, achieved_per_s=(len(latencies) - 1) / max(done - first, 1e-9), latency=Quantiles.of(latencies)
    )


def answer_line(latencies: Sequence[float], rate_per_s: float, deadline_ms: float) -> LineAnswer:
    """Yes or no: did 99.9 % of the verdicts come within the deadline, and was nothing left waiting at the end?"""
    seen = Quantiles.of(latencies)
    period_ms = 1000 / rate_per_s
    backlog = int(max(0.0, (latencies[-1] - deadline_ms) // period_ms + 1)) if latencies[-1] > deadline_ms else 0
    tail, name = (seen.p999, "p99.9") if len(latencies) >= TAIL_NEEDS else (seen.max, "the slowest")
    held = tail <= deadline_ms and backlog == 0
    why = f"{name} is {tail:.0f} ms, {deadline_ms:.0f} ms are allowed"
    if len(latencies) < TAIL_NEEDS:
        why += (
            f"; {len(latencies)} frames are too few for p99.9, {TAIL_NEEDS} are needed: soak for {TAIL_NEEDS / rate_per_s:.0f} s"
        )
    if backlog:
        why += f"; {backlog} frames were waiting at the end"
    return LineAnswer(
        rate_per_s=rate_per_s,
        deadline_ms=deadline_ms,
        soak_s=len(latencies) / rate_per_s,
        latency=seen,
        late=sum(ms > deadline_ms for ms in latencies),
        backlog=backlog,
        held=held,
        reason=why,
    )


def overhead(segmenter: Segmenter, frame: Frame, pairs: int) -> Overhead | None:
    """One frame through ``segment`` and its graphs alone, by turns, so that a busy machine disturbs both; None without ONNX graphs."""
    stages: list[object] = [*segmenter.stages]
    if segmenter.references is not None:
        stages += [stage for stage in (segmenter.references.cells.stage, segmenter.references.head) if stage is not None]
    found = [getattr(stage, "graph", None) for stage in stages]
    graphs = [graph for graph in found if isinstance(graph, OnnxGraph)]
    if len(graphs) < len(found):
        return None
    calls = _calls(segmenter, frame, graphs)
    took = [
        (_spent(lambda: segmenter.segment(frame)), _spent(lambda: [session.run(*call) for session, call in calls]))
        for _ in range(pairs)
    ]
    whole, alone = ([each[at][0] for each in took] for at in (0, 1))
    shares = [a / b for a, b in zip(whole, alone, strict=True)]
    least_whole, least_alone = (min(each[at][1] for each in took) for at in (0, 1))
    return Overhead(
        frame_ms=float(np.median(whole)),
        graphs_ms=float(np.median(alone)),
        share=float(np.median(shares)) - 1,
        cpu_share=least_whole / least_alone - 1,
        pairs=pairs,
    )


def _calls(
    segmenter: Segmenter, frame: Frame, graphs: list[OnnxGraph]
) -> list[tuple[Any, tuple[list[str], dict[str, NDArray[Any]]]]]:
    """What a frame asks of the sessions."""
    found = []
    for graph in graphs:
        with recorded(graph) as recorder:
            segmenter.segment(frame)
        found += [(recorder.session, call) for call in recorder.calls]
    return found


def _numbered(frames: Sequence[Frame], count: int) -> Iterator[Frame]:
    for index, frame in enumerate(islice(cycle(frames), count)):
        yield replace(frame, index=index)


def _paced(frames: Sequence[Frame], rate_per_s: float, count: int, began: float) -> Iterator[Frame]:
    for frame in _numbered(frames, count):
        if (wait := began + frame.index / rate_per_s - time.perf_counter()) > 0:
            time.sleep(wait)
        yield frame


def _spent(work: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds by the clock, and of CPU time."""
    began, worked = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - began) * 1000, (time.process_time() - worked) * 1000
