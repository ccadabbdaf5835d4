"""The profile of a run of ``agvas-run`` as it happens: what its frames took, beside what it was run for."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime

from agvas_core import __version__
from agvas_runtime import native
from agvas_runtime.masks.result import Result, Verdict
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.profile.load import Samples
from agvas_runtime.profile.machine import GpuSampler, describe_machine, load_average, peak_memory_mb
from agvas_runtime.profile.page import render
from agvas_runtime.profile.record import MAX_SERIES, InUse, Profile, Quantiles

__all__ = ["OwnRun"]


class OwnRun:
    """Takes note of each result, between ``__enter__`` and ``__exit__``; the first ones are the warm-up, and do not count.

    A frame's latency is what its stages took, reading included; where stages of consecutive frames overlap, more frames come in a second.

    Args:
        overlap: whether they may.
        warmup: frames that do not count.
    """

    def __init__(self, segmenter: Segmenter, *, overlap: bool, load_s: float, warmup: int = 3) -> None:
        self._segmenter, self._load_s, self._warmup = segmenter, load_s, warmup
        self._overlap = overlap and segmenter.counts.ahead > 0
        self._gpu, self._samples = GpuSampler(), Samples()
        self._load_before, self._left, self._unjudged = load_average(), warmup, 0
        self._began = self._began_cpu = 0.0

    def __enter__(self) -> "OwnRun":
        self._gpu.__enter__()
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._gpu.__exit__()

    def add(self, result: Result) -> None:
        """The next result; one without a verdict is counted, and its time is not."""
        if self._left:
            self._left -= 1
            self._start()
        elif result.verdict is Verdict.NO_VERDICT:
            self._unjudged += 1
        else:
            self._samples.add(result, result.timing["total"])
            self._samples.elapsed_s = time.perf_counter() - self._began
            self._samples.cpu_s = time.process_time() - self._began_cpu

    def files(self, facts: Mapping[str, str], *, backend: str, threads: int | None) -> dict[str, str]:
        """``profile.json`` and ``profile.html``, or nothing where too few frames were judged."""
        if len(self._samples.latencies) < 2:
            return {}
        done = self._profile(facts, backend, threads)
        return {"profile.json": done.to_json(), "profile.html": render(done)}

    def _start(self) -> None:
        self._began, self._began_cpu = time.perf_counter(), time.process_time()

    def _profile(self, facts: Mapping[str, str], backend: str, threads: int | None) -> Profile:
        samples, gpu = self._samples, self._gpu
        every = -(-len(samples.latencies) // MAX_SERIES)
        rate = (len(samples.latencies) + self._unjudged) / samples.elapsed_s
        notes = [
            "Measured in a run of agvas-run: files were read and results written meanwhile. agvas profile measures without them."
        ]
        if self._unjudged:
            notes.append(f"{self._unjudged} images had no verdict; their times are not in the latencies.")
        return Profile(
            agvas=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=facts["command"],
            bundle=self._segmenter.bundle.identity,
            backend=backend,
            mode=str(self._segmenter.question.mode),
            threads=threads,
            machine=describe_machine(threads=threads, gpu=gpu.about, load_before=self._load_before, rates=False),
            native=native.describe(),
            counts=InUse.of(self._segmenter.counts),
            frames=f"{facts['source']}, {len(samples.latencies) + self._unjudged} images as they came",
            warmup=self._warmup,
            load_s=self._load_s,
            stages=samples.quantiles(),
            latency=Quantiles.of(samples.latencies),
            drift=samples.drift,
            jitter_ms=samples.jitter_ms,
            # Of frames that overlapped: what their latencies come to, one after the other.
            rate_per_s=1000 * len(samples.latencies) / sum(samples.latencies) if self._overlap else rate,
            overlapped_per_s=rate if self._overlap else None,
            cores_used=samples.cpu_s / samples.elapsed_s,
            peak_memory_mb=peak_memory_mb(),
            latencies_ms=[round(ms, 3) for ms in samples.latencies[::every]],
            gpu=gpu.samples[:: -(-len(gpu.samples) // MAX_SERIES) or 1],
            notes=notes,
        )
