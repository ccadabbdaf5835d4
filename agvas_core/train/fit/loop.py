"""The run (paper 4.1, B.2): parts of a step, their sum, one move of the weights; and what is kept of it.

    fit_model(model_config, mixture_config, fit_config, Path("runs/mine"))

Under torchrun or accelerate launch every process calls this with the same arguments.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from agvas_core import __version__
from agvas_core.contract.decision import BALANCED, STRICT, Decision
from agvas_core.contract.errors import OutputError, SetupError, UsageError
from agvas_core.data.datasets.item import DataSet, read_truth
from agvas_core.data.mixture.config import MixtureConfig
from agvas_core.data.mixture.example import SkipLog
from agvas_core.data.mixture.mixture import Mixture
from agvas_core.data.synthetic.tokenizer import train_tokenizer
from agvas_core.files import read_rgb
from agvas_core.model.agvas import AgVas
from agvas_core.model.config import ModelConfig
from agvas_core.model.losses import IGNORED_TARGET, segmentation_loss, supervision_counts, text_loss, total_loss
from agvas_core.model.weights.checkpoint import (
    Digests,
    base_digests,
    find_checkpoint,
    read_config,
    save_checkpoint,
    start_model,
    start_tokenizer,
)
from agvas_core.model.weights.trained import make_trainable, train_mode
from agvas_core.train.config import CalibrationConfig
from agvas_core.train.fit.batches import FitBatch, Parts
from agvas_core.train.fit.config import FitConfig, ValidationConfig, run_identity
from agvas_core.train.fit.engine import Engine
from agvas_core.train.fit.predictor import TorchPredictor
from agvas_core.train.fit.schedule import learning_rate
from agvas_core.train.fit.state import STATE, kept_tensors, put_model, put_moments, read_state, save_state, write_tensors
from agvas_core.train.fit.validation import held_out_sets, validate
from agvas_core.train.sweep import Scored, search, strict_seed

__all__ = [
    "LOG",
    "SKIPPED",
    "VALIDATION_LOG",
    "Counts",
    "Row",
    "RunLog",
    "fit_model",
    "part_loss",
    "points_on",
    "prepare_language_model",
]


# How the language model computes in training: its attention, and whether it keeps or recomputes what lies between its layers.


_ATTENTION = {"sdpa": "sdpa", "flash": "flash_attention_2", "eager": "eager"}


def prepare_language_model(model: AgVas, fit: FitConfig) -> None:
    """Sets both, in place.

    Raises:
        SetupError: flash-attn is asked for and not installed.
    """
    if fit.attention == "flash" and find_spec("flash_attn") is None:
        raise SetupError(
            "fit.attention is 'flash' and flash-attn is not installed: pip install flash-attn, or set attention = \"sdpa\""
        )
    language_model: Any = model.lmm.language_model
    language_model.set_attn_implementation(_ATTENTION[fit.attention])
    if fit.gradient_checkpointing:
        # transformers 5.24 gave it another name, and warns of the old one.
        enable = getattr(language_model, "activation_checkpointing_enable", language_model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})


# Eq. 11 for a part of a step, divided by what the whole step has: the parts add up to the step in one batch, whoever computes them.


@dataclass(frozen=True)
class Counts:
    """Of a step: target tokens, and the images that take part in BCE and Dice of each anchor. float32 [7] so that processes can add them."""

    values: Tensor

    @classmethod
    def of(cls, batch: FitBatch, fit: FitConfig) -> "Counts":
        """Of one part."""
        tokens = (batch.labels[:, 1:] != IGNORED_TARGET).sum().float()[None]
        images = supervision_counts(batch.mask.float(), batch.supervise, fit.loss.weights())
        return cls(torch.cat([tokens, images.flatten()]))

    @property
    def tokens(self) -> Tensor:
        """Scalar."""
        return self.values[0]

    @property
    def images(self) -> Tensor:
        """[2, 3]."""
        return self.values[1:].view(2, 3)


def part_loss(model: nn.Module, batch: FitBatch, counts: Counts, fit: FitConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The part's share of the step's loss, and detached shares of its pieces by name.

    Args:
        model: AgVas, or what accelerate made of it.
        counts: of the whole step.
    """
    output = model(batch.semantic, batch.pixel, batch.input_ids, batch.attention, batch.answer_start)
    text = text_loss(output.text_logits, batch.labels, count=counts.tokens)  # eq. 9
    logits = F.interpolate(output.mask_logits.float(), size=batch.mask.shape[-2:], mode="bilinear", align_corners=False)
    masks, pieces = segmentation_loss(
        logits, batch.mask.float(), fit.loss.weights(), batch.supervise, valid=batch.valid, counts=counts.images
    )  # eq. 10
    loss = total_loss(fit.text_weight * text, masks)  # eq. 11
    return loss, {"loss": loss.detach(), "text": text.detach(), "masks": masks.detach(), **pieces}


# What a run writes down as it goes: ``log.jsonl``, TensorBoard's event files, Weights & Biases where it is asked for.


LOG, VALIDATION_LOG, EVENTS = "log.jsonl", "validation.jsonl", "events"


class RunLog:
    """Rows past ``step`` are dropped at the start: they were written after the last saved state, and come again.

    Args:
        wandb: project, None for none.
    """

    def __init__(self, out: Path, step: int, config: Mapping[str, Any], wandb: str | None = None) -> None:
        for name in (LOG, VALIDATION_LOG):
            _trim(out / name, step)
        self._out = out
        self._events = SummaryWriter(str(out / EVENTS), purge_step=step + 1 if step else None)
        self._wandb = None if wandb is None else _start_wandb(wandb, out, config)

    def training(self, row: dict[str, float]) -> None:
        """One row; ``step`` is in it."""
        self._write(LOG, "train", row)

    def validation(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Metrics of the held-out images."""
        self._write(VALIDATION_LOG, "validation", {"step": step, **{k: v for k, v in metrics.items() if v is not None}})

    def close(self) -> None:
        """Everything is on disk afterwards."""
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _write(self, name: str, group: str, row: dict[str, float]) -> None:
        with (self._out / name).open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}) + "\n"
            )
        step = int(row["step"])
        scalars = {f"{group}/{key}": value for key, value in row.items() if key not in ("step", "images")}
        for key, value in scalars.items():
            self._events.add_scalar(key, value, step)
        self._events.flush()
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)


def _start_wandb(project: str, out: Path, config: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise SetupError(f"fit.wandb is {project!r} and wandb is not installed: pip install wandb, or leave it out") from error
    return wandb.init(project=project, dir=str(out), config=dict(config))


def _trim(path: Path, step: int) -> None:
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        path.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")


# Operating points after adaptation, set on reviewed images that were held out of it (``fit.calibrate``).
#
# As after training from scratch (train/calibration.py), with real images in place of generated ones, and no shift of the bias: a person judged
# these, and they are of the station where the model is to run.


def points_on(predictor: TorchPredictor, sets: Sequence[DataSet], iou_nor: float) -> Decision | None:
    """The points with the highest IoU_ano that leave ``iou_nor`` of the good images alone; None where there is no image of one of the two.

    The strict one, which has to leave more of them alone, counts the same few images: take it for what they are.
    """
    kept_px = CalibrationConfig().kept_px
    scored = []
    for item in (item for one in sets for item in one.items):
        score_map, accept = predictor.score(read_rgb(item.image_path, item.name))
        truth = read_truth(item)
        shrunk = min(1.0, kept_px / max(truth.shape))
        size = (round(truth.shape[1] * shrunk), round(truth.shape[0] * shrunk))
        small, share = (cv2.resize(each, size, interpolation=cv2.INTER_AREA) for each in (score_map, truth.astype(np.float32)))
        scored.append(Scored(np.asarray(small, np.float32), np.asarray(share > 0.4), accept))
    bad = sum(bool(image.truth.any()) for image in scored)
    if not 0 < bad < len(scored):
        return None
    balanced = search(scored, iou_nor).point
    strict = balanced.model_copy(
        update={"seed_threshold": strict_seed(scored, balanced, max(iou_nor, CalibrationConfig().strict_iou_nor))}
    )
    return Decision(alpha=predictor.config.decision.alpha, operating_points={BALANCED: balanced, STRICT: strict})


Row = dict[str, float]
Progress = Callable[[int, int, Row], None]
SKIPPED: Final = "skipped.jsonl"


def fit_model(
    model_config: ModelConfig,
    mixture_config: MixtureConfig,
    fit: FitConfig,
    out: Path,
    *,
    resume: bool = False,
    overfit: int | None = None,
    progress: Progress = lambda done, total, row: None,
) -> Path:
    """Trains and writes a checkpoint folder that holds what was trained; returns it.

    ``out`` gets the checkpoint, ``state.safetensors`` (to resume), ``log.jsonl``, ``validation.jsonl``, ``skipped.jsonl`` and TensorBoard's
    ``events``. Same configuration, processes, threads and machine: same weights, resumed or not.

    Args:
        overfit: train on the first so many examples again and again: a model that cannot learn these has a fault.
        progress: called by the first process after each step with steps done, steps in all, and the step's row.

    Raises:
        UsageError: ``out`` holds a run and ``resume`` is not set, or one with another configuration; data or parts that are not there.
        SetupError: the loss or its gradient is not finite; the batch is saved, and the last good state is left as it is.
        OutputError: nothing more can be written; what was saved before is whole.
    """
    engine = Engine.start(fit, idle_parameters="all" in model_config.trained)
    try:
        return _Run.start(engine, model_config, mixture_config, out, resume, overfit, progress).train()
    finally:
        engine.close()


@dataclass
class _Run:
    """One process's part in a run."""

    engine: Engine
    config: ModelConfig
    fit: FitConfig
    out: Path
    parts: Parts
    tokenizer: Tokenizer
    identity: dict[str, Any]
    base: Digests
    log: RunLog | None
    validated_on: list[DataSet]
    progress: Progress
    first: int = 0
    recent: list[Row] = field(default_factory=list)
    skips: SkipLog = field(default_factory=SkipLog)

    @classmethod
    def start(
        cls,
        engine: Engine,
        config: ModelConfig,
        mixture_config: MixtureConfig,
        out: Path,
        resume: bool,
        overfit: int | None,
        progress: Progress,
    ) -> "_Run":
        """Everything before the first step, or the next one of a run that was stopped."""
        fit = engine.fit
        if config.base is not None:  # what was calibrated goes on to count: the same bias, the same scales
            base_config = read_config(find_checkpoint(config.base))
            config = config.model_copy(update={name: getattr(base_config, name) for name in ("decision", "scales", "tiling")})
        there = engine.agreed((out / STATE).exists())
        if there and not resume:
            raise UsageError(f"{out} already holds a run: pass --resume to go on with it, or another --out")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {out}: {error.strerror}; choose another --out") from error
        mixture = Mixture.load(mixture_config)
        base = base_digests(config)
        identity = run_identity(config, mixture_config, fit, mixture.fingerprint, base) | {"overfit": overfit}
        state = read_state(out / STATE, identity) if there else None

        torch.manual_seed(fit.seed)
        tokenizer = start_tokenizer(config) or train_tokenizer(config.lmm.vocab_size)
        model = start_model(config, torch.bfloat16 if fit.precision == "bf16" else torch.float32)
        make_trainable(model, config, torch.float32)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UsageError(f"model {config.name} trains nothing: name parts in trained, or add [model.lora]")
        prepare_language_model(model, fit)
        if state is not None:
            put_model(model, config, state[1])
        engine.prepare(model)
        if state is not None:
            put_moments(engine, state[0], state[1])
        step, recent = (0, []) if state is None else (state[0], state[2])

        held_out: list[DataSet] = []
        if fit.validation is not None:
            held_out = held_out_sets(fit.validation, mixture.held_out, out, engine.main, engine.wait)
            if not held_out:
                raise UsageError(
                    "there is nothing to validate on: set mixture.held_out above 0 with anomaly sets, give fit.validation.data, or leave "
                    "[fit.validation] out"
                )
        log = RunLog(out, step, identity, fit.wandb) if engine.main else None
        parts = Parts(mixture, engine.shares, fit, config, tokenizer, overfit)
        return cls(engine, config, fit, out, parts, tokenizer, identity, base, log, held_out, progress, step, recent)

    def train(self) -> Path:
        """All steps that are left."""
        fit, accumulation = self.fit, self.parts.shares.accumulation
        loader = DataLoader(
            self.parts,
            batch_size=None,
            sampler=range(self.first * accumulation, fit.steps * accumulation),
            num_workers=fit.workers,
            prefetch_factor=4 if fit.workers else None,
            multiprocessing_context="spawn" if fit.workers else None,  # OpenCV's and torch's threads do not survive a fork
        )
        waiting: list[FitBatch] = []
        step = self.first
        for batch in loader:
            waiting.append(batch)
            if len(waiting) < accumulation:
                continue
            row = self._step(step, waiting)
            waiting = []
            step += 1
            self._after(step, row)
        if self.log is not None:
            self.log.close()
        return self.out

    def _step(self, step: int, parts: list[FitBatch]) -> Row:
        """One move of the weights."""
        engine, fit = self.engine, self.fit
        train_mode(engine.plain)
        rate = learning_rate(fit, step)
        engine.set_rate(rate)
        counts = Counts(engine.summed(torch.stack([Counts.of(part, fit).values for part in parts]).sum(0)))
        pieces: list[dict[str, torch.Tensor]] = []
        row: Row = {}
        for number, (part, context) in enumerate(zip(parts, engine.parts(), strict=True)):
            self.skips.add(part.skipped)
            # Dropout is a function of the part's number, so that a resumed run draws the same.
            torch.manual_seed(
                (fit.seed * 2**32 + (step * len(parts) + number) * engine.shares.world_size + engine.shares.rank) % 2**63
            )
            with context:
                with engine.autocast():
                    loss, found = part_loss(engine.model, part.to(engine.device), counts, fit)
                pieces.append(found)
                if number + 1 == len(parts):  # before DeepSpeed moves anything
                    row = self._summed(pieces)
                    self._refuse_not_finite(row["loss"], "loss", step, parts)
                engine.backward(loss)
        norm = engine.step(rate)
        self._refuse_not_finite(norm, "gradient's norm", step, parts)
        place = {"step": step + 1, "images": (step + 1) * fit.batch, "learning_rate": rate, "grad_norm": norm}
        return place | row | {"skipped": float(len(self.skips))}

    def _summed(self, pieces: list[dict[str, torch.Tensor]]) -> Row:
        """Over parts and processes: each is already a share of the step's."""
        values = torch.stack([torch.stack([found[name].float() for name in found]) for found in pieces]).sum(0)
        return dict(zip(pieces[0], self.engine.summed(values).tolist(), strict=True))

    def _after(self, step: int, row: Row) -> None:
        """What is due after a step: log, validation, saving."""
        self.recent.append(row)
        if step % self.fit.log_every == 0 or step == self.fit.steps:
            if self.log is not None:
                means = {name: sum(each[name] for each in self.recent) / len(self.recent) for name in row}
                kept = {name: row[name] for name in ("step", "images", "learning_rate", "skipped")}
                self.log.training(means | kept)
            self.recent.clear()
        if self.engine.main:
            self.progress(step, self.fit.steps, row)
        last = step == self.fit.steps
        if last and self.fit.calibrate is not None:
            self._calibrate()
        if self.validated_on and self.fit.validation is not None and (last or step % self.fit.validation.every_steps == 0):
            self._validate(step)
        if last or step % self.fit.save_every == 0:
            self._save(step)

    def _calibrate(self) -> None:
        """The configuration gets operating points for the weights as they are now."""
        records = self.parts.mixture.held_out
        sets = held_out_sets(ValidationConfig(limit=None), records, self.out, self.engine.main, self.engine.wait)
        predictor = TorchPredictor(self.engine.plain.eval(), self.config, self.tokenizer, "last step")
        with self.engine.autocast():
            decision = points_on(predictor, sets, self.fit.calibrate or 1.0)
        if decision is not None:
            self.config = self.config.model_copy(update={"decision": decision})

    def _validate(self, step: int) -> None:
        model = self.engine.plain.eval()
        predictor = TorchPredictor(model, self.config, self.tokenizer, f"step {step}")
        with self.engine.autocast():
            if self.log is not None:
                self.log.validation(step, validate(predictor, self.validated_on, self.out))
            elif self.engine.sharded:  # the first process cannot compute alone
                for item in (item for one in self.validated_on for item in sorted(one.items, key=lambda each: each.category)):
                    predictor.predict(item.image_path)
        self.engine.wait()

    def _save(self, step: int) -> None:
        """Checkpoint and state, each whole or as it was. All processes together."""
        kept = kept_tensors(self.engine, self.config)
        skips = self.engine.gathered([self.skips])
        self._write_checkpoint(step, kept)
        if self.engine.main:
            SkipLog.joined(skips).save(self.out / SKIPPED)
        save_state(self.out / STATE, self.engine, kept, step, self.identity, self.recent)

    def _write_checkpoint(self, step: int, kept: dict[str, torch.Tensor]) -> None:
        if not self.engine.main:
            return
        fit = self.fit
        training = {
            "agvas": __version__,
            "torch": torch.__version__,
            "step": step,
            "steps": fit.steps,
            "images": step * fit.batch,
        }
        training |= {"fit": fit.model_dump(mode="json"), "mixture": self.parts.mixture.config.model_dump(mode="json")}
        state = {name: tensor.detach().cpu() for name, tensor in kept.items()}
        try:
            save_checkpoint(self.out, state, self.config, self.tokenizer, training, self.base)
        except (OSError, SafetensorError) as error:
            raise OutputError(
                f"cannot write the checkpoint into {self.out} ({error}); the last one is whole: make space, then go on with --resume"
            ) from error

    def _refuse_not_finite(self, value: float, what: str, step: int, parts: list[FitBatch]) -> None:
        """Every process sees the same value, and stops."""
        if math.isfinite(value):
            return
        path = self.out / f"not-finite-rank{self.engine.shares.rank}.safetensors"
        tensors = {f"{number}.{name}": tensor for number, part in enumerate(parts) for name, tensor in part.tensors().items()}
        names = [name for part in parts for name in part.names]
        write_tensors(path, tensors, {"step": str(step), "names": json.dumps(names)})
        raise SetupError(
            f"the {what} is {value} at step {step}; the batch is in {path} ({names[0]}, ...), the last good state is left as it was: look at the "
            "images, or lower learning_rate, and train again"
        )
