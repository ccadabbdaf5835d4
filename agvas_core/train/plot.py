"""The loss over images seen, as a picture."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

__all__ = ["plot_log"]


def plot_log(log: Path, picture: Path) -> bool:
    """Draws ``log.jsonl``: total, text and mask losses (faint: each row; strong: mean of 25), and the learning rate.

    False, and no picture, where the log has no row: a run of fewer than 10 steps.
    """
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
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
