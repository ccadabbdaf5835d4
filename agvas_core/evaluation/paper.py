"""The paper's figures as rows beside ours, each marked as the paper's."""

import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from agvas_core.evaluation.metrics import METRICS

__all__ = ["PaperRow", "paper_rows", "source"]

MVTEC = "MVTec-AD"
_METRICS = ("ap", "f1_max", "iou_ano", "iou_nor")


@dataclass(frozen=True)
class PaperRow:
    """``method`` on a set, or on one category of it; metrics as shares, None where the paper has none."""

    method: str
    dataset: str
    category: str | None
    metrics: dict[str, float | None]


def paper_rows(set_name: str, categories: list[str]) -> Iterator[PaperRow]:
    """Rows of the set of that name, and for MVTec-AD of those categories; none where the paper has no such set."""
    data = _data()
    dataset = data["names"].get(set_name.lower())
    if dataset is None:
        return
    if dataset == MVTEC:
        method = next(iter(data["mean"]))
        for category in categories:
            if category in data["mvtec"]:
                yield PaperRow(method, dataset, category, _metrics(data["mvtec"][category]))
    for method, sets in data["mean"].items():
        if dataset in sets:
            whole = f"{dataset}, {len(data['mvtec'])} categories" if dataset == MVTEC else dataset  # ours may be fewer
            yield PaperRow(method, whole, None, _metrics(sets[dataset]))


def source() -> str:
    """Where the figures stand."""
    return str(_data()["source"])


def _data() -> dict[str, Any]:
    return tomllib.loads(resources.files("agvas_core.evaluation").joinpath("paper.toml").read_text(encoding="utf-8"))


def _metrics(percent: list[float]) -> dict[str, float | None]:
    known = {key: None if math.isnan(value) else round(value / 100, 6) for key, value in zip(_METRICS, percent, strict=True)}
    return {key: known.get(key) for key in METRICS}
