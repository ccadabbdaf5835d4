"""The run (paper 4.1, B.2): parts of a step, their sum, one move of the weights; and what is kept of it.

    fit_model(model_config, mixture_config, fit_config, Path("runs/mine"))

Under torchrun or accelerate launch every process calls this with the same arguments.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from agvas_core import __version__
from agvas_core.contract.errors import OutputError, SetupError, UsageError
from agvas_core.data.mixture.config import MixtureConfig
from agvas_core.data.mixture.example import SkipLog
from agvas_core.data.mixture.mixture import Mixture
from agvas_core.data.synthetic.tokenizer import train_tokenizer
from agvas_core.evaluation.item import DataSet
from agvas_core.model.config import ModelConfig
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
from agvas_core.train.fit.batches import FitBatch, Parts
from agvas_core.train.fit.config import FitConfig, ValidationConfig, run_identity
from agvas_core.train.fit.engine import Engine
from agvas_core.train.fit.language import prepare_language_model
from agvas_core.train.fit.log import RunLog
from agvas_core.train.fit.objective import Counts, part_loss
from agvas_core.train.fit.points import points_on
from agvas_core.train.fit.predictor import TorchPredictor
from agvas_core.train.fit.schedule import learning_rate
from agvas_core.train.fit.state import STATE, kept_tensors, put_model, put_moments, read_state, save_state, write_tensors
from agvas_core.train.fit.validation import held_out_sets, validate

__all__ = ["SKIPPED", "Row", "fit_model"]

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
