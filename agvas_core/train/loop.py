"""Training from scratch on procedural images: the nano preset."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from agvas_core import __version__
from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.contract.manifest import sha256_of
from agvas_core.data.synthetic.tokenizer import train_tokenizer
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model
from agvas_core.model.config import ModelConfig
from agvas_core.model.losses import segmentation_loss, text_loss, total_loss
from agvas_core.model.weights.checkpoint import WEIGHTS, Checkpoint, save_checkpoint, unique
from agvas_core.train.batches import Batch, SyntheticBatches
from agvas_core.train.calibration import Calibration, calibrate
from agvas_core.train.config import LossConfig, TrainConfig
from agvas_core.train.kinds import KindHead
from agvas_core.train.state import load_state, save_state

__all__ = ["STATE", "LogRow", "train_model"]

STATE, LOG = "state.safetensors", "log.jsonl"
LogRow = dict[str, float]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up times a cosine down to a hundredth. (B.2 decays linearly; the cosine is ours.)"""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / config.steps())))


def batch_loss(model: AgVas, kinds: KindHead, batch: Batch, config: LossConfig, bf16: bool = False) -> tuple[Tensor, LogRow]:
    """eq. 11 for one batch, the heads that name kinds beside it, and the parts of both."""
    with torch.autocast(batch.pixel.device.type, torch.bfloat16, enabled=bf16):
        output = model(batch.semantic, batch.pixel, batch.input_ids, batch.attention, batch.answer_start, image_of=batch.image_of)
        named = kinds(output, batch) if config.kinds else {}
    text = text_loss(output.text_logits, batch.labels)  # eq. 9
    logits = F.interpolate(output.mask_logits.float(), size=batch.mask.shape[-2:], mode="bilinear", align_corners=False)
    unasked = (batch.kinds[batch.image_of] > 0) & ~batch.mask
    supervise = batch.has_mask[:, None].expand(-1, 3)
    masks, parts = segmentation_loss(logits, batch.mask.float(), config.weights(), supervise, unasked)  # eq. 10
    loss = total_loss(text, masks) + config.kinds * sum(named.values(), start=torch.zeros(()))
    parts |= {name: part.detach() for name, part in named.items()}
    return loss, {
        "loss": loss.item(),
        "text": text.item(),
        "masks": masks.item(),
        **{name: part.item() for name, part in parts.items()},
    }


def train_model(
    model_config: ModelConfig,
    train_config: TrainConfig,
    out: Path,
    *,
    init: Checkpoint | None = None,
    resume: bool = False,
    save_every_s: float = 120.0,
    progress: Callable[[int, int, LogRow], None] | None = None,
    calibrating: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Trains and writes a checkpoint folder; returns it.

    ``out`` gets ``log.jsonl`` (one line for each 10 steps: their means), ``state.safetensors`` (to resume) and the checkpoint itself, whose
    weights are the moving average of the run. Same configuration, threads and machine: same weights, resumed or not.

    Args:
        init: start from these weights and this tokenizer, where names and shapes agree; from scratch where None.
        save_every_s: state and checkpoint are written when so many seconds have passed, and at the end.
        progress: called after each step with images seen, images in all, and that step's row of the log.
        calibrating: called after each image of the calibration that follows, with images seen and images in all.

    Raises:
        UsageError: ``out`` holds a run and ``resume`` is not set; or it holds one with another configuration.
        SetupError: the loss is not finite (the step and the seed are named: the batch can be made again).
    """
    if model_config.trained != ("all",):
        raise UsageError(
            f"model {model_config.name} trains only {', '.join(model_config.trained)}; this training starts from scratch and trains "
            'everything: set trained = ["all"], or use --preset nano'
        )
    out.mkdir(parents=True, exist_ok=True)
    if (out / STATE).exists() and not resume:
        raise UsageError(f"{out} already holds a run: pass --resume to go on with it, or another --out")
    torch.manual_seed(train_config.seed)
    model = build_model(model_config).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    started_from = None if init is None else start_from(model, init, train_config.fresh)
    tokenizer = train_tokenizer(model_config.lmm.vocab_size) if init is None else init.tokenizer
    detail_dim = model_config.agmd.mask_dim if model_config.agmd.detail else None
    kinds = KindHead(model_config.pixel.channels, detail_dim, int(model_config.lmm.text["hidden_size"]))
    trained = nn.ModuleDict({"model": model, "kinds": kinds})
    optimizer = torch.optim.AdamW(
        parameter_groups(trained, train_config.rates), lr=0.0, betas=(0.9, 0.95), weight_decay=train_config.weight_decay
    )
    ema = {name: tensor.detach().clone() for name, tensor in unique(model.state_dict()).items()}
    run = {
        "model": model_config.model_dump(mode="json"),
        "train": train_config.model_dump(mode="json", exclude={"workers", "calibration"}),
        "init": started_from,
    }
    start = load_state(out / STATE, trained, ema, optimizer, run) if resume and (out / STATE).exists() else 0
    trim_log(out / LOG, start)

    data = SyntheticBatches(train_config, model_config, tokenizer)
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=range(start, len(data)),
        num_workers=train_config.workers,
        prefetch_factor=4 if train_config.workers else None,
        multiprocessing_context="spawn" if train_config.workers else None,  # OpenCV's and torch's threads do not survive a fork
    )
    total, saved, recent = images_before(train_config, len(data)), time.monotonic(), list[LogRow]()
    with (out / LOG).open("a", encoding="utf-8") as log:
        for step, batch in enumerate(loader, start):
            rate = learning_rate(train_config, step)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            loss, parts = batch_loss(model, kinds, batch, train_config.loss, train_config.precision == "bf16")
            if not math.isfinite(parts["loss"]):
                raise SetupError(
                    f"the loss is {parts['loss']} at step {step} (seed {train_config.seed}); the last good state is in {out}: "
                    "lower learning_rate and train again, or look at that batch with SyntheticBatches(...)[step]"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(trained.parameters(), train_config.clip_norm)
            optimizer.step()
            average(ema, model, min(train_config.ema_decay, (step + 1) / (step + 10)))  # young averages forget the random start
            seen = images_before(train_config, step + 1)
            place = {"step": step + 1, "images": seen, "learning_rate": rate}
            row = {**place, "grad_norm": norm.item(), **parts}
            recent.append(row)
            if (step + 1) % 10 == 0:
                means = {name: sum(each[name] for each in recent) / len(recent) for name in row}
                log.write(json.dumps({name: round(value, 6) for name, value in (means | place).items()}) + "\n")
                log.flush()
                recent.clear()
            if progress:
                progress(seen, total, row)
            if time.monotonic() - saved > save_every_s:
                save_state(out / STATE, step + 1, trained, ema, optimizer, run)
                write_checkpoint(out, ema, model_config, train_config, tokenizer, step + 1, started_from)
                saved = time.monotonic()
    save_state(out / STATE, len(data), trained, ema, optimizer, run)
    calibration = None
    if train_config.calibration is not None:
        model.load_state_dict(ema, strict=False)
        calibration = calibrate(model.eval(), model_config, train_config, tokenizer, train_config.calibration, calibrating)
        ema = calibration.moved(ema)
        model_config = model_config.model_copy(update={"decision": calibration.decision})
    write_checkpoint(out, ema, model_config, train_config, tokenizer, len(data), started_from, calibration)
    return out


def write_checkpoint(
    out: Path,
    ema: dict[str, Tensor],
    model_config: ModelConfig,
    train_config: TrainConfig,
    tokenizer: Tokenizer,
    step: int,
    started_from: dict[str, Any] | None,
    calibration: Calibration | None = None,
) -> None:
    """The averaged weights with what made them."""
    training: dict[str, Any] = {
        "agvas": __version__,
        "torch": torch.__version__,
        "step": step,
        "steps": train_config.steps(),
        "images": images_before(train_config, step),
        "init": started_from,
        "last": last_row(out / LOG),
        "train": train_config.model_dump(mode="json"),
        "calibration": calibration.record if calibration else None,
    }
    save_checkpoint(out, ema, model_config, tokenizer, training)


@torch.no_grad()
def start_from(model: AgVas, init: Checkpoint, fresh: tuple[str, ...] = ()) -> dict[str, Any]:
    """Takes over every weight whose name and shape agree, but for the parts that are to be ``fresh``; returns the record of it.

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
    return {
        "checkpoint": init.folder.resolve().name,
        "sha256": sha256_of(init.folder / WEIGHTS),
        "images": init.training.get("images"),
        "taken": len(taken),
        "of": len(own),
    }


def parameter_groups(trained: nn.ModuleDict, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Parameters by their factor on the learning rate.

    Raises:
        UsageError: a name that no parameter begins with.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    used: set[str] = set()
    for name, parameter in trained.named_parameters():
        fitting = [part for part in rates if name.removeprefix("model.").startswith(part)]
        used.update(fitting)
        factor = rates[max(fitting, key=len)] if fitting else 1.0
        groups.setdefault(factor, []).append(parameter)
    if unused := sorted(rates.keys() - used):
        raise UsageError(
            f"rates names {unused[0]}, which no parameter begins with; parts are {', '.join(n for n, _ in trained['model'].named_children())}"
        )
    return [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]


def images_before(config: TrainConfig, step: int) -> int:
    """Images seen in the first ``step`` steps."""
    schedule = config.schedule()
    ends = [first for first, _ in schedule[1:]] + [config.steps()]
    return sum(phase.batch * max(0, min(step, end) - first) for (first, phase), end in zip(schedule, ends, strict=True))


@torch.no_grad()
def average(ema: dict[str, Tensor], model: AgVas, decay: float) -> None:
    """ema = decay * ema + (1 - decay) * weights; counters are copied."""
    state = model.state_dict()
    for name, tensor in ema.items():
        if tensor.dtype.is_floating_point:
            tensor.lerp_(state[name], 1 - decay)
        else:
            tensor.copy_(state[name])


def last_row(path: Path) -> LogRow | None:
    """The newest line of the log."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return json.loads(lines[-1]) if lines else None


def trim_log(path: Path, step: int) -> None:
    """Drops rows past ``step``: they were logged after the last saved state and will be logged again."""
    if path.exists():
        rows = [
            line
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.endswith("}") and json.loads(line)["step"] <= step
        ]
        path.write_text("".join(line + "\n" for line in rows), encoding="utf-8")
