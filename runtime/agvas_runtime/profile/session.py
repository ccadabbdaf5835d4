"""One profile from beginning to end: warm-up, one frame after the other, rates that are offered, a soak, the machine's own limits."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agvas_core import __version__
from agvas_core.contract.command_line import printable
from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.contract.preprocess import scaled_views
from agvas_core.contract.prompts import Mode
from agvas_runtime import native
from agvas_runtime.images.frame import Frame
from agvas_runtime.images.tiling import plan_scales
from agvas_runtime.images.views import make_views
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.profile.load import Samples, answer_line, closed_loop, offer, overhead
from agvas_runtime.profile.machine import GpuSampler, describe_machine, load_average, peak_memory_mb
from agvas_runtime.profile.record import MAX_SERIES, InUse, LineAnswer, Machine, Offered, Profile, Quantiles
from agvas_runtime.profile.work import MAX_COUNTED_BYTES, count_work, with_floors
from agvas_runtime.sources import open_source
from agvas_runtime.stages.protocol import ProbedVision

__all__ = ["OnDevice", "Plan", "frames_in_words", "generated_frame", "load_frames", "profile"]


# What a backend with a stream of its own says of its device: times by the device's clock, and what it can do at best.


@dataclass(frozen=True)
class OnDevice:
    """``times`` of copies and stages; the vision stage to ask for limits, where its backend has a stream."""

    times: dict[str, Quantiles] = field(default_factory=dict)
    vision: ProbedVision | None = None

    @classmethod
    def of(cls, segmenter: Segmenter, frame: Frame, count: int) -> "OnDevice":
        """``count`` rounds of the frame's first view, in direct mode; nothing where a stage runs elsewhere."""
        vision, lmm, decoder = segmenter.stages
        if (
            not isinstance(vision, ProbedVision)
            or vision.joined(lmm, decoder) is None
            or segmenter.question.mode is not Mode.DIRECT
        ):
            return cls()
        assert frame.image is not None
        manifest, (height, width) = segmenter.bundle.manifest, frame.image.shape[:2]
        views = scaled_views(manifest.pixel_view, manifest.scales, height, width)
        look = plan_scales(height, width, views, manifest.tiling, enabled=segmenter.tiled)[0]
        tile = next(iter(look.tiles))
        semantic, pixel = make_views(frame.image[tile.rows, tile.columns], (manifest.semantic_view, look.view))
        found = vision.times(lmm, (semantic.pixels[None], pixel.pixels[None]), segmenter.prompt, count)
        return cls({name: Quantiles.of(ms) for name, ms in found.items()}, vision)

    def limits(self, machine: Machine, wanted: bool) -> Machine:
        """``machine`` with the device's rates in place of the CPU's, where the stages run on one."""
        if self.vision is None or not wanted:
            return machine
        name, flop_per_s, bytes_per_s = self.vision.limits()
        return machine.model_copy(
            update={"matmul_gflops": round(flop_per_s / 1e9, 1), "copy_gbs": round(bytes_per_s / 1e9, 1), "limits_of": name}
        )


MAX_FRAMES_HELD = 64  # decoded, in memory, and taken in turns: what is measured is the model, not the disk
HOPELESS_MS = 60_000  # a line that is a minute behind is lost, and is not soaked for an hour
OFFERED_SHARES = (0.5, 0.7, 0.85, 0.95, 1.05)
"""Of the rate that was reached one frame after the other."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    frames: int = 100
    warmup: int = 10
    offered_frames: int = 24
    """At each of the offered rates; 0 leaves them out."""
    rate_per_s: float | None = None
    soak_s: float = 60.0
    deadline_ms: float | None = None
    """One period of the rate where None."""
    count: bool = True
    """Work and floors, and the overhead over the graphs."""
    pairs: int = 15

    def __post_init__(self) -> None:
        for name, least in (("frames", 2), ("warmup", 0), ("offered_frames", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; {least} is the least")


def load_frames(
    sources: list[str], limit: int = MAX_FRAMES_HELD, bits: int | None = None, note: Callable[[str], None] = print
) -> list[Frame]:
    """Up to ``limit`` decoded pictures of a source; those that cannot be read are left out.

    Args:
        bits: used bits of 16-bit pictures.
        note: called with the source's messages.

    Raises:
        UsageError: no such source, or no picture in it that can be read.
    """
    found = []
    with open_source(tuple(sources), limit=limit, bits=bits) as source:
        for frame in source:
            if frame.error is None:
                found.append(frame)
        for text in source.notes:
            note(text)
    if not found:
        raise UsageError(
            f"no picture in {', '.join(sources)} can be read: give pictures, or leave SOURCE out for a generated one"
        )
    return found


def generated_frame(side_px: int, width_px: int | None = None) -> Frame:
    """A grey textured square, or rectangle, with one dark spot, the same on every machine."""
    height, width = side_px, width_px or side_px
    grey = np.random.default_rng(0).normal(150, 12, (height, width))
    rows, columns = np.ogrid[:height, :width]
    grey[(rows - height * 0.4) ** 2 + (columns - width * 0.6) ** 2 < (height * 0.06) ** 2] -= 90
    pixels: NDArray[np.uint8] = np.clip(grey, 0, 255).astype(np.uint8)[..., None].repeat(3, 2)
    return Frame(f"generated-{side_px}px", 0, image=pixels)


def profile(
    segmenter: Segmenter, frames: list[Frame], plan: Plan, *, facts: dict[str, Any], say: Say = lambda step: None
) -> tuple[Profile, KeyboardInterrupt | None]:
    """Measures; an interrupt ends the measuring, and what was measured until then is the profile, with a note.

    Args:
        facts: how the segmenter was opened: ``backend``, ``threads``, ``load_s``, and the ``command`` that did.

    Raises:
        ImageError: a frame that cannot be judged.
        KeyboardInterrupt: before anything was measured.
    """
    load_before = load_average()
    samples, offered, notes = Samples(), list[Offered](), list[str]()
    line: LineAnswer | None = None
    soaked: list[float] = []
    found_overhead = overlapped = None
    found_on_device = OnDevice()
    stopped: KeyboardInterrupt | None = None
    with GpuSampler() as gpu:
        say("warming up")
        closed_loop(segmenter, frames, plan.warmup, Samples())
        try:
            say("one frame after the other")
            closed_loop(
                segmenter, frames, plan.frames, samples, lambda done: say(f"one frame after the other: {done} of {plan.frames}")
            )
            rate = len(samples.latencies) / samples.elapsed_s
            if plan.offered_frames and segmenter.counts.ahead:
                say("the stages of consecutive frames overlapping")
                overlapped = _stream_rate(segmenter, frames, max(plan.offered_frames, plan.frames // 2))
            found_on_device = OnDevice.of(segmenter, frames[0], plan.pairs)
            if plan.count:
                say("the graphs alone")
                found_overhead = overhead(segmenter, frames[0], plan.pairs)
            for share in OFFERED_SHARES if plan.offered_frames and plan.rate_per_s is None else ():
                say(f"offered {share * max(rate, overlapped or 0):.2f} frames/s")
                offered.append(offer(segmenter, frames, share * max(rate, overlapped or 0), plan.offered_frames, []))
            if plan.rate_per_s is not None:
                _soak(segmenter, frames, plan, soaked, say)
        except KeyboardInterrupt as error:
            if len(samples.latencies) < 2:
                raise
            stopped = error
            notes.append("Interrupted: what follows is what was measured until then.")
        if plan.rate_per_s is not None and soaked:
            line = answer_line(soaked, plan.rate_per_s, plan.deadline_ms or 1000 / plan.rate_per_s)
            offered.append(
                Offered(offered_per_s=plan.rate_per_s, achieved_per_s=_reached(soaked, plan.rate_per_s), latency=line.latency)
            )
    peak_mb = peak_memory_mb()
    say("what the machine can do")
    machine = describe_machine(
        threads=facts["threads"], gpu=gpu.about, load_before=load_before, rates=plan.count and stopped is None
    )
    stages, work = samples.quantiles(), {}
    machine, on_device = found_on_device.limits(machine, plan.count), found_on_device.times
    countable = plan.count and stopped is None and segmenter.bundle.manifest.lmm is not None
    if countable and (too_large := _graph_bytes(segmenter)) <= MAX_COUNTED_BYTES:
        say("counting the work")
        assert frames[0].image is not None
        work = count_work(segmenter, frames[0].image)
        work = with_floors(work, machine, {**on_device, **stages})
    elif countable:
        notes.append(f"The graphs have {too_large / 1e9:.1f} GB; work is counted up to {MAX_COUNTED_BYTES / 1e9:.1f} GB.")
    if abs(samples.drift) > 0.1:
        notes.append(
            f"Not a steady state: the second half was {samples.drift:+.0%} against the first. Warm up longer, or quieten the machine."
        )
    if load_before > 0.5:
        notes.append(
            f"The machine was busy before we began (load {load_before:.1f} on {machine.cores} cores): the figures are too slow."
        )
    every = -(-len(samples.latencies) // MAX_SERIES)
    done = Profile(
        agvas=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=printable(facts["command"]),
        bundle=segmenter.bundle.identity,
        backend=facts["backend"],
        mode=str(segmenter.question.mode),
        threads=facts["threads"],
        machine=machine,
        native=native.describe(),
        counts=InUse.of(segmenter.counts),
        frames=frames_in_words(frames),
        warmup=plan.warmup,
        load_s=facts["load_s"],
        stages=stages,
        device=on_device,
        latency=Quantiles.of(samples.latencies),
        drift=samples.drift,
        jitter_ms=samples.jitter_ms,
        rate_per_s=len(samples.latencies) / samples.elapsed_s,
        overlapped_per_s=overlapped,
        cores_used=samples.cpu_s / samples.elapsed_s,
        peak_memory_mb=peak_mb,
        work=work,
        overhead=found_overhead,
        offered=offered,
        line=line,
        latencies_ms=[round(ms, 3) for ms in samples.latencies[::every]],
        gpu=gpu.samples[:: -(-len(gpu.samples) // MAX_SERIES) or 1],
        notes=notes,
    )
    return done, stopped


def _soak(segmenter: Segmenter, frames: list[Frame], plan: Plan, latencies: list[float], say: Say) -> None:
    assert plan.rate_per_s is not None
    count = max(2, round(plan.rate_per_s * plan.soak_s))
    deadline_ms = plan.deadline_ms or 1000 / plan.rate_per_s
    offer(
        segmenter,
        frames,
        plan.rate_per_s,
        count,
        latencies,
        lambda done: say(f"soak: {done} of {count} frames, the last one after {latencies[-1]:.0f} ms"),
        give_up_ms=deadline_ms + HOPELESS_MS,
    )


def _stream_rate(segmenter: Segmenter, frames: list[Frame], count: int) -> float:
    began = time.perf_counter()
    for result in segmenter.stream(frames[index % len(frames)] for index in range(count)):
        if result.error is not None:
            raise ImageError(f"{result.name}: {result.error}: profile with pictures that can be judged")
    return count / (time.perf_counter() - began)


def _reached(latencies: list[float], rate_per_s: float) -> float:
    """Verdicts per second between the first and the last."""
    between = len(latencies) - 1
    return between / max(between / rate_per_s + (latencies[-1] - latencies[0]) / 1000, 1e-9)


def _graph_bytes(segmenter: Segmenter) -> int:
    folder = segmenter.bundle.folder
    return sum((folder / name).stat().st_size for name in segmenter.bundle.manifest.files if ".onnx" in name)


def frames_in_words(frames: list[Frame]) -> str:
    """How many, how large, and where from."""
    sizes = [frame.image.shape[:2] for frame in frames if frame.image is not None]
    what = frames[0].name if len(frames) == 1 else f"{len(frames)} pictures in turn"
    areas = sorted(set(sizes), key=lambda size: size[0] * size[1])
    span = "{1}x{0} px".format(*areas[0]) + (" to {1}x{0} px".format(*areas[-1]) if len(areas) > 1 else "")
    return printable(f"{what}, {span}, decoded before")
