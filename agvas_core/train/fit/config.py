"""The ``fit`` table of a preset: how a model is trained on the mixture. The paper's numbers are the defaults."""

from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agvas_core.contract.validation import validated
from agvas_core.data.mixture.config import MixtureConfig
from agvas_core.model.config import ModelConfig
from agvas_core.model.losses import SegmentationWeights

__all__ = ["FitConfig", "MaskWeights", "ValidationConfig", "parse_fit_config", "parse_mixture_config", "run_identity"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MaskWeights(_Part):
    """Weights of eq. 10; see losses.py."""

    bce: float = Field(default=0.5, ge=0)  # sec. 3.2
    dice: float = Field(default=2.0, ge=0)  # sec. 3.2
    positive_weight: float = Field(default=1.0, ge=0)
    dice_on_empty: bool = True

    def weights(self) -> SegmentationWeights:
        """As the loss takes them."""
        return SegmentationWeights(**self.model_dump())


class ValidationConfig(_Part):
    """On what, and how often. Without ``data`` it is what ``mixture.held_out`` keeps."""

    data: Path | None = None
    """A folder as ``agvas eval`` takes it: a set, or several, with masks."""
    every_steps: int = Field(default=1000, ge=1)
    """Besides the end, where it always happens."""
    limit: int | None = Field(default=20, ge=1)
    """At most so many images of each kind of each category; None for all."""


class FitConfig(_Part):
    """One run. Everything that decides the weights; where and how fast it runs stands below ``micro_batch``."""

    seed: int = Field(default=0, ge=0)
    steps: int = Field(default=10_000, ge=1)
    """Optimizer steps. The paper gives none; ours are about what its 30 h on four A100 have room for (docs/training.md)."""
    batch: int = Field(default=80, ge=1)  # sec. 4.1: global
    """Examples of a step, over all processes and accumulated parts."""
    learning_rate: float = Field(default=3e-4, gt=0)  # sec. 4.1
    warmup_steps: int = Field(default=100, ge=0)  # B.2: WarmupDecayLR
    betas: tuple[float, float] = (0.9, 0.95)  # this and the next two: LISA's, whose set-up the paper adopts
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    loss: MaskWeights = MaskWeights()
    text_weight: float = Field(default=1.0, ge=0)  # eq. 11
    """0 where only masks are to be learned: adaptation to a part must not spoil what a model says."""
    flip: bool = False
    """Mirror half of the images left to right. Words of place become wrong: for sets without words only."""
    calibrate: float | None = Field(default=None, gt=0, le=1)
    """After the last step: operating points that leave this share of the good ones among the held-out images (``mixture.held_out``) alone.
    None leaves those that the model had."""
    max_text_tokens: int = Field(default=1024, ge=32)
    """Of an exchange; whole turns are dropped from its end, then it is cut."""
    precision: Literal["bf16", "fp32"] = "bf16"

    micro_batch: int = Field(default=2, ge=1)
    """Examples of a process that pass through the model at once; what is left of the batch is accumulated."""
    gradient_checkpointing: bool = True
    attention: Literal["sdpa", "flash", "eager"] = "sdpa"
    """Of the language model. ``flash`` needs the package flash-attn and a GPU."""
    deepspeed: str | None = None
    """``zero2`` or ``zero3``, which ship with the package, or the path of a DeepSpeed configuration of one's own."""
    workers: int = Field(default=2, ge=0)
    log_every: int = Field(default=10, ge=1)
    save_every: int = Field(default=500, ge=1)
    wandb: str | None = None
    """Project at Weights & Biases that scalars also go to; never without being asked."""
    validation: ValidationConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is no multiple of micro_batch {self.micro_batch}: change one of them")
        if self.warmup_steps >= self.steps and self.steps > 1:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} leave nothing of {self.steps} steps: fewer of them, or more steps"
            )
        return self


# What may change when a run goes on elsewhere: speed, memory and what is written down. The last bits of sums may change with them.
_FREE: Final = frozenset(
    {
        "micro_batch",
        "gradient_checkpointing",
        "attention",
        "deepspeed",
        "workers",
        "log_every",
        "save_every",
        "wandb",
        "validation",
    }
)


def run_identity(
    model: ModelConfig, mixture: MixtureConfig, fit: FitConfig, records: str, base: dict[str, Any]
) -> dict[str, Any]:
    """What decides a run's weights, for the state that it is resumed from.

    Args:
        records: ``Mixture.fingerprint``; where the sets lie may change, what they hold may not.
        base: of ``checkpoint.base_digests``.
    """
    sets = [one.model_dump(mode="json", exclude={"path"}) for one in mixture.sets]
    return {
        "model": model.model_dump(mode="json", exclude={"decision", "tiling"}),
        "mixture": mixture.model_dump(mode="json", exclude={"sets", "templates"}) | {"sets": sets, "records": records},
        "fit": fit.model_dump(mode="json", exclude=set(_FREE)),
        "base": {part: digest["sha256"] for part, digest in base.items()},
    }


def parse_fit_config(table: dict[str, Any]) -> FitConfig:
    """Validates the ``fit`` table.

    Raises:
        UsageError: names the key, and for an unknown key the nearest that exists.
    """
    return validated(FitConfig, table, "fit configuration")


def parse_mixture_config(table: dict[str, Any]) -> MixtureConfig:
    """Validates the ``mixture`` table; raises as :func:`parse_fit_config`."""
    return validated(MixtureConfig, table, "mixture configuration")
