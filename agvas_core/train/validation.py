"""Validation during a run: the metrics of ``agvas eval`` on images that training never draws."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, OutputError
from agvas_core.data.datasets.item import DataSet, Item, examine
from agvas_core.data.datasets.layouts import find_test_sets, limited
from agvas_core.data.datasets.record import Record
from agvas_core.evaluation.evaluate import Job, evaluate
from agvas_core.evaluation.metrics import METRICS, mean_of
from agvas_core.evaluation.predictor import Predictor, Scored
from agvas_core.evaluation.protocol import find_protocol
from agvas_core.evaluation.result import SetResult
from agvas_core.files import read_rgb
from agvas_core.train.config import ValidationConfig

__all__ = ["held_out_sets", "validate"]

FOLDER = "validation"


def held_out_sets(
    config: ValidationConfig, records: Sequence[Record], out: Path, write: bool, wait: Callable[[], None] = lambda: None
) -> list[DataSet]:
    """What is validated on: the sets of ``config.data``, or the records held out of the mixture. None of their images is unusable.

    Args:
        write: whether this process writes the masks of held-out records, as pictures, into ``out/validation/masks``.
        wait: for all processes: none may look before they are written.

    Raises:
        UsageError: ``config.data`` has no set.
        OutputError: the masks cannot be written.
    """
    sets = find_test_sets(config.data) if config.data is not None else _of_records(records, out / FOLDER / "masks", write)
    wait()
    if config.limit is not None:
        sets = [limited(one, config.limit, 0) for one in sets]
    usable = [
        DataSet(one.name, one.layout, one.root, tuple(item for item in one.items if examine(item).reason is None)) for one in sets
    ]
    return [one for one in usable if one.items]


def validate(predictor: Predictor, sets: Sequence[DataSet], out: Path) -> Mapping[str, float | None]:
    """Mean over the sets of each metric, all in 0..1; None where it does not exist. The model's own masks count (protocol ``native``)."""
    folder = out / FOLDER / "scores"
    shutil.rmtree(folder, ignore_errors=True)  # another model: nothing of the last one can be used
    source = _Source(predictor)
    results: tuple[SetResult, ...] = evaluate(sets, {one.name: source for one in sets}, Job(find_protocol("native"), folder))
    shutil.rmtree(folder, ignore_errors=True)
    return {key: mean_of(one.mean[key] for one in results) for key in METRICS}


@dataclass(frozen=True)
class _Source:
    """The model in memory, as ``evaluate`` takes it."""

    predictor: Predictor

    @property
    def identity(self) -> str:
        return self.predictor.identity

    def fingerprint(self, item: Item) -> str:
        return self.identity

    def read(self, item: Item) -> Scored:
        score_map, mask, *_ = self.predictor.predict(item.image_path)
        if not np.isfinite(score_map).all():
            raise ImageError(f"{item.name}: the model gave values that are NaN or infinite")
        return Scored(score_map, mask)


def _of_records(records: Sequence[Record], masks: Path, write: bool) -> list[DataSet]:
    items: dict[str, list[Item]] = {}
    for number, record in enumerate(records):
        if record.anomalous is None or (record.anomalous and record.mask is None):
            continue
        path = masks / f"{number:06d}.png" if record.anomalous else None
        if path is not None and record.mask is not None and write:
            try:
                mask = record.mask.read(read_rgb(record.image, record.name).shape[:2])
            except ImageError:
                continue  # examine() leaves it out everywhere: its mask is not there
            _write_mask(path, mask)
        kind = (record.kind or "anomaly") if record.anomalous else "good"
        category = record.category or record.dataset
        items.setdefault(record.dataset, []).append(Item(record.image, path, category, kind, bool(record.anomalous), record.name))
    return [DataSet(name, "held out", masks, tuple(found)) for name, found in sorted(items.items())]


def _write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), mask.astype(np.uint8) * 255):
        raise OutputError(f"cannot write {path}; choose an --out with space and write permission")
