"""The ``train`` table of a preset: how a model is trained, on generated images or on data sets. The paper's numbers are the defaults."""

from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, model_validator

from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import StrictModel, validated
from agvas_core.data.mixture.config import MixtureConfig
from agvas_core.data.synthetic.dialogue import Task
from agvas_core.data.synthetic.synthesis import DEFAULT_SPEC, SynthesisSpec
from agvas_core.model.config import ModelConfig
from agvas_core.model.losses import SegmentationWeights

__all__ = [
    "CalibrationConfig",
    "Cut",
    "LossConfig",
    "Phase",
    "TrainConfig",
    "ValidationConfig",
    "parse_mixture_config",
    "parse_train_config",
    "refuse_old_tables",
    "run_identity",
]

_STEPS: Final = 10_000  # the paper gives none; about what its 30 h on four A100 have room for (docs/training.md)
_BATCH: Final = 80  # sec. 4.1: global
_MICRO_BATCH: Final = 2


class Cut(StrictModel):
    """How one batch's generated images come about: drawn at ``canvas``, then cropped or resized to ``size`` (height, width in px)."""

    weight: float = Field(gt=0)
    canvas: tuple[int, int]
    size: tuple[int, int]
    how: Literal["crop", "resize"]


class Phase(StrictModel):
    """A part of the run. Parts of the model are named by the beginning of their names: ``pixel_encoder.backbone.trunk``."""

    share: float = Field(default=1.0, gt=0)
    """Of the images of the run; the shares of all phases are scaled to add up to 1."""
    batch: int = Field(gt=0)
    """Images of a step, over all processes and accumulated parts."""
    frozen: tuple[str, ...] = ()
    """Parts that do not learn in this phase: no gradient, no optimizer step, no running statistics."""
    rates: dict[str, float] = {}
    """Factors on the learning rate, beside those of the run and before them; the longest name that fits counts."""
    cuts: tuple[Cut, ...] = ()
    """Of generated images; a step takes one of them."""
    tasks: dict[Task, float] | None = None
    """Chance of each task for a generated image in this phase; those of the run where None."""


class LossConfig(StrictModel):
    """Weights of eq. 10 (losses.py), and of what is learned beside it."""

    bce: float = Field(default=0.5, ge=0)  # sec. 3.2
    dice: float = Field(default=2.0, ge=0)  # sec. 3.2
    positive_weight: float = Field(default=1.0, ge=0)
    dice_on_empty: bool = True
    text: Literal["tokens", "sequences"] = "tokens"
    """What eq. 9 is averaged over in a step: its target tokens, as transformers and LISA have it, or its answers, each by its own mean."""
    aux_heads: float = Field(default=0.0, ge=0)
    """Weight of the heads that name in training what features show and instructions ask for (aux_heads.py). Generated images only."""
    image: float = Field(default=1.0, ge=0)
    """Weight of the binary cross-entropy of the image's own score, where the model has the output ``image_logit``."""

    def weights(self) -> SegmentationWeights:
        """As the loss takes them."""
        return SegmentationWeights(**self.model_dump(exclude={"text", "aux_heads", "image"}))


class CalibrationConfig(StrictModel):
    """What the operating points are set on after training (calibration.py): generated images, or the held-out ones of data sets."""

    balanced_iou_nor: float = Field(default=0.8, gt=0, le=1)
    """The balanced point gives the highest IoU_ano that leaves this share of good images alone."""
    strict_iou_nor: float = Field(default=0.95, gt=0, lt=1)
    """Good images that the strict point leaves alone."""
    images: int = Field(default=360, ge=2)
    """This and the next two: of generated images."""
    sizes: tuple[tuple[int, int], ...] = Field(
        default=((320, 320), (256, 384), (512, 512), (480, 320), (640, 640), (256, 640)), min_length=1
    )
    """Height and width in px of the whole frames, in turn."""
    normal_fraction: float = Field(default=0.5, gt=0, lt=1)
    """Good images; they alone set the strict point."""
    kept_px: int = Field(default=384, ge=64)
    """Maps are kept with the longer side at this, at most."""


class ValidationConfig(StrictModel):
    """On what, and how often. Without ``data`` it is what ``mixture.held_out`` keeps."""

    data: Path | None = None
    """A folder as ``agvas eval`` takes it: a set, or several, with masks."""
    every_steps: int = Field(default=1000, ge=1)
    """Besides the end, where it always happens."""
    limit: int | None = Field(default=20, ge=1)
    """At most so many images of each kind of each category; None for all."""


class TrainConfig(StrictModel):
    """One run. What decides the weights first; where and how fast it runs below ``micro_batch``."""

    examples: Literal["generated", "sets"] = "sets"
    """Images that are generated on the way, or those of the data sets of the table ``mixture``."""
    seed: int = Field(default=0, ge=0)
    images: int | None = Field(default=None, ge=1)
    """Length of the run; with ``phases`` it is needed. Instead of ``steps``."""
    steps: int | None = Field(default=None, ge=1)
    """Length of a run without phases, in optimizer steps; 10,000 where neither is given."""
    batch: int | None = Field(default=None, ge=1)
    """Images of a step in a run without phases, over all processes and accumulated parts; 80 where it is not given."""
    phases: tuple[Phase, ...] = ()
    """In their order. None is one phase with everything in it."""
    learning_rate: float = Field(default=3e-4, gt=0)  # sec. 4.1
    schedule: Literal["linear", "cosine"] = "linear"
    """After the warm-up: down to 0 (B.2: WarmupDecayLR), or by a cosine to a hundredth (ours)."""
    warmup_steps: int = Field(default=100, ge=0)  # B.2
    rates: dict[str, float] = {}
    """Factors on ``learning_rate`` for parts of the model by the beginning of their names; the longest that fits counts."""
    fresh: tuple[str, ...] = ()
    """Parts that a start from a checkpoint (``--init``) does not take over, by the beginning of their names."""
    betas: tuple[float, float] = (0.9, 0.95)  # this and the next two: LISA's, whose set-up the paper adopts
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    ema_decay: float | None = Field(default=None, ge=0, lt=1)
    """The checkpoint holds the moving average of the weights; None for the weights themselves, as the paper."""
    loss: LossConfig = LossConfig()
    text_weight: float = Field(default=1.0, ge=0)  # eq. 11
    """0 where only masks are to be learned: adaptation to a part must not spoil what a model says."""
    calibration: CalibrationConfig | None = None
    """None leaves biases and operating points as they are."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the products in the forward pass, and of frozen published weights; trained weights and losses stay in float32."""

    flip: bool = False
    """Of data sets: mirror half of the images left to right. Words of place become wrong: for sets without words only."""
    max_text_tokens: int = Field(default=1024, ge=32)
    """Of an exchange; whole turns are dropped from its end, then it is cut."""

    tasks: dict[Task, float] = {}
    """This and the next three: of generated images. Chance of each task of dialogue.py; the direct exchange always comes."""
    held_out_families: tuple[str, ...] = ()
    """Texture families that are never shown, kept to measure on."""
    scenes: dict[Literal["texture", "object", "frame", "organic"], float] = {}
    """Shares of the scenes that are drawn; the generator's own where none is named, 0 for those left out where any is."""
    large_fraction: float = Field(default=DEFAULT_SPEC.large_fraction, ge=0, le=1)
    """Of defects: how many cover 5 to 30 % of the part."""

    micro_batch: int | None = Field(default=None, ge=1)
    """Images of a process that pass through the model at once; what is left of the batch is accumulated. Where None: 2 of data sets,
    all of generated images."""
    gradient_checkpointing: bool = True
    attention: Literal["sdpa", "flash", "eager"] = "sdpa"
    """Of the language model. ``flash`` needs the package flash-attn and a GPU."""
    deepspeed: str | None = None
    """``zero2`` or ``zero3``, which ship with the package, or the path of a DeepSpeed configuration of one's own."""
    workers: int = Field(default=2, ge=0)
    """Processes that load, or generate, images."""
    log_every: int = Field(default=10, ge=1)
    save_every: int = Field(default=500, ge=1)
    """Steps between saved states."""
    save_minutes: float | None = Field(default=None, gt=0)
    """Besides, when so much time has passed."""
    wandb: str | None = None
    """Project at Weights & Biases that scalars also go to; never without being asked."""
    validation: ValidationConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.images is not None and self.steps is not None:
            raise ValueError(f"images {self.images} and steps {self.steps} both say how long the run is: leave one out")
        if self.phases and (self.steps is not None or self.batch is not None):
            raise ValueError("phases have batches of their own and count images: give images, and leave steps and batch out")
        if self.phases and self.images is None:
            raise ValueError("phases share out images: give images")
        without = [number for number, phase in enumerate(self.phases) if not phase.cuts]
        if self.examples == "generated" and (without or not self.phases):
            raise ValueError(
                f"generated images need cuts in each phase: phases.{without[0] if without else 0} has none; "
                'add cuts, or say examples = "sets"'
            )
        if self.examples == "sets" and any(phase.cuts for phase in self.phases):
            raise ValueError('phases have cuts, which generated images have: say examples = "generated", or leave cuts out')
        if self.examples == "sets" and self.loss.aux_heads:
            raise ValueError(
                f"loss.aux_heads is {self.loss.aux_heads:g}: data sets do not say what the heads learn; leave it out"
            )
        for phase in self.plan_phases:
            if self.micro_batch is not None or self.examples == "sets":
                micro_batch = self.micro_batch or _MICRO_BATCH
                if phase.batch % micro_batch:
                    raise ValueError(f"batch {phase.batch} is no multiple of micro_batch {micro_batch}: change one of them")
        steps = sum(self.phase_steps)
        if self.schedule == "linear" and self.warmup_steps >= steps > 1:
            raise ValueError(f"warmup_steps {self.warmup_steps} leave nothing of {steps} steps: fewer of them, or more steps")
        if self.ema_decay is not None and self.deepspeed is not None:
            raise ValueError("ema_decay does not go with deepspeed, which keeps weights in pieces: leave one out")
        if self.deepspeed is not None and any(phase.frozen for phase in self.phases):
            raise ValueError("phases that freeze parts do not go with deepspeed: leave one out")
        if self.deepspeed is not None and len({phase.batch for phase in self.phases}) > 1:
            raise ValueError("deepspeed needs the same batch in all phases: change one of them")
        return self

    @property
    def plan_phases(self) -> tuple[Phase, ...]:
        """The phases; one of everything where none is named."""
        return self.phases or (Phase(batch=self.batch or _BATCH),)

    @property
    def phase_steps(self) -> tuple[int, ...]:
        """Optimizer steps of each phase."""
        if not self.phases:
            (phase,) = self.plan_phases
            return (self.steps or max(1, round((self.images or _STEPS * phase.batch) / phase.batch)),)
        total, images = sum(phase.share for phase in self.phases), self.images or 0
        return tuple(max(1, round(images * phase.share / total / phase.batch)) for phase in self.phases)

    @property
    def total_images(self) -> int:
        """That the whole run sees, an image that comes again included."""
        return sum(steps * phase.batch for steps, phase in zip(self.phase_steps, self.plan_phases, strict=True))

    def micro_batch_of(self, batch: int, world_size: int) -> int:
        """Images at once on each of so many processes, of a step of ``batch``."""
        if self.micro_batch is not None:
            return self.micro_batch
        return _MICRO_BATCH if self.examples == "sets" else max(1, batch // world_size)

    @property
    def synthesis(self) -> SynthesisSpec:
        """What kinds of image are generated."""
        scenes = dict.fromkeys(("texture", "object", "frame", "organic"), 0.0) | self.scenes if self.scenes else {}
        return SynthesisSpec.model_validate(
            {"held_out_families": self.held_out_families, "large_fraction": self.large_fraction, **scenes}
        )


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
        "save_minutes",
        "wandb",
        "validation",
        "calibration",
    }
)


def run_identity(
    model: ModelConfig,
    train: TrainConfig,
    mixture: MixtureConfig | None,
    records: str,
    base: dict[str, Any],
) -> dict[str, Any]:
    """What decides a run's weights, for the state that it is resumed from.

    Args:
        mixture: None for generated images.
        records: ``Mixture.fingerprint``; where the sets lie may change, what they hold may not.
        base: of ``checkpoint.base_digests``.
    """
    found: dict[str, Any] = {
        "model": model.model_dump(mode="json", exclude={"decision", "tiling"}),
        "train": train.model_dump(mode="json", exclude=set(_FREE)),
        "base": {part: digest["sha256"] for part, digest in base.items()},
    }
    if mixture is not None:
        sets = [one.model_dump(mode="json", exclude={"path"}) for one in mixture.sets]
        table = mixture.model_dump(mode="json", exclude={"sets", "templates"})
        found["mixture"] = table | {"sets": sets, "records": records}
    return found


def parse_train_config(table: dict[str, Any]) -> TrainConfig:
    """Validates the ``train`` table.

    Raises:
        UsageError: names the key, and for an unknown key the nearest that exists; for a former key, the new one.
    """
    loss = table.get("loss")
    if isinstance(loss, dict) and "kinds" in loss:
        raise UsageError(f"training configuration: loss.kinds is now loss.aux_heads: write loss.aux_heads = {loss['kinds']}")
    if "calibrate" in table:
        raise UsageError(
            "training configuration: calibrate is now calibration.balanced_iou_nor: write "
            f"calibration = {{ balanced_iou_nor = {table['calibrate']} }}"
        )
    return validated(TrainConfig, table, "training configuration")


def parse_mixture_config(table: dict[str, Any]) -> MixtureConfig:
    """Validates the ``mixture`` table; raises as :func:`parse_train_config`."""
    return validated(MixtureConfig, table, "mixture configuration")


def refuse_old_tables(tables: dict[str, Any], where: str) -> None:
    """Raises UsageError for the table ``fit`` of earlier versions."""
    if "fit" in tables:
        raise UsageError(
            f"{where}: the table [fit] is now [train]: rename it; its keys are the same, but calibrate = SHARE is now "
            "calibration = { balanced_iou_nor = SHARE }"
        )
