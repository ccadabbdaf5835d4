"""Devices, processes and DeepSpeed of a run. The only module that imports accelerate, or touches DeepSpeed."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, distributed, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.model.agvas import AgVas
from agvas_core.train.config import TrainConfig
from agvas_core.train.objective import Objective
from agvas_core.train.schedule import Plan, Shares, Span

__all__ = ["DEEPSPEED_CONFIGS", "Engine", "deepspeed_config"]

_LEFT: Final[list[Any]] = []
"""Groups of processes that were left, kept to the end: gloo's destructor holds the interpreter's lock and waits for a thread that may want
it, to let go of the last barrier. Where the last reference was that of torch's reducer, a run that was done did not end (torch 2.13)."""

DEEPSPEED_CONFIGS: Final = ("zero2", "zero3")
_MOMENTS: Final = ("exp_avg", "exp_avg_sq")


def deepspeed_config(train: TrainConfig, shares: Shares) -> dict[str, Any]:
    """The DeepSpeed configuration that ``train.deepspeed`` names, with the numbers of the run in it.

    Raises:
        UsageError: no such file, not JSON, or a file that sets one of those numbers otherwise, or the optimizer.
    """
    assert train.deepspeed is not None
    if train.deepspeed in DEEPSPEED_CONFIGS:
        text = (resources.files("agvas_core.train") / "deepspeed" / f"{train.deepspeed}.json").read_text(encoding="utf-8")
    elif Path(train.deepspeed).is_file():
        text = Path(train.deepspeed).read_text(encoding="utf-8")
    else:
        raise UsageError(
            f"train.deepspeed is {train.deepspeed!r}: give {', '.join(DEEPSPEED_CONFIGS)}, or an existing .json file"
        )
    try:
        config: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{train.deepspeed} is not JSON: {error}") from error
    ours = {
        "train_micro_batch_size_per_gpu": shares.micro_batch,
        "gradient_accumulation_steps": shares.accumulation,
        "gradient_clipping": train.clip_norm,
        "bf16": {"enabled": train.precision == "bf16"},
    }
    for key, value in ours.items():
        if config.get(key, "auto") not in ("auto", value):
            raise UsageError(f"{train.deepspeed}: {key} is {config[key]}, the run has {value}: leave it out, [train] says it")
    for key in ("optimizer", "scheduler", "fp16"):
        if key in config:
            raise UsageError(f"{train.deepspeed}: {key} belongs to [train]: leave it out")
    return config | ours


def _launched_plan(train: TrainConfig) -> Plan:
    """DeepSpeed must know the shares before accelerate has joined the processes: the launcher's own variables say them."""
    if find_spec("deepspeed") is None:
        raise SetupError("deepspeed is not installed: pip install 'agvas[deepspeed]', or leave train.deepspeed out")
    if "WORLD_SIZE" not in os.environ:
        raise UsageError(
            f"deepspeed = {train.deepspeed!r} needs a launcher, for one GPU too: torchrun --nproc-per-node GPUS --no-python agvas train ..."
        )
    return Plan(train, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def rate_factors(objective: Objective, train: TrainConfig) -> dict[str, tuple[float | None, ...]]:
    """Of each parameter that learns, by its name in the objective: the factor on the learning rate in each phase, None where it is frozen.

    Raises:
        UsageError: a name in rates or frozen that no parameter begins with, or a phase in which nothing learns.
    """
    names = [name for name, parameter in objective.named_parameters() if parameter.requires_grad]
    factors: dict[str, list[float | None]] = {name: [] for name in names}
    everything = [_plain_name(name) for name, _ in objective.named_parameters()]
    parts = ", ".join(name for name, _ in objective.model.named_children())
    for number, phase in enumerate(train.plan_phases):
        rates: Mapping[str, float] = {**train.rates, **phase.rates}
        for key, named in (("rates", tuple(rates)), ("frozen", phase.frozen)):
            if unused := [part for part in named if not any(name.startswith(part) for name in everything)]:
                raise UsageError(f"{key} names {unused[0]}, which no parameter begins with; parts are {parts}")
        for name in names:
            plain = _plain_name(name)
            fitting = [part for part in rates if plain.startswith(part)]
            frozen = plain.startswith(phase.frozen)
            factors[name].append(None if frozen else rates[max(fitting, key=len)] if fitting else 1.0)
        if all(row[-1] is None for row in factors.values()):
            raise UsageError(f"phases.{number} trains nothing: {', '.join(phase.frozen)} is all that learns; freeze less")
    return {name: tuple(row) for name, row in factors.items()}


def _plain_name(name: str) -> str:
    """As in the model: a parameter's name in the objective without what leads to the model."""
    return name.removeprefix("model.")


@dataclass
class Engine:
    """accelerate and its processes. ``start`` first, then ``prepare`` once."""

    accelerator: Any
    train: TrainConfig
    plan: Plan
    model: Any = None
    optimizer: Any = None
    learning: frozenset[str] = frozenset()
    """Names in the objective of what is trained, in any phase."""

    @classmethod
    def start(cls, train: TrainConfig, idle_parameters: bool = False) -> "Engine":
        """Joins the processes that torchrun or accelerate launch started; alone where there are none.

        Args:
            idle_parameters: some that are trained get no gradient: towers have layers behind the one that is read.

        Raises:
            UsageError: the batch cannot be shared by so many processes.
            SetupError: DeepSpeed is asked for and not installed.
        """
        patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))  # others wait while the first validates
        # Without being told, accelerate takes processes on a CPU for so many runs of one process each; DeepSpeed sees to that itself.
        cpu = train.deepspeed is None and not torch.accelerator.is_available()
        plugin = None
        if train.deepspeed is None:
            state = PartialState(cpu=cpu, timeout=patience.timeout)
            plan = Plan(train, state.process_index, state.num_processes)
        else:
            plan = _launched_plan(train)
            plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_config(train, plan.spans[0].shares))
        idle = idle_parameters or any(phase.frozen for phase in train.phases)
        accelerator = Accelerator(
            cpu=cpu,
            gradient_accumulation_steps=plan.spans[0].shares.accumulation,
            deepspeed_plugin=plugin,
            kwargs_handlers=[patience, DistributedDataParallelKwargs(find_unused_parameters=idle)],
        )
        # Published weights come whole to each process, whatever the stage: transformers would share them out while it reads them, and the
        # tables could not be extended (the mean of an empty piece is NaN). ``prepare`` shares them out.
        unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
        return cls(accelerator, train, plan)

    def prepare(self, objective: Objective) -> None:
        """AdamW for what is trained; objective and optimizer onto the device, and shared out over the processes.

        Raises:
            UsageError: as :func:`rate_factors`.
            SetupError: DeepSpeed rounded a buffer that the model needs in float32.
        """
        train, groups = self.train, dict[tuple[float | None, ...], list[nn.Parameter]]()
        parameters = dict(objective.named_parameters())
        found = rate_factors(objective, train)
        self.learning = frozenset(found)
        for name, factors in found.items():
            groups.setdefault(factors, []).append(parameters[name])
        optimizer = torch.optim.AdamW(
            [{"params": members, "factors": factors} for factors, members in groups.items()],
            lr=train.learning_rate,
            betas=train.betas,
            weight_decay=train.weight_decay,
        )
        before = {name: buffer.dtype for name, buffer in objective.named_buffers()}
        self.model, self.optimizer = self.accelerator.prepare(objective, optimizer)
        refuse_rounded(before, dict(objective.named_buffers()))

    def enter(self, span: Span) -> None:
        """The phase of the coming steps: what is frozen in it gets no gradient, and its parts add up to a step."""
        if self._deepspeed:  # with it all phases are alike (TrainConfig)
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.requires_grad_(group["factors"][span.index] is not None)
        self.accelerator.gradient_accumulation_steps = span.shares.accumulation
        self.accelerator.step = 0  # counts parts

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def rank(self) -> int:
        """Of this process."""
        return self.plan.spans[0].shares.rank

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return self.plan.spans[0].shares.world_size

    @property
    def device(self) -> torch.device:
        """Of the model."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def sharded(self) -> bool:
        """Whether no process holds the whole model (ZeRO-3): then all must compute together."""
        return self._deepspeed and self.accelerator.state.deepspeed_plugin.zero_stage == 3

    @property
    def objective(self) -> Objective:
        """Model and losses without what accelerate put around them."""
        found: Objective = self.accelerator.unwrap_model(self.model)
        return found

    @property
    def plain(self) -> AgVas:
        """The model."""
        return self.objective.model

    def autocast(self) -> AbstractContextManager[None]:
        """bf16 where it is asked for. Not accelerate's own, which would copy the text's logits to float32."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.train.precision == "bf16" else nullcontext()

    def measuring(self) -> AbstractContextManager[None]:
        """As the model computes without training: in float32, but where frozen weights are of half the size."""
        half = any(parameter.dtype == torch.bfloat16 for parameter in self.plain.parameters())
        return self.autocast() if half else nullcontext()

    def summed(self, values: Tensor) -> Tensor:
        """Over all processes."""
        total = values.to(self.device).clone()
        if self._together:
            distributed.all_reduce(total)
        return total

    def parts(self, span: Span) -> Iterator[AbstractContextManager[None]]:
        """The parts of one step; gradients meet in the last."""
        for _ in range(span.shares.accumulation):
            yield self.accelerator.accumulate(self.model)

    def backward(self, loss: Tensor, span: Span) -> None:
        """Adds to the gradients. They are a sum over parts and processes; accelerate and its backends take means."""
        self.accelerator.backward(loss * (span.shares.accumulation * self.world_size))

    def step(self) -> float:
        """Moves the weights after the last part (DeepSpeed has done so in ``backward``); the gradients' norm before it was clipped."""
        if self._deepspeed:
            return float(self.accelerator.deepspeed_engine_wrapped.get_global_grad_norm())
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.train.clip_norm))
        if torch.isfinite(torch.tensor(norm)):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def set_rate(self, rate: float, span: Span) -> None:
        """Of the coming step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (group["factors"][span.index] or 0.0)

    def gathered(self, rows: list[Any]) -> list[Any]:
        """Those of all processes."""
        if not self._together:
            return rows
        found: list[Any] = [None] * self.world_size
        distributed.all_gather_object(found, rows)
        return [row for each in found for row in each]

    def agreed(self, value: Any) -> Any:
        """The first process's."""
        box = [value]
        if self._together:
            distributed.broadcast_object_list(box, src=0)
        return box[0]

    def wait(self) -> None:
        """For all processes."""
        if self._together:
            distributed.barrier()

    def close(self) -> None:
        """Leaves the group of processes."""
        if self._together:
            _LEFT.append(distributed.group.WORLD)
        self.accelerator.end_training()

    # What DeepSpeed keeps in pieces, whole. All processes must call these in the same order.

    def whole(self, parameter: nn.Parameter) -> Tensor:
        """A parameter in float32 where it is trained."""
        if not self._deepspeed:
            return parameter.detach()
        if parameter.requires_grad:
            from deepspeed.utils import safe_get_full_fp32_param

            found: Tensor = safe_get_full_fp32_param(parameter)
            return found.detach().cpu()
        if not self.sharded:
            return parameter.detach()
        from deepspeed.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().cpu().clone()

    def moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """AdamW's, by name; none before the first step."""
        if self._deepspeed:
            from deepspeed.utils import safe_get_full_optimizer_state

            return {key: safe_get_full_optimizer_state(parameter, key).detach().cpu() for key in _MOMENTS}
        state = self.optimizer.state.get(parameter, {})
        return {key: state[key] for key in _MOMENTS if key in state}

    def steps_of(self, parameter: nn.Parameter, step: int) -> int:
        """How often AdamW has moved a parameter in ``step`` steps: seldomer where a phase froze it."""
        state = {} if self._deepspeed else self.optimizer.state.get(parameter, {})
        return int(state["step"]) if "step" in state else step

    def put_back(self, step: int, parameter: nn.Parameter, value: Tensor, moments: dict[str, Tensor]) -> None:
        """A trained parameter, and its moments after ``step`` steps."""
        if self._deepspeed:
            from deepspeed import utils

            self._make_moments(step)
            if self.sharded:  # piece by piece: given a whole tensor, it takes for granted that the pieces are equal
                utils.safe_set_local_fp32_param(parameter, self._own_piece(value))
                for key, moment in moments.items():
                    utils.safe_set_local_optimizer_state(parameter, self._own_piece(moment), key)
            else:
                utils.safe_set_full_fp32_param(parameter, value.to(self.device))
                for key, moment in moments.items():
                    utils.safe_set_full_optimizer_state(parameter, moment.to(self.device), key)
            return
        with torch.no_grad():
            parameter.copy_(value)
        if moments:
            found = {key: moment.to(parameter.device) for key, moment in moments.items()}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(step)), **found}

    def _own_piece(self, value: Tensor) -> Tensor:
        """What ZeRO-3 keeps of a tensor in this process: flat, cut in equal pieces, the last one filled up with zeros."""
        flat = nn.functional.pad(value.flatten(), (0, -value.numel() % self.world_size))
        return flat.view(self.world_size, -1)[self.rank].to(self.device)

    def _make_moments(self, step: int) -> None:
        """DeepSpeed makes AdamW's moments in the first step, and can set none before they are there."""
        zero = self.optimizer.optimizer
        flat = zero.fp32_partitioned_groups_flat if self.sharded else zero.single_partition_of_fp32_groups
        if all(part in zero.optimizer.state for part in flat):
            return
        for part in flat:
            zero.optimizer.state[part] = {key: torch.zeros_like(part, requires_grad=False) for key in _MOMENTS}
            zero.optimizer.state[part]["step"] = torch.tensor(float(step))
        if not self.sharded:
            zero._lazy_init_hp_params_optimizer_state()

    @property
    def _together(self) -> bool:
        """Whether there are others. Asked of torch: with DeepSpeed on a CPU accelerate believes itself alone."""
        return bool(distributed.is_initialized()) and distributed.get_world_size() > 1

    @property
    def _deepspeed(self) -> bool:
        return self.train.deepspeed is not None


def refuse_rounded(before: Mapping[str, torch.dtype], after: Mapping[str, Tensor]) -> None:
    """Refuses buffers that changed their dtype: DeepSpeed up to 0.16 rounds rotary frequencies to bfloat16, and at position 1458 of ov-7b
    their phase is then wrong by 1.7 rad, with no error and a loss that looks normal.

    Args:
        before: dtype of each buffer by name; after: the buffers.

    Raises:
        SetupError: names the first.
    """
    changed = [name for name, buffer in after.items() if name in before and buffer.dtype != before[name]]
    if changed:
        raise SetupError(
            f"{len(changed)} buffers were rounded, {changed[0]} from {before[changed[0]]} to {after[changed[0]].dtype}: the model would be "
            "trained with other positions than it is used with; pip install 'deepspeed>=0.19.8'"
        )
