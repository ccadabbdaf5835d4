"""The learning rate over a run: DeepSpeed's WarmupDecayLR (B.2), and which examples a process sees when."""

from dataclasses import dataclass

from agvas_core.contract.errors import UsageError
from agvas_core.train.fit.config import FitConfig

__all__ = ["Shares", "learning_rate"]


def learning_rate(config: FitConfig, step: int) -> float:
    """Of step ``step``, counted from 0: linear up over ``warmup_steps``, then linear down to 0 after the last step.

    DeepSpeed's own begins one step earlier, with a step of rate 0 that moves nothing.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    left = (config.steps - step) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * max(0.0, min(1.0, left))


@dataclass(frozen=True)
class Shares:
    """A step's batch over the processes, and over the parts that each of them accumulates.

    Process r of W has examples r b/W to (r + 1) b/W of the step, in parts of ``micro_batch``: any number of processes sees the same
    examples in the same step.
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
        """The examples of this process's ``number``-th part, counted from the start of the run."""
        step, part = divmod(number, self.accumulation)
        first = step * self.batch + self.rank * (self.batch // self.world_size) + part * self.micro_batch
        return range(first, first + self.micro_batch)
