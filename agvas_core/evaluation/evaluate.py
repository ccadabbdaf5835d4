"""The evaluation of sets: images in parallel, then the metrics of each category, each kept as soon as it is known.

    sets, model = find_test_sets(Path("data")), Model(find_opener(), "nano")
    results = evaluate(sets, {one.name: model for one in sets}, Job(find_protocol("native"), out=Path("runs/eval")))

A second call with the same ``out`` takes up where the first one was killed, and reads what has not changed from there.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import OutputError, UsageError
from agvas_core.data.datasets.item import DataSet, Item, examine
from agvas_core.evaluation import cross_check as checks
from agvas_core.evaluation.image_score import ImageRecord, ImageScorer, Unusable, image_metrics
from agvas_core.evaluation.metrics import CHUNK, mean_of, merge, open_run, rank, remove_run, run_is_there
from agvas_core.evaluation.predictor import MapSource
from agvas_core.evaluation.protocol import Protocol
from agvas_core.evaluation.result import CategoryResult, SetResult
from agvas_core.evaluation.workers import Workers

__all__ = ["Job", "evaluate"]

LISTED = 10
Advance = Callable[[str], None]
_Usable = tuple[DataSet, dict[str, list[Unusable]], tuple[str, ...]]
_KIND_OF_NOTE = re.compile(r"[0-9]+")  # notes that differ in figures only are one


@dataclass(frozen=True)
class Job:
    """How to score."""

    protocol: Protocol
    out: Path
    """Folder for results and for what a later call goes on from."""
    threshold: float | None = None
    """M = P > threshold; None is the protocol's, and then maps outside of 0..1 give no IoU."""
    jobs: int = 1
    cross_check: bool = False
    skip_unusable: bool = False
    """Leave out images that cannot be scored, and say so, in place of refusing the set."""
    chunk: int = CHUNK
    keep_runs: bool = False
    """Keep what ranks pixels (4 bytes a pixel), for another ranking of some of the same images."""


def evaluate(
    sets: Sequence[DataSet], sources: Mapping[str, MapSource], job: Job, advance: Advance = lambda _: None
) -> tuple[SetResult, ...]:
    """Scores all sets.

    Args:
        sources: name of a set -> where its maps come from.
        advance: called with "check" and "score", once for each image.

    Raises:
        UsageError: images, masks or maps that cannot be scored, listed.
        ParityError: --cross-check found a difference.
        OutputError: the folder cannot be written.
    """
    folder = job.out / "images"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Workers(job.jobs) as workers:
            usable = [_usable(one, job, workers, advance) for one in sets]
            return tuple(
                SetResult(
                    data.name,
                    data.layout,
                    tuple(_categories(data, left_out, sources[data.name], job, workers, advance)),
                    notes,
                )
                for data, left_out, notes in usable
            )
    except BrokenPipeError:  # of the terminal, not of the folder
        raise
    except OSError as error:
        why = error.strerror or error
        raise OutputError(f"cannot write into {job.out}: {why}; choose a folder with space and write permission") from error


def _usable(data: DataSet, job: Job, workers: Workers, advance: Advance) -> _Usable:
    """The set without what cannot be scored, that by category, and notes; refused unless it may be left out."""
    left_out: dict[str, list[Unusable]] = {}
    kept = []
    noted: dict[str, list[str]] = {}
    for item, found in zip(data.items, workers.map(examine, data.items), strict=True):
        advance("check")
        if found.reason is None:
            kept.append(item)
        else:
            left_out.setdefault(item.category, []).append(Unusable(item.name, found.reason))
        for note in found.notes:
            what, _, text = note.partition(" ")
            kind = what + text.partition(" ")[2] if what == "mask:" else note
            noted.setdefault(_KIND_OF_NOTE.sub("", kind), []).append(f"{item.name}: {note}")
    _refuse([one for listed in left_out.values() for one in listed], data, job)
    if not kept:
        raise UsageError(f"no image of {data.name} can be scored: {next(iter(left_out.values()))[0].reason}")
    notes = tuple(listed[0] + (f" ({len(listed)} such in {data.name})" if len(listed) > 1 else "") for listed in noted.values())
    return DataSet(data.name, data.layout, data.root, tuple(kept)), left_out, notes


def _refuse(unusable: Sequence[Unusable], data: DataSet, job: Job) -> None:
    if not unusable or job.skip_unusable:
        return
    listed = "".join(f"\n  {one.reason}" for one in unusable[:LISTED])
    more = f"\n  and {len(unusable) - LISTED} more" if len(unusable) > LISTED else ""
    raise UsageError(
        f"{len(unusable)} of the {len(data.items)} images of {data.name} cannot be scored; fix them, or pass --skip-unusable to "
        f"leave them out of every figure:{listed}{more}"
    )


def _categories(
    data: DataSet,
    left_out: Mapping[str, list[Unusable]],
    source: MapSource,
    job: Job,
    workers: Workers,
    advance: Advance,
) -> Iterator[CategoryResult]:
    threshold = job.protocol.threshold if job.threshold is None else job.threshold
    scorer = ImageScorer(source, job.protocol, threshold, job.out / "images", job.cross_check)
    by_category: dict[str, list[Item]] = {}
    for item in data.items:
        by_category.setdefault(item.category, []).append(item)
    for name, items in sorted(by_category.items()):
        records: list[ImageRecord] = []
        refused: list[Unusable] = []
        for outcome in workers.map(scorer, items):
            advance("score")
            if isinstance(outcome, ImageRecord):
                records.append(outcome)
            else:
                refused.append(outcome)
        _refuse(refused, data, job)
        yield _category(data, name, records, (*left_out.get(name, []), *refused), scorer, job, workers)


def _category(
    data: DataSet,
    name: str,
    records: list[ImageRecord],
    left_out: tuple[Unusable, ...],
    scorer: ImageScorer,
    job: Job,
    workers: Workers,
) -> CategoryResult:
    whole = hashlib.sha256(" ".join(record.key for record in records).encode()).hexdigest()[:24]
    path = job.out / "images" / f"category-{whole}.json"
    if path.is_file():
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    else:
        known = _ranked(f"{data.name}/{name}", records, {item.name: item for item in data.items}, scorer, job, workers)
        write_whole(path, json.dumps(known))
    if not job.keep_runs:
        for record in records:
            remove_run(job.out / "images" / record.key)  # 4 bytes a pixel, of no more use
    good = [record for record in records if not record.anomalous]
    # 0.5 says nothing about maps on another scale; a threshold that was asked for is another matter.
    on_scale = job.threshold is not None or all(record.lowest >= 0 and record.score <= 1 for record in records)
    metrics: dict[str, float | None] = {
        **known["metrics"],
        **image_metrics(records),
        "iou_ano": mean_of(record.iou for record in records) if on_scale else None,
        "iou_nor": sum(not record.flagged for record in good) / len(good) if good and on_scale else None,
    }
    if job.cross_check:
        figures = {key: value for key, value in known["checks"].items() if on_scale or not key.startswith("iou")}
        checks.compare(f"{data.name}/{name}", metrics, figures)
    return CategoryResult(
        name=name,
        metrics=metrics,
        f1_threshold=known["f1_threshold"],
        curve=[(recall, precision) for recall, precision in known["curve"]],
        records=tuple(records),
        left_out=left_out,
        checks=known["checks"],
    )


def _ranked(
    where: str, records: list[ImageRecord], items: Mapping[str, Item], scorer: ImageScorer, job: Job, workers: Workers
) -> dict[str, Any]:
    """Whatever needs the runs: ranking metrics, curve, figures of other libraries."""
    folder = job.out / "images"
    gone = [items[record.name] for record in records if not run_is_there(folder / record.key)]
    for outcome in workers.map(_Again(scorer), gone):
        if isinstance(outcome, Unusable):
            raise UsageError(f"{where}: {outcome.reason}")
    runs = [open_run(folder / record.key) for record in records]
    pixels = sum(record.size[0] * record.size[1] for record in records if record.unlike is None)
    anomalous = sum(record.truth_px for record in records)
    regions = sum(len(record.regions) for record in records)
    ranking = rank(merge(runs, job.chunk), normal=pixels - anomalous, anomalous=anomalous, regions=regions)
    return {
        "metrics": {"ap": ranking.ap, "f1_max": ranking.f1_max, "auroc": ranking.auroc, "aupro": ranking.aupro},
        "f1_threshold": ranking.f1_threshold,
        "curve": ranking.curve,
        "checks": checks.recompute(runs, records) if job.cross_check else {},
    }


@dataclass(frozen=True)
class _Again:
    scorer: ImageScorer

    def __call__(self, item: Item) -> ImageRecord | Unusable:
        return self.scorer(item, again=True)
