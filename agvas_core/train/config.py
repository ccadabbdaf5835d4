"""The ``train`` table of a preset."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agvas_core.contract.validation import validated
from agvas_core.data.synthetic.dialogue import Task
from agvas_core.data.synthetic.synthesis import DEFAULT_SPEC, SynthesisSpec
from agvas_core.model.losses import SegmentationWeights

__all__ = ["CalibrationConfig", "Cut", "LossConfig", "Phase", "TrainConfig", "parse_train_config"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cut(_Part):
    """How one batch's images come about: drawn at ``canvas``, then cropped or resized to ``size`` (height, width in px)."""

    weight: float = Field(gt=0)
    canvas: tuple[int, int]
    size: tuple[int, int]
    how: Literal["crop", "resize"]


class Phase(_Part):
    """A part of the run."""

    share: float = Field(gt=0, le=1)
    """Of the images of the run; the shares of all phases are scaled to add up to 1."""
    batch: int = Field(gt=0, le=1024)
    """Images of a step; the bound is that of batches.py's numbering."""
    cuts: tuple[Cut, ...]
    tasks: dict[Task, float] | None = None
    """Chance of each task in this phase; those of the run where None."""


class LossConfig(_Part):
    """Weights of eq. 10, and what to do with them (losses.py)."""

    bce: float = 0.5  # sec. 3.2
    dice: float = 2.0  # sec. 3.2
    positive_weight: float = 1.0
    dice_on_empty: bool = True
    kinds: float = Field(default=0.0, ge=0)
    """Weight of the heads that name in training what features show and instructions ask for (kinds.py)."""

    def weights(self) -> SegmentationWeights:
        """As the loss takes them."""
        return SegmentationWeights(**self.model_dump(exclude={"kinds"}))


class CalibrationConfig(_Part):
    """What bias and operating points are set on after training (calibration.py)."""

    images: int = Field(default=360, ge=2)
    sizes: tuple[tuple[int, int], ...] = Field(
        default=((320, 320), (256, 384), (512, 512), (480, 320), (640, 640), (256, 640)), min_length=1
    )
    """Height and width in px of the whole frames, in turn."""
    normal_fraction: float = Field(default=0.5, gt=0, lt=1)
    """Good images; they alone set the strict point."""
    balanced_iou_nor: float = Field(default=0.8, gt=0, le=1)
    """The balanced point gives the highest IoU_ano that leaves this share of good images alone."""
    strict_iou_nor: float = Field(default=0.95, gt=0, lt=1)
    """Good images that the strict point leaves alone."""
    kept_px: int = Field(default=384, ge=64)
    """Maps are kept with the longer side at this, at most."""


class TrainConfig(_Part):
    """A run from scratch on procedural images."""

    seed: int = 0
    images: int = Field(gt=0)
    learning_rate: float = 3e-4  # sec. 4.1
    rates: dict[str, float] = {}
    """Factors on ``learning_rate`` for parts of the model by the beginning of their names; the longest that fits counts."""
    fresh: tuple[str, ...] = ()
    """Parts that a start from a checkpoint does not take over, by the beginning of their names."""
    weight_decay: float = 0.0
    warmup_steps: int = 100  # sec. B.2
    clip_norm: float = 1.0  # this and the moving average are ours; the paper names neither
    ema_decay: float = Field(default=0.995, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the products in the forward pass; weights, losses and the prior stay in float32."""
    workers: int = Field(default=1, ge=0)
    loss: LossConfig = LossConfig()
    calibration: CalibrationConfig | None = None
    """None leaves the biases as trained."""
    phases: tuple[Phase, ...]
    held_out_families: tuple[str, ...] = ()
    """Texture families that are never shown, kept to measure on."""
    tasks: dict[Task, float] = {}
    """Chance of each task of dialogue.py, for each image; the direct exchange always comes."""
    scenes: dict[Literal["texture", "object", "frame", "organic"], float] = {}
    """Shares of the scenes that the generator draws; its own where none is named, 0 for those left out where any is."""
    large_fraction: float = Field(default=DEFAULT_SPEC.large_fraction, ge=0, le=1)
    """Of defects: how many cover 5 to 30 % of the part."""

    @property
    def synthesis(self) -> SynthesisSpec:
        """What kinds of image are drawn."""
        scenes = dict.fromkeys(("texture", "object", "frame", "organic"), 0.0) | self.scenes if self.scenes else {}
        return SynthesisSpec.model_validate(
            {"held_out_families": self.held_out_families, "large_fraction": self.large_fraction, **scenes}
        )

    def schedule(self) -> list[tuple[int, Phase]]:
        """First step of each phase, and the phase; the last one ends at ``steps()``."""
        total = sum(phase.share for phase in self.phases)
        rows, step = [], 0
        for phase in self.phases:
            rows.append((step, phase))
            step += max(1, round(self.images * phase.share / total / phase.batch))
        return rows

    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        total = sum(phase.share for phase in self.phases)
        return sum(max(1, round(self.images * phase.share / total / phase.batch)) for phase in self.phases)


def parse_train_config(table: dict[str, Any]) -> TrainConfig:
    """Validates the table.

    Raises:
        UsageError: names the key, and for an unknown key the nearest that exists.
    """
    return validated(TrainConfig, table, "training configuration")
