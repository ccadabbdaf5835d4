"""The record of a profile: one JSON file, validated when it is read back for a comparison.

Milliseconds, bytes, FLOP (a multiply-add counts two), images per second; every quantile is a measured value, never interpolated.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, ValidationError

from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import StrictModel
from agvas_runtime.pipeline.batching import Counts

__all__ = [
    "MAX_SERIES",
    "NOT_SAID",
    "SCHEMA_VERSION",
    "GpuSample",
    "InUse",
    "LineAnswer",
    "Machine",
    "Offered",
    "Overhead",
    "Profile",
    "Quantiles",
    "StageWork",
    "counts_in_words",
    "read",
]

SCHEMA_VERSION = 3  # 2: times on the device, whose limits they are; 3: counts
MAX_SERIES = 5000  # values of a series that a profile keeps
NOT_SAID = "not said"  # what an older profile does not have


class Quantiles(StrictModel):
    """Of milliseconds; p999 is the largest value where there are fewer than a thousand."""

    count: int
    mean: float
    min: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Each quantile is the smallest measured value that so large a share is not above."""
        ranked = np.asarray(values, np.float64)
        p50, p90, p99, p999 = (float(np.quantile(ranked, share, method="inverted_cdf")) for share in (0.5, 0.9, 0.99, 0.999))
        return cls(
            count=len(ranked),
            mean=float(ranked.mean()),
            min=float(ranked.min()),
            p50=p50,
            p90=p90,
            p99=p99,
            p999=p999,
            max=float(ranked.max()),
        )


class Machine(StrictModel):
    """Where it was measured, and what that machine can do."""

    cpu: str
    cores: int
    memory_gb: float
    system: str
    matmul_gflops: float | None
    """Best rate of a float32 matrix product, GFLOP/s; None where it was not measured."""
    copy_gbs: float | None
    """Best rate of a memory copy, bytes read plus bytes written, GB/s."""
    limits_of: str = "CPU, float32"
    """What the two rates were measured on."""
    load_before: float
    """How many processes wanted a core, averaged over a minute, before we began; above 0.5 other processes were busy."""
    gpu: str
    """Its name and driver, or why none was looked at."""


class GpuSample(StrictModel):
    """What NVML said at one moment."""

    at_s: float
    clock_mhz: int
    power_w: float
    temperature_c: int
    memory_mb: float
    utilisation: int


class StageWork(StrictModel):
    """What a stage has to do for one frame, and how long that takes at best."""

    calls: int
    flop: float
    weight_bytes: float
    """Read once a call."""
    io_bytes: float
    """Inputs and outputs of the graph."""
    floor_ms: float | None = None
    """The larger of FLOP at the measured matrix rate and bytes at the measured copy rate."""
    share: float | None = None
    """floor_ms over the stage's median: 1 is as fast as the machine can."""
    bound: Literal["compute", "memory"] | None = None


class Overhead(StrictModel):
    """One frame through ``segment`` against its graphs run one after the other with nothing between, taken in turns."""

    frame_ms: float
    graphs_ms: float
    share: float
    """Median of frame over graphs, less one: 0.05 is five per cent on top."""
    cpu_share: float | None = None
    """The same of CPU time, all threads together, by the least of each: it hardly depends on what else runs."""
    pairs: int


class Offered(StrictModel):
    """Frames that came at a fixed rate; a latency counts from when the frame was due, so waiting counts."""

    offered_per_s: float
    achieved_per_s: float
    latency: Quantiles


class LineAnswer(StrictModel):
    """Can this line run at this rate?"""

    rate_per_s: float
    deadline_ms: float
    soak_s: float
    """For how long it was tried."""
    latency: Quantiles
    late: int
    """Verdicts after the deadline."""
    backlog: int
    """Frames that were due and not yet judged when the last one came."""
    held: bool
    reason: str


class InUse(StrictModel):
    """Counts that were in use."""

    tiles: int
    """A launch."""
    ahead: int
    """Passes that vision makes ahead."""
    tuned: str | None = None
    """When they were measured; None of the defaults."""

    @classmethod
    def of(cls, counts: Counts) -> Self:
        """Those of a segmenter."""
        return cls(tiles=counts.tiles, ahead=counts.ahead, tuned=counts.tuned)

    def __str__(self) -> str:
        return str(Counts(self.tiles, self.ahead))


class Profile(StrictModel):
    """Everything that was measured."""

    schema_version: int = SCHEMA_VERSION
    tool: Literal["agvas profile"] = "agvas profile"
    agvas: str
    created: str
    command: str
    bundle: str
    backend: str
    mode: str
    threads: int | None
    machine: Machine
    native: str | None = None
    """The native core: instruction set, threads, CUDA; or that NumPy and OpenCV did its work. None in profiles that do not say."""
    counts: InUse | None = None
    """None in profiles that do not say."""
    frames: str
    """What was looked at, in words."""
    warmup: int
    load_s: float
    stages: dict[str, Quantiles]
    device: dict[str, Quantiles] = {}
    """On a backend with a stream: one view's copies, stages one by one, and all of them as one launch, by CUDA events."""
    latency: Quantiles
    drift: float
    """Median of the second half over that of the first, less one; beyond 0.1 either way it was no steady state."""
    jitter_ms: float
    """Mean difference between one frame's latency and the next one's."""
    rate_per_s: float
    """Frames per second, one after the other."""
    overlapped_per_s: float | None = None
    """The same where the stages of consecutive frames overlap; None where the counts say one after the other."""
    cores_used: float
    """CPU seconds per second."""
    peak_memory_mb: float
    work: dict[str, StageWork] = {}
    overhead: Overhead | None = None
    offered: list[Offered] = []
    line: LineAnswer | None = None
    latencies_ms: list[float] = Field(default_factory=list)
    """In the order of measuring; every n-th of very many."""
    gpu: list[GpuSample] = []
    notes: list[str] = []

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"


def counts_in_words(counts: InUse | None) -> str:
    """How many, and where they come from."""
    if counts is None:
        return NOT_SAID
    return f"{counts} ({f'tuned {counts.tuned}' if counts.tuned else 'not tuned: agvas profile --tune'})"


def read(path: Path) -> Profile:
    """A profile from its JSON file.

    Raises:
        UsageError: no such file, or another kind of file, or a newer schema.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as a profile ({error}): give a profile.json that agvas profile wrote") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UsageError(f"{path} has schema {version}; this agvas reads {SCHEMA_VERSION}: pip install --upgrade agvas")
    try:
        return Profile.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{path} is not a profile ({where}: {first['msg']}): give a profile.json that agvas profile wrote"
        ) from error
