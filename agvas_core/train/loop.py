"""The run (paper 4.1, B.2): parts of a step, their sum, one move of the weights; and what is kept of it.

    train_model(model_config, train_config, Path("runs/mine"), mixture=mixture_config)

Under torchrun or accelerate launch every process calls this with the same arguments.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader

from agvas_core import __version__
from agvas_core.contract.errors import OutputError, SetupError, UsageError
from agvas_core.contract.manifest import sha256_of
from agvas_core.data.datasets.item import DataSet
from agvas_core.data.datasets.record import Record
from agvas_core.data.mixture.config import MixtureConfig
from agvas_core.data.mixture.example import SkipLog
from agvas_core.data.mixture.mixture import Mixture
from agvas_core.data.synthetic.dialogue import train_tokenizer
from agvas_core.evaluation.checkpoint import CheckpointPredictor
from agvas_core.model.agvas import AgVas
from agvas_core.model.config import ModelConfig
from agvas_core.model.weights.checkpoint import (
    WEIGHTS,
    Checkpoint,
    Digests,
    base_digests,
    find_checkpoint,
    read_config,
    save_checkpoint,
    start_model,
    start_tokenizer,
)
from agvas_core.model.weights.trained import kept_state, make_trainable, train_mode
from agvas_core.train.aux_heads import AuxHeads
from agvas_core.train.batches import Batch, Examples, GeneratedExamples, MixtureExamples, Parts
from agvas_core.train.calibration import Calibration, calibrate, points_on
from agvas_core.train.config import TrainConfig, ValidationConfig, run_identity
from agvas_core.train.engine import Engine
from agvas_core.train.log import RunLog
from agvas_core.train.objective import Counts, Objective, prepare_language_model
from agvas_core.train.schedule import Span, learning_rate
from agvas_core.train.state import (
    STATE,
    average_of,
    kept_tensors,
    put_moments,
    put_weights,
    read_state,
    save_state,
    write_tensors,
)
from agvas_core.train.validation import held_out_sets, validate

__all__ = ["SKIPPED", "Progress", "Row", "train_model"]

Row = dict[str, float]
Progress = Callable[[int, int, Row], None]
SKIPPED: Final = "skipped.jsonl"


def train_model(
    model_config: ModelConfig,
    train_config: TrainConfig,
    out: Path,
    *,
    mixture: MixtureConfig | None = None,
    init: Checkpoint | None = None,
    resume: bool = False,
    overfit: int | None = None,
    minutes: float | None = None,
    progress: Progress = lambda done, total, row: None,
    calibrating: Callable[[int, int], None] = lambda done, total: None,
    listed: Callable[[str], None] = lambda table: None,
) -> Path:
    """Trains and writes a checkpoint folder that holds what was trained; returns it.

    ``out`` gets the checkpoint, ``state.safetensors`` (to resume), ``log.jsonl``, TensorBoard's ``events``, and, where they apply,
    ``validation.jsonl`` and ``skipped.jsonl``. Same configuration, processes, threads and machine: same weights, resumed or not.

    Args:
        mixture: the data sets, for ``examples = "sets"``.
        init: start from these weights and this tokenizer, where names and shapes agree.
        overfit: train on the first so many images again and again: a model that cannot learn these has a fault.
        minutes: stop after so much time, with everything saved to go on with ``resume``.
        progress: called by the first process after each step with steps done, steps in all, and the step's row.
        calibrating: called after each generated image of the calibration that follows, with images seen and images in all.
        listed: called by the first process before the first step with the table of the sets that are trained on.

    Raises:
        UsageError: ``out`` holds a run and ``resume`` is not set, or one with another configuration; data or parts that are not there.
        SetupError: the loss or its gradient is not finite; the batch is saved, and the last good state is left as it is.
        OutputError: nothing more can be written; what was saved before is whole.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    engine = Engine.start(train_config, idle_parameters="all" in model_config.trained)
    try:
        run = _Run.start(engine, model_config, out, mixture, init, resume, overfit)
        if run.mixture is not None and engine.main:
            listed(run.mixture.table())
        run.progress, run.calibrating, run.end = progress, calibrating, end
        return run.train()
    finally:
        engine.close()


@dataclass
class _Run:
    """One process's part in a run."""

    engine: Engine
    config: ModelConfig
    out: Path
    parts: Parts
    mixture: Mixture | None
    tokenizer: Tokenizer
    identity: dict[str, Any]
    base: Digests
    kept: tuple[str, ...]
    """Names of the tensors that a checkpoint holds."""
    average: dict[str, Tensor]
    """Moving average of them; empty where there is none."""
    log: RunLog | None
    validated_on: list[DataSet]
    first: int
    recent: list[Row]
    skips: SkipLog = field(default_factory=SkipLog)
    calibration: Calibration | None = None
    span: Span | None = None
    saved: float = field(default_factory=time.monotonic)
    end: float | None = None
    progress: Progress = lambda done, total, row: None
    calibrating: Callable[[int, int], None] = lambda done, total: None

    @property
    def settings(self) -> TrainConfig:
        """Of the run."""
        return self.engine.train

    @classmethod
    def start(
        cls,
        engine: Engine,
        config: ModelConfig,
        out: Path,
        mixture_config: MixtureConfig | None,
        init: Checkpoint | None,
        resume: bool,
        overfit: int | None,
    ) -> "_Run":
        """Everything before the first step, or the next one of a run that was stopped."""
        train = engine.train
        config = _checked(config, train, mixture_config, init)
        there = engine.agreed((out / STATE).exists())
        if there and not resume:
            raise UsageError(f"{out} already holds a run: pass --resume to go on with it, or another --out")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {out}: {error.strerror}; choose another --out") from error
        mixture = None if mixture_config is None else Mixture.load(mixture_config)
        base = base_digests(config)
        identity = run_identity(config, train, mixture_config, "" if mixture is None else mixture.fingerprint, base)
        identity |= {"overfit": overfit, "init": None if init is None else _record_of(init)}
        state = read_state(out / STATE, identity) if there else None

        torch.manual_seed(train.seed)
        tokenizer = init.tokenizer if init is not None else start_tokenizer(config)
        tokenizer = tokenizer or train_tokenizer(config.lmm.vocab_size)
        model = start_model(config, torch.bfloat16 if train.precision == "bf16" else torch.float32)
        if init is not None:
            start_from(model, init, train.fresh)
        if train.examples == "generated" and train.deepspeed is None:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        make_trainable(model, config, torch.float32)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UsageError(f"model {config.name} trains nothing: name parts in trained, or add [model.lora]")
        prepare_language_model(model, train)
        kept = tuple(kept_state(model, config))  # before a phase freezes anything
        objective = Objective(model, train, AuxHeads.of(model, config) if train.loss.aux_heads else None)
        if state is not None:
            put_weights(objective, kept, state)
        engine.prepare(objective)
        if state is not None:
            put_moments(engine, state)
        average = {} if train.ema_decay is None else average_of(state, kept_tensors(engine, kept))

        held_out: list[DataSet] = []
        if train.validation is not None:
            held_out = held_out_sets(train.validation, _held_out(mixture), out, engine.main, engine.wait)
            if not held_out:
                raise UsageError(
                    "there is nothing to validate on: set mixture.held_out above 0 with anomaly sets, give train.validation.data, or leave "
                    "[train.validation] out"
                )
        step, recent = (0, []) if state is None else (state.step, state.recent)
        examples: Examples = (
            GeneratedExamples(train, config, tokenizer)
            if mixture is None
            else MixtureExamples(mixture, train, config, tokenizer, train.flip and overfit is None)
        )
        return cls(
            engine,
            config,
            out,
            Parts(examples, engine.plan, overfit),
            mixture,
            tokenizer,
            identity,
            base,
            kept,
            average,
            RunLog(out, step, identity, train.wandb) if engine.main else None,
            held_out,
            step,
            recent,
        )

    def train(self) -> Path:
        """All steps that are left, or those that fit into the time."""
        train, plan = self.settings, self.engine.plan
        loader = DataLoader(
            self.parts,
            batch_size=None,
            sampler=range(plan.parts_before(self.first), plan.parts),
            num_workers=train.workers,
            prefetch_factor=4 if train.workers else None,
            multiprocessing_context="spawn" if train.workers else None,  # OpenCV's and torch's threads do not survive a fork
        )
        waiting: list[Batch] = []
        step = self.first
        for batch in loader:
            waiting.append(batch)
            if len(waiting) < plan.span(step).shares.accumulation:
                continue
            row = self._step(step, waiting)
            waiting = []
            step += 1
            if self._after(step, row):
                break
        if self.log is not None:
            self.log.close()
        return self.out

    def _step(self, step: int, parts: list[Batch]) -> Row:
        """One move of the weights."""
        engine, train, span = self.engine, self.settings, self.engine.plan.span(step)
        if span is not self.span:
            engine.enter(span)
            train_mode(engine.plain)
            self.span = span
        rate = learning_rate(train, step)
        engine.set_rate(rate, span)
        counts = Counts(engine.summed(torch.stack([engine.objective.counts(part).values for part in parts]).sum(0)))
        pieces: list[dict[str, Tensor]] = []
        row: Row = {}
        for number, (part, context) in enumerate(zip(parts, engine.parts(span), strict=True)):
            self.skips.add(part.skipped)
            # Dropout is a function of the part's number, so that a resumed run draws the same.
            torch.manual_seed((train.seed * 2**32 + (step * len(parts) + number) * engine.world_size + engine.rank) % 2**63)
            with context:
                with engine.autocast():
                    loss, found = engine.model(part.to(engine.device), counts)
                pieces.append(found)
                if number + 1 == len(parts):  # before DeepSpeed moves anything
                    row = self._summed(pieces)
                    self._refuse_not_finite(row["loss"], "loss", step, parts)
                engine.backward(loss, span)
        norm = engine.step()
        self._refuse_not_finite(norm, "gradient's norm", step, parts)
        if self.average:
            self._update_average(step)
        images = engine.plan.images_before(step) + span.phase.batch
        place = {"step": step + 1, "images": images, "learning_rate": rate, "grad_norm": norm}
        return place | row | {"skipped": float(len(self.skips))}

    def _summed(self, pieces: list[dict[str, Tensor]]) -> Row:
        """Over parts and processes: each is already a share of the step's."""
        values = torch.stack([torch.stack([found[name].float() for name in found]) for found in pieces]).sum(0)
        return dict(zip(pieces[0], self.engine.summed(values).tolist(), strict=True))

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        """average = decay * average + (1 - decay) * weights; counters are copied."""
        decay = min(self.settings.ema_decay or 0.0, (step + 1) / (step + 10))  # young averages forget the random start
        own = self.engine.plain.state_dict()
        for name, tensor in self.average.items():
            if tensor.dtype.is_floating_point:
                tensor.lerp_(own[name], 1 - decay)
            else:
                tensor.copy_(own[name])

    def _after(self, step: int, row: Row) -> bool:
        """What is due after a step: log, validation, saving. True where the run stops here."""
        train, last = self.settings, step == self.engine.plan.steps
        self.recent.append(row)
        if step % train.log_every == 0 or last:
            if self.log is not None:
                means = {name: sum(each[name] for each in self.recent) / len(self.recent) for name in row}
                kept = {name: row[name] for name in ("step", "images", "learning_rate", "skipped")}
                self.log.training(means | kept)
            self.recent.clear()
        if self.engine.main:
            self.progress(step, self.engine.plan.steps, row)
        validates = train.validation is not None and (last or step % train.validation.every_steps == 0)
        calibrates = last and train.calibration is not None
        if validates or calibrates:
            with self._measured():
                if calibrates:
                    self._calibrate()
                if validates:
                    self._validate(step)
        waited, over = self._clock()
        if last or over or waited or step % train.save_every == 0:
            self._save(step)
        return over

    def _clock(self) -> tuple[bool, bool]:
        """Whether the state is to be saved by now, and whether the time is over; the first process's clock counts."""
        minutes, now = self.settings.save_minutes, time.monotonic()
        if minutes is None and self.end is None:
            return False, False
        waited = minutes is not None and now - self.saved >= 60 * minutes
        found: tuple[bool, bool] = self.engine.agreed((waited, self.end is not None and now >= self.end))
        return found

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Inside, the model is in evaluation mode, with the averaged weights."""
        own = self.engine.plain.state_dict()
        before = {name: own[name].clone() for name in self.average}
        self._put(self.average)
        self.engine.plain.eval()
        try:
            with self.engine.measuring():
                yield
        finally:
            self._put(before)
            train_mode(self.engine.plain)

    @torch.no_grad()
    def _put(self, tensors: dict[str, Tensor]) -> None:
        own = self.engine.plain.state_dict()
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    def _calibrate(self) -> None:
        """The configuration gets operating points for the weights as they are now, and the shift of the bias is known."""
        on, model = self.settings.calibration, self.engine.plain
        assert on is not None
        if self.mixture is None:
            self.calibration = calibrate(model, self.config, self.settings, self.tokenizer, on, self.calibrating)
            decision = self.calibration.decision
        else:
            records = self.mixture.held_out
            sets = held_out_sets(ValidationConfig(limit=None), records, self.out, self.engine.main, self.engine.wait)
            found = points_on(CheckpointPredictor(model, self.config, self.tokenizer), sets, on)
            decision = found or self.config.decision
        self.config = self.config.model_copy(update={"decision": decision})

    def _validate(self, step: int) -> None:
        predictor = CheckpointPredictor(self.engine.plain, self.config, self.tokenizer, f"step {step}")
        if self.log is not None:
            self.log.validation(step, validate(predictor, self.validated_on, self.out))
        elif self.engine.sharded:  # the first process cannot compute alone
            for item in (item for one in self.validated_on for item in sorted(one.items, key=lambda each: each.category)):
                predictor.predict(item.image_path)
        self.engine.wait()

    def _save(self, step: int) -> None:
        """Checkpoint and state, each whole or as it was. All processes together."""
        kept = kept_tensors(self.engine, self.kept)
        skips = self.engine.gathered([self.skips])
        self._write_checkpoint(step, self.average or kept)
        if self.engine.main and self.mixture is not None:
            SkipLog.joined(skips).save(self.out / SKIPPED)
        save_state(self.out / STATE, self.engine, kept, self.average, step, self.identity, self.recent)
        self.saved = time.monotonic()

    def _write_checkpoint(self, step: int, tensors: dict[str, Tensor]) -> None:
        if not self.engine.main:
            return
        plan = self.engine.plan
        training: dict[str, Any] = {
            "agvas": __version__,
            "torch": torch.__version__,
            "step": step,
            "steps": plan.steps,
            "images": plan.images_before(step),
            "init": self.identity["init"],
            "train": self.settings.model_dump(mode="json"),
            "mixture": None if self.mixture is None else self.mixture.config.model_dump(mode="json"),
            "calibration": None if self.calibration is None else self.calibration.record,
        }
        state = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        if self.calibration is not None:
            state = self.calibration.moved(state)
        try:
            save_checkpoint(self.out, state, self.config, self.tokenizer, training, self.base or None)
        except (OSError, SafetensorError) as error:
            raise OutputError(
                f"cannot write the checkpoint into {self.out} ({error}); the last one is whole: make space, then go on with --resume"
            ) from error

    def _refuse_not_finite(self, value: float, what: str, step: int, parts: list[Batch]) -> None:
        """Every process sees the same value, and stops."""
        if math.isfinite(value):
            return
        path = self.out / f"not-finite-rank{self.engine.rank}.safetensors"
        tensors = {f"{number}.{name}": tensor for number, part in enumerate(parts) for name, tensor in part.tensors().items()}
        names = [name for part in parts for name in part.names]
        write_tensors(path, tensors, {"step": str(step), "names": json.dumps(names)})
        raise SetupError(
            f"the {what} is {value} at step {step}; the batch is in {path} ({names[0]}, ...), the last good state is left as it was: look at the "
            "images, or lower learning_rate, and train again"
        )


def _checked(config: ModelConfig, train: TrainConfig, mixture: MixtureConfig | None, init: Checkpoint | None) -> ModelConfig:
    """The model's configuration, with what its base was calibrated to.

    Raises:
        UsageError: examples and mixture do not go together, or frozen parts would stay as the random numbers that they start from.
    """
    if (mixture is None) != (train.examples == "generated"):
        raise UsageError(
            'data sets were given and examples is generated: extend the preset with [train] examples = "sets"'
            if mixture is not None
            else "examples is sets and there is no mixture: pass --sets DIR, or list them under [mixture] sets"
        )
    published = config.lmm.pretrained is not None or config.pixel.pretrained is not None
    if config.base is None and not published and init is None and "all" not in config.trained:
        raise UsageError(
            f"model {config.name} starts from scratch and trains only {', '.join(config.trained) or 'LoRA'}: "
            'set trained = ["all"], or name a base, published weights, or --init'
        )
    if config.base is None:
        return config
    base = read_config(find_checkpoint(config.base))  # what was calibrated goes on to count: the same bias, the same scales
    return config.model_copy(update={name: getattr(base, name) for name in ("decision", "scales", "tiling")})


def _record_of(init: Checkpoint) -> dict[str, Any]:
    return {
        "checkpoint": init.folder.resolve().name,
        "sha256": sha256_of(init.folder / WEIGHTS),
        "images": init.training.get("images"),
    }


def _held_out(mixture: Mixture | None) -> tuple[Record, ...]:
    return () if mixture is None else mixture.held_out


@torch.no_grad()
def start_from(model: AgVas, init: Checkpoint, fresh: tuple[str, ...] = ()) -> None:
    """Takes over every weight whose name and shape agree, except the parts that are to be ``fresh``.

    Raises:
        UsageError: nothing agrees.
    """
    own, given = model.state_dict(), init.model.state_dict()
    taken = [
        name for name, tensor in own.items() if name in given and given[name].shape == tensor.shape and not name.startswith(fresh)
    ]
    if not taken:
        raise UsageError(
            f"no weight of {init.folder} has the name and shape of one of this model: use a checkpoint of the same preset"
        )
    for name in taken:
        own[name].copy_(given[name])
