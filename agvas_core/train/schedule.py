"""The schedule of a run: phases, steps, which images a process sees in which part of a step, and the learning rate."""

import math
from dataclasses import dataclass
from itertools import accumulate

from agvas_core.contract.errors import UsageError
from agvas_core.train.config import Phase, TrainConfig

__all__ = ["Plan", "Shares", "Span", "learning_rate"]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of step ``step``, counted from 0: linear up over ``warmup_steps``, then down as ``config.schedule`` says.

    DeepSpeed's WarmupDecayLR begins one step earlier, with a step of rate 0 that moves nothing.
    """
    steps = sum(config.phase_steps)
    if config.schedule == "cosine":  # from the first step on, times the warm-up
        warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
        return config.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    left = (steps - step) / max(1, steps - config.warmup_steps)
    return config.learning_rate * max(0.0, min(1.0, left))


@dataclass(frozen=True)
class Shares:
    """A step's batch over the processes, and over the parts that each of them accumulates.

    Process r of W has images r b/W to (r + 1) b/W of the step, in parts of ``micro_batch``: any number of processes sees the same images
    in the same step.
    """

    batch: int
    micro_batch: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        per_round = self.micro_batch * self.world_size
        if self.batch % per_round:
            fitting = [size for size in range(1, self.batch + 1) if self.batch % (size * self.world_size) == 0]
            remedy = (
                f"micro_batch can be {', '.join(map(str, fitting))}" if fitting else f"make it a multiple of {self.world_size}"
            )
            raise UsageError(
                f"a batch of {self.batch} cannot be shared by {self.world_size} processes with micro_batch {self.micro_batch}: {remedy}"
            )

    @property
    def accumulation(self) -> int:
        """Parts of a step on each process."""
        return self.batch // (self.micro_batch * self.world_size)

    def part(self, number: int) -> range:
        """The images of this process's ``number``-th part, counted from the first step with these shares."""
        step, part = divmod(number, self.accumulation)
        first = step * self.batch + self.rank * (self.batch // self.world_size) + part * self.micro_batch
        return range(first, first + self.micro_batch)


@dataclass(frozen=True)
class Span:
    """One phase in its run."""

    index: int
    phase: Phase
    first_step: int
    first_image: int
    first_part: int
    shares: Shares


class Plan:
    """The phases of a run on one process, with the numbers of their steps, images and parts."""

    def __init__(self, train: TrainConfig, rank: int = 0, world_size: int = 1) -> None:
        phases, steps = train.plan_phases, train.phase_steps
        shares = [Shares(one.batch, train.micro_batch_of(one.batch, world_size), rank, world_size) for one in phases]
        starts = [
            accumulate((count * each for count, each in zip(steps, sizes, strict=True)), initial=0)
            for sizes in ((1,) * len(phases), [one.batch for one in phases], [one.accumulation for one in shares])
        ]
        self.spans = tuple(
            Span(index, phase, first_step, first_image, first_part, share)
            for index, (phase, share, first_step, first_image, first_part) in enumerate(
                zip(phases, shares, *starts, strict=False)
            )
        )
        self.steps = sum(steps)
        self.parts = sum(count * one.accumulation for count, one in zip(steps, shares, strict=True))

    def span(self, step: int) -> Span:
        """The phase that a step is in, counted from 0."""
        return next(span for span in reversed(self.spans) if span.first_step <= step)

    def images_before(self, step: int) -> int:
        """That all processes have seen in the first ``step`` steps."""
        span = self.span(step)
        return span.first_image + (step - span.first_step) * span.phase.batch

    def parts_before(self, step: int) -> int:
        """That this process has seen in the first ``step`` steps."""
        span = self.span(step)
        return span.first_part + (step - span.first_step) * span.shares.accumulation

    def part(self, number: int) -> tuple[Span, int, range]:
        """Phase, step and images of this process's ``number``-th part, all counted from the start of the run."""
        span = next(span for span in reversed(self.spans) if span.first_part <= number)
        within = number - span.first_part
        images = span.shares.part(within)
        step = span.first_step + within // span.shares.accumulation
        return span, step, range(span.first_image + images.start, span.first_image + images.stop)
