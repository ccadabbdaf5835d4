"""The logs of a run: ``log.jsonl``, TensorBoard's event files, Weights & Biases where it is asked for; and the loss plot."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch.utils.tensorboard import SummaryWriter

from agvas_core.contract.errors import SetupError

__all__ = ["LOG", "VALIDATION_LOG", "RunLog", "plot_log"]

LOG: Final = "log.jsonl"
VALIDATION_LOG: Final = "validation.jsonl"
_EVENTS: Final = "events"


class RunLog:
    """Rows past ``step`` are dropped at the start: they were written after the last saved state, and come again.

    Args:
        wandb: project, None for none.
    """

    def __init__(self, out: Path, step: int, config: Mapping[str, Any], wandb: str | None = None) -> None:
        for name in (LOG, VALIDATION_LOG):
            _trim(out / name, step)
        self._out = out
        self._events = SummaryWriter(str(out / _EVENTS), purge_step=step + 1 if step else None)
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
        raise SetupError(f"train.wandb is {project!r} and wandb is not installed: pip install wandb, or leave it out") from error
    return wandb.init(project=project, dir=str(out), config=dict(config))


def _trim(path: Path, step: int) -> None:
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        path.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")


def plot_log(log: Path, picture: Path) -> bool:
    """Draws ``log.jsonl``: text and mask losses (faint: each row; strong: mean of 25), and the learning rate.

    False, and no picture, where the log has no row yet.
    """
    import numpy as np
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    if not rows:
        return False
    images = np.array([row["images"] for row in rows]) / 1000
    figure = Figure(figsize=(8, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    for name, label in (("masks", "masks (eq. 10)"), ("text", "text (eq. 9)")):
        values = np.array([row[name] for row in rows])
        (line,) = top.plot(images, values, alpha=0.2, linewidth=0.8)
        window = min(25, len(values))
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        top.plot(images[window - 1 :], smooth, color=line.get_color(), label=label)
    top.set(ylabel="loss", yscale="log", title=f"{log.parent.name}: loss")
    top.legend()
    top.grid(alpha=0.3)
    bottom.plot(images, [row["learning_rate"] for row in rows], color="gray")
    bottom.set(xlabel="images seen (thousands)", ylabel="learning rate")
    figure.savefig(picture, dpi=110)
    return True
