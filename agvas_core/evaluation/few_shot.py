"""Few-shot evaluation: fit on a few good images of each category, test on the rest, several times.

    sets = find_test_sets(Path("data"), train=True)
    plan = Plan(shots=(0, 4, 16), seeds=3)
    model = Learner(find_fitter(), find_opener(), "nano", Path("runs/eval"))
    result = few_shot(sets, model, plan, Job(find_protocol("native"), Path("runs/eval")))

Good images come from the layout's training half where it has one. Else they are drawn from the good images of the test half, at most
half of them, and are not tested. All shot counts of one seed are tested on the same images, so their figures can be compared; the
first N of one draw are used, so 4 images are among the 16.

A fitter registers an object under the entry-point group ``agvas.fitters``; the one of ``agvas fit`` is ``product``.
"""

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np

from agvas_core import __version__
from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import OutputError, SetupError, UsageError
from agvas_core.contract.manifest import sha256_of
from agvas_core.data.datasets.item import DataSet, Item
from agvas_core.data.datasets.layouts import limited
from agvas_core.evaluation.evaluate import Job, evaluate
from agvas_core.evaluation.image_score import ImageScorer
from agvas_core.evaluation.metrics import METRICS, mean_of, remove_run
from agvas_core.evaluation.predictor import MapSource, Model, Predictor, Scored
from agvas_core.evaluation.result import CategoryResult, Metrics

__all__ = [
    "COLUMNS",
    "GROUP",
    "FewShot",
    "Fitter",
    "Learner",
    "Line",
    "Plan",
    "Split",
    "Spread",
    "Trial",
    "draw",
    "few_shot",
    "find_fitter",
    "parse_shots",
    "shots_text",
    "splits",
    "spread_text",
]

GROUP: Final = "agvas.fitters"
MAX_SHOTS: Final = 10_000
TEST_SHARE: Final = 0.5
"""At most this share of the test half's good images is taken away for fitting."""
COLUMNS: Final = ("image_auroc", "ap", "iou_ano", "iou_nor", "caught_0", "caught_5")
"""Metrics of the few-shot table, in its order."""


class Fitter(Protocol):
    """Makes a product of good images."""

    identity: str
    """Changes whenever its products may: name and version."""

    def __call__(self, good: Sequence[Path], out: Path, *, model: str, seed: int, threads: int | None) -> None:
        """Writes a product, whole or not at all, to the folder ``out``, which the fitter's predictor can open.

        Args:
            good: image files of good parts, one at least.
            model: what the product is made from, a bundled name or a bundle.
            seed: of every choice that is left to chance.
            threads: CPU threads; all cores where None.

        Raises:
            AgvasError: these images make no product.
        """
        ...


def find_fitter(name: str = "product") -> Fitter:
    """The fitter of that name.

    Raises:
        UsageError: it is not registered.
        SetupError: nothing is registered.
    """
    found = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not found:
        raise SetupError(f"no installed package can fit (group {GROUP}): pip install --force-reinstall agvas")
    if name not in found:
        raise UsageError(f"--fitter is {name!r}; installed are {', '.join(sorted(found))}")
    return cast(Fitter, found[name].load())


def parse_shots(text: str) -> tuple[int, ...]:
    """``0,1,4,16`` as numbers, ascending.

    Raises:
        UsageError: not such a list, or a number is given twice.
    """
    try:
        shots = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--shots is {text!r}; numbers of good images with commas are needed: 0,1,4,16") from None
    if not all(0 <= count <= MAX_SHOTS for count in shots):
        raise UsageError(f"--shots is {text!r}; each number lies in 0 to {MAX_SHOTS:,}")
    if len(set(shots)) < len(shots):
        raise UsageError(f"--shots is {text!r}, which has a number twice: leave one out")
    return tuple(sorted(shots))


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    shots: tuple[int, ...]
    """Numbers of good images, ascending; 0 is the model without any."""
    seeds: int = 3
    """How many draws: seeds 0, 1, ..."""
    limit: int | None = None
    """Test at most this many images of each kind."""


@dataclass(frozen=True)
class Split:
    """One category for one seed."""

    good: tuple[Item, ...]
    """To fit on, in the order in which they were drawn."""
    test: DataSet


def draw(data: DataSet, category: str, most: int, seed: int) -> Split:
    """Draws good images of a category to fit on; the rest is tested. The same draw on every machine.

    Args:
        most: images to draw; fewer are drawn where there are not that many.
    """
    items = [item for item in data.items if item.category == category]
    train = [item for item in data.train if item.category == category]
    pool = {item.name: item for item in (train or items) if not item.anomalous}
    names = sorted(pool)
    random.Random(f"{seed}/{data.name}/{category}/good").shuffle(names)  # a string seeds by its bytes on every machine
    room = len(names) if train else int(TEST_SHARE * len(names))
    drawn = names[: min(most, room)]
    taken = set() if train else set(drawn)
    test = replace(data, items=tuple(item for item in items if item.name not in taken), train=())
    return Split(tuple(pool[name] for name in drawn), test)


def splits(data: DataSet, plan: Plan, seed: int) -> dict[str, Split]:
    """The categories of a set that have a good image to fit on and another one to test."""
    found = {}
    for category in sorted({item.category for item in data.items}):
        one = draw(data, category, max(plan.shots), seed)
        if (not one.good and max(plan.shots)) or all(item.anomalous for item in one.test.items):
            continue
        test = one.test if plan.limit is None else limited(one.test, plan.limit, seed)
        found[category] = Split(one.good, test)
    return found


@dataclass(frozen=True)
class Learner:
    """What fits, what opens its products, and from which model it starts."""

    fitter: Fitter
    opener: Callable[..., Predictor]
    model: str
    out: Path
    """Products are made in ``out/products``, and removed once they were tested."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the opener."""

    @property
    def plain(self) -> Model:
        """The model that has seen no good image."""
        return Model(self.opener, self.model, self.options)

    def source(self, good: Sequence[Item], seed: int) -> "Model | Learned":
        """Maps of the model fitted on ``good``; of the model as it is where there are none."""
        if not good:
            return self.plain
        try:
            files = [sha256_of(item.image_path) for item in good]
        except OSError as error:
            raise UsageError(f"{error.filename} cannot be read ({error.strerror}): copy the set again") from error
        facts = [__version__, self.fitter.identity, self.plain.identity, files, seed]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
        return Learned(self, key, tuple(item.image_path for item in good), seed)


@dataclass(frozen=True)
class Learned:
    """Maps of a product that is made when one of them is first needed; satisfies ``predictor.MapSource``."""

    learner: Learner
    key: str
    """Of all that the product depends on."""
    good: tuple[Path, ...]
    seed: int

    @property
    def folder(self) -> Path:
        """Of the product."""
        return self.learner.out / "products" / self.key

    @property
    def identity(self) -> str:
        """What messages call it."""
        return f"{self.learner.plain.identity} fitted on {len(self.good)} good images"

    def fingerprint(self, item: Item) -> str:
        """The same for every item; the image's own hash is added elsewhere."""
        return f"{self.key} {sorted(self.learner.options.items())}"

    def read(self, item: Item) -> Scored:
        """Asks the product."""
        self.fit()
        return self._model.read(item)

    @property
    def _model(self) -> Model:
        return Model(self.learner.opener, str(self.folder), self.learner.options)

    def fit(self) -> None:
        """Makes the product unless it is there."""
        if self.folder.is_dir():
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        threads = self.learner.options.get("threads")
        self.learner.fitter(self.good, self.folder, model=self.learner.model, seed=self.seed, threads=threads)
        if not self.folder.is_dir():
            raise SetupError(f"the fitter {self.learner.fitter.identity} wrote no product to {self.folder}: it is at fault")
        write_whole(self._record, json.dumps({"good": len(self.good), "seconds": round(time.monotonic() - began, 2)}))

    @property
    def fit_seconds(self) -> float | None:
        """That fitting took; None where that is not known."""
        try:
            return float(json.loads(self._record.read_text(encoding="utf-8"))["seconds"])
        except OSError:
            return None

    def remove(self) -> None:
        """Frees memory and disk; what was measured stays."""
        self._model.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _record(self) -> Path:
        return self.folder.with_suffix(".json")


@dataclass(frozen=True)
class Trial:
    """One category, one number of good images, one draw."""

    dataset: str
    layout: str
    shots: int
    """As asked for."""
    used: int
    """Images that were fitted on; fewer than ``shots`` where there are not that many."""
    seed: int
    fit_seconds: float | None
    result: CategoryResult


@dataclass(frozen=True)
class Spread:
    """A metric over the seeds."""

    mean: float
    deviation: float | None
    """Standard deviation of the draws (n - 1); None for one draw."""

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """None where the metric does not exist."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None)


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    dataset: str
    category: str
    """Name, or ``mean``."""
    shots: int
    used: tuple[int, ...]
    """Numbers of images that were fitted on, where they differ from ``shots``."""
    images: int
    """Tested in the first draw."""
    metrics: dict[str, Spread | None]


@dataclass(frozen=True)
class FewShot:
    """What a few-shot evaluation found."""

    subject: str
    protocol: dict[str, Any]
    plan: Plan
    trials: tuple[Trial, ...]
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[Line]:
        """Category by category, then the mean of each set, then that of all sets; each for every number of good images."""
        found: list[Line] = []
        sets = list(dict.fromkeys(trial.dataset for trial in self.trials))
        for dataset in sets:
            own = [trial for trial in self.trials if trial.dataset == dataset]
            categories = list(dict.fromkeys(trial.result.name for trial in own))
            for category in categories:
                some = [trial for trial in own if trial.result.name == category]
                found += self._lines(dataset, category, some)
            if len(categories) > 1:
                found += self._lines(dataset, "mean", own)
        if len(sets) > 1:
            found += self._lines("all sets", "mean", list(self.trials))
        return found

    def _lines(self, dataset: str, category: str, trials: Sequence[Trial]) -> Iterator[Line]:
        for shots in self.plan.shots:
            some = [trial for trial in trials if trial.shots == shots]
            means = [_mean([trial for trial in some if trial.seed == seed]) for seed in range(self.plan.seeds)]
            yield Line(
                dataset,
                category,
                shots,
                tuple(sorted({trial.used for trial in some} - {shots})),
                sum(len(trial.result.records) for trial in some if trial.seed == 0),
                {key: Spread.of(mean[key] for mean in means) for key in METRICS},
            )

    def to_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "subject": self.subject,
            "protocol": self.protocol,
            "shots": list(self.plan.shots),
            "seeds": self.plan.seeds,
            **self.facts,
            "notes": list(self.notes),
            "table": [
                {
                    "set": line.dataset,
                    "category": line.category,
                    "shots": line.shots,
                    "used": list(line.used) or [line.shots],
                    "images": line.images,
                    "mean": {key: value.mean if value else None for key, value in line.metrics.items()},
                    "deviation": {key: value.deviation if value else None for key, value in line.metrics.items()},
                }
                for line in self.lines()
            ],
            "trials": [
                {
                    "set": trial.dataset,
                    "layout": trial.layout,
                    "shots": trial.shots,
                    "used": trial.used,
                    "seed": trial.seed,
                    "fit_seconds": trial.fit_seconds,
                    **trial.result.to_dict(),
                }
                for trial in self.trials
            ],
        }


def _mean(trials: Sequence[Trial]) -> Metrics:
    """Over the categories of each set, then over the sets, as everywhere (paper 4.1)."""
    sets: dict[str, list[Metrics]] = {}
    for trial in trials:
        sets.setdefault(trial.dataset, []).append(trial.result.metrics)
    means = [{key: mean_of(one[key] for one in some) for key in METRICS} for some in sets.values()]
    return {key: mean_of(one[key] for one in means) for key in METRICS}


class Follow(Protocol):
    """Called with the progress; ``progress.EvalProgress`` is one."""

    def doing(self, what: str) -> None:
        """What comes next."""
        ...

    def advance(self, phase: str) -> None:
        """As ``advance`` of ``evaluate``."""
        ...


def few_shot(sets: Sequence[DataSet], learner: Learner, plan: Plan, job: Job, follow: Follow) -> tuple[Trial, ...]:
    """Fits and tests, set by set; a later call with the same ``job.out`` goes on from there.

    Raises:
        UsageError: no category has good images to fit on; and as ``evaluate`` does.
        OutputError: the folder cannot be written.
        AgvasError: the fitter refuses a category's images.
    """
    planned = {data.name: [splits(data, plan, seed) for seed in range(plan.seeds)] for data in sets}
    if not any(by_category for seeds in planned.values() for by_category in seeds):
        raise UsageError("--shots needs good images and no set has two of them in any category: leave --shots out")
    trials: list[Trial] = []
    for data in sets:
        for category in planned[data.name][0]:
            for shots in plan.shots:
                trials += _trials(data, category, shots, [one[category] for one in planned[data.name]], learner, job, follow)
    return tuple(trials)


def _trials(
    data: DataSet, category: str, shots: int, seeds: Sequence[Split], learner: Learner, job: Job, follow: Follow
) -> Iterator[Trial]:
    keys: set[str] = set()
    for seed, split in enumerate(seeds):
        good = split.good[:shots]
        follow.doing(f"{data.name}/{category}, {len(good)} good images, seed {seed}")
        source = learner.source(good, seed)
        # Without fitting, every seed asks the same model about nearly the same images: what ranks their pixels is kept until all are done.
        here = replace(job, keep_runs=not good)
        if isinstance(source, Learned) and not _is_known(split.test, source, job):
            _fit(source)
        done = evaluate([split.test], {data.name: source}, here, follow.advance)
        (result,) = done[0].categories
        seconds = source.fit_seconds if isinstance(source, Learned) else None
        yield Trial(data.name, data.layout, shots, len(good), seed, seconds, result)
        if isinstance(source, Learned):
            source.remove()
        else:
            keys |= {record.key for record in result.records}
    for key in keys:
        remove_run(job.out / "images" / key)


def _is_known(data: DataSet, source: MapSource, job: Job) -> bool:
    threshold = job.protocol.threshold if job.threshold is None else job.threshold
    scorer = ImageScorer(source, job.protocol, threshold, job.out / "images", job.cross_check)
    return all(scorer.is_known(item) for item in data.items)


def _fit(source: Learned) -> None:
    try:
        source.fit()
    except OSError as error:
        why = error.strerror or error
        raise OutputError(
            f"cannot write into {source.folder.parent}: {why}; choose another --out with space and write permission"
        ) from error


def spread_text(value: Spread | None) -> str:
    """``94.1 ±2.0`` in percent; ``-`` for what does not exist."""
    if value is None:
        return "-"
    return f"{100 * value.mean:.1f}" + ("" if value.deviation is None else f" ±{100 * value.deviation:.1f}")


def shots_text(line: Line) -> str:
    """``16``, or ``16 (10)`` where a category had fewer."""
    if not line.used:
        return str(line.shots)
    few = f"{line.used[0]}" if len(line.used) == 1 else f"{line.used[0]} to {line.used[-1]}"
    return f"{line.shots} ({few})"
