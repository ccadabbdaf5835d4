"""The mixture as an endless sequence (paper table 5, B.2).

mixture = Mixture.load(MixtureConfig(sets=...))
for index in positions(step, batch=80, rank=rank, world_size=4):
    example = mixture[index]

Example ``i`` depends on the configuration and the files only: not on the process, the number of ranks or workers, or what was asked for
before. So worker processes, ranks and a resumed run agree without talking to each other.
"""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.data.datasets.catalog import FoundSet, named_set
from agvas_core.data.datasets.contamination import shared_images, test_set_of
from agvas_core.data.datasets.layouts import find_test_sets
from agvas_core.data.datasets.record import Family, Record
from agvas_core.data.mixture.config import FAMILIES, TABLE_5, MixtureConfig, SetConfig, Source
from agvas_core.data.mixture.example import Example, Skip
from agvas_core.data.mixture.exchange import make_exchange
from agvas_core.data.mixture.pool import Pool, chosen
from agvas_core.data.synthetic.raster import pick
from agvas_core.data.templates.library import Library, load_library
from agvas_core.files import read_rgb

__all__ = ["Mixture", "positions"]

log = logging.getLogger("agvas")

_SOURCE_OF: Mapping[Family, Source] = {family: source for source, families in FAMILIES.items() for family in families}
_ONE_PART = re.compile(r"^S\d{4}$")
_STREAM = 2  # of the seed, beside that of the synthetic images


class Mixture:
    """``mixture[i]`` for any ``i`` from 0."""

    def __init__(self, config: MixtureConfig, records: Mapping[Source, Mapping[str, Sequence[Record]]], library: Library) -> None:
        """``records``: by source and ``SetConfig.key``. ``load`` reads them from the folders of the configuration.

        Raises:
            UsageError: a source that has a share has no record.
        """
        self.config, self.library = config, library
        records, self.held_out = _split(records, config)
        """Of the second: records that are never drawn (``config.held_out``), to validate on."""
        self.shares = config.used_shares()
        self.pools: dict[Source, Pool] = {}
        digest = hashlib.sha256()
        self.listed: dict[Source, dict[str, list[Record]]] = {}
        """What is drawn from, by source and set."""
        for source in self.shares:
            of_sets: Mapping[str, Sequence[Record]] = records.get(source, {})
            how = config.source(source)
            if not any(of_sets.values()):
                raise UsageError(
                    f"the source {source} has a share of {config.shares[source]:g} and no record: add one of its sets, or drop it "
                    f'(drop = ["{source}"])'
                )
            if how.limit is not None:
                of_sets = chosen(of_sets, how.limit, how.normal_fraction, config.seed, how.choice)
            self.listed[source] = {name: list(listed) for name, listed in of_sets.items()}
            weights = _weights(config, source, of_sets)
            self.pools[source] = Pool(of_sets, weights, how.spread, how.normal_fraction)
            for name in sorted(of_sets):
                digest.update("\n".join((source, name, *(record.name for record in of_sets[name]), "")).encode())
        self.fingerprint = digest.hexdigest()
        """Of the records and their order: equal on all ranks, and after a resume, or their examples differ."""

    @classmethod
    def load(cls, config: MixtureConfig) -> "Mixture":
        """Lists the sets of the configuration; no image is opened.

        Raises:
            UsageError: a set is not where it should be, is of another kind than its source, or lists nothing.
        """
        records: dict[Source, dict[str, list[Record]]] = {source: {} for source in Source}
        used = config.used_shares()
        for one in _composed(config):
            found = named_set(one.path, one.name)
            source = _source(one, found)
            if source in used:
                if one.key in records[source]:
                    raise UsageError(f"two sets of the source {source} are called {one.key}: give one of them a label")
                records[source][one.key] = _listed(one, found)
                _refuse_test_sets(one, found, records[source][one.key], config)
        _refuse_test_images(records, config)
        return cls(config, records, load_library(config.templates))

    def table(self) -> str:
        """What is trained on, one line for each set: source, set, images by split, normal and anomalous, and where it lies."""
        lines = [("source", "share", "set", "images", "normal", "anomalous", "splits", "folder")]
        paths = {one.key: one.path for one in self.config.sets}
        for source, of_sets in self.listed.items():
            for name, listed in sorted(of_sets.items()):
                images = {record.image: record.anomalous for record in listed}
                standing = Counter(images.values())
                splits = Counter(record.split for record in listed)
                lines.append(
                    (
                        str(source),
                        f"{self.shares[source]:.2f}",
                        name,
                        f"{len(images):,}",
                        f"{standing[False]:,}" if standing[False] or standing[True] else "",
                        f"{standing[True]:,}" if standing[False] or standing[True] else "",
                        " ".join(f"{split}:{count:,}" for split, count in sorted(splits.items())),
                        str(paths.get(name, "")),
                    )
                )
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        if self.held_out:
            rows.append(f"held out, never drawn: {len({record.image for record in self.held_out}):,} images")
        if self.config.allow_test_sets:
            rows.append(f"test sets are trained on, as allow_test_sets asks: {', '.join(self.config.allow_test_sets)}")
        return "\n".join(rows)

    def __getitem__(self, index: int) -> Example:
        """Example ``index``; images that cannot be used are replaced by others of the same source and kind.

        Raises:
            ImageError: ``config.attempts`` records in a row cannot be used.
        """
        if index < 0:
            raise IndexError(f"example {index}: they start at 0")
        rng = np.random.default_rng([self.config.seed, _STREAM, index])
        source = pick(rng, list(self.shares), list(self.shares.values()))
        pool = self.pools[source]
        stratum = pool.stratum(rng)
        skipped: list[Skip] = []
        for attempt in range(self.config.attempts):
            # From 1: a seed of (.., index, 0) is to numpy the same as one of (.., index).
            chance = np.random.default_rng([self.config.seed, _STREAM, index, 1 + attempt])
            record = pool.draw(stratum, chance)
            try:
                return self._example(index, source, record, chance, tuple(skipped))
            except ImageError as error:
                skipped.append(Skip(index, record.dataset, record.name, str(error)))
        raise ImageError(
            f"{self.config.attempts} records of {source} in a row cannot be used, last {skipped[-1].name}: {skipped[-1].reason}; look at "
            "the set with agvas data check"
        )

    def _example(
        self, index: int, source: Source, record: Record, chance: np.random.Generator, skipped: tuple[Skip, ...]
    ) -> Example:
        image = read_rgb(record.image, record.name)
        exchange = make_exchange(
            record, source, self.config.source(source), (image.shape[0], image.shape[1]), self.library, chance
        )
        return Example(
            index=index,
            source=source,
            task=exchange.task,
            dataset=record.dataset,
            name=record.name,
            image=image,
            mask=exchange.mask,
            supervised=self.config.source(source).supervise if exchange.mask is not None else (),
            turns=exchange.turns,
            anomalous=record.anomalous,
            skipped=skipped,
        )


def positions(step: int, *, batch: int, rank: int = 0, world_size: int = 1) -> range:
    """Which examples a rank sees in an optimizer step.

    Args:
        batch: examples of the whole step, all ranks and accumulation together (80 in the paper, B.2).

    Raises:
        UsageError: the batch cannot be shared evenly, or there is no such rank.
    """
    if batch % world_size:
        raise UsageError(f"a batch of {batch} cannot be shared by {world_size} processes: make it a multiple of {world_size}")
    if not 0 <= rank < world_size:
        raise UsageError(f"rank is {rank}; of {world_size} processes the last is {world_size - 1}")
    share = batch // world_size
    return range(step * batch + rank * share, step * batch + (rank + 1) * share)


def _split(
    records: Mapping[Source, Mapping[str, Sequence[Record]]], config: MixtureConfig
) -> tuple[dict[Source, dict[str, list[Record]]], tuple[Record, ...]]:
    """What is drawn from, and the records held out of it: those of seg, or of instruct where seg gives none."""
    drawn: dict[Source, dict[str, list[Record]]] = {}
    held: dict[Source, list[Record]] = {source: [] for source in Source}
    for source, of_sets in records.items():
        drawn[source] = {}
        for name, listed in of_sets.items():
            kept = drawn[source][name] = []
            for record in listed:
                out = source in (Source.SEG, Source.INSTRUCT) and _is_held_out(record, config)
                (held[source] if out else kept).append(record)
    return drawn, tuple(held[Source.SEG] or held[Source.INSTRUCT])


def _is_held_out(record: Record, config: MixtureConfig) -> bool:
    if not config.held_out:
        return False
    path = record.image.resolve()
    # Real-IAD's folder S0001 has the views of one part: one of them in training would give away the others.
    name = "/".join((path.parent if _ONE_PART.match(path.parent.name) else path).parts[-4:])
    return int.from_bytes(hashlib.sha256(f"{config.seed}/{name}".encode()).digest()[:8]) < config.held_out * 2**64


def _weights(config: MixtureConfig, source: Source, of_sets: Mapping[str, Sequence[Record]]) -> dict[str, float]:
    """Of each set against the others of its source."""
    families = config.source(source).families
    of = {name: listed[0].family for name, listed in of_sets.items() if listed}
    weights = {one.key: one.weight for one in config.sets}
    if not families:
        return weights
    totals = dict.fromkeys(of.values(), 0.0)
    for name, family in of.items():
        totals[family] += weights[name]
    return weights | {name: weights[name] / totals[family] * families.get(family, 1.0) for name, family in of.items()}


def _composed(config: MixtureConfig) -> tuple[SetConfig, ...]:
    """The sets of the configuration, of which a composition may keep some."""
    if config.composition is None:
        return config.sets
    used = config.used_shares()
    wanted = [name for source in TABLE_5 for name in TABLE_5[source] if source in used]
    if missing := [name for name in wanted if name not in {one.name for one in config.sets}]:
        raise UsageError(
            f"composition {config.composition} lacks {', '.join(missing)}: add them, or leave composition out to train on what there is"
        )
    kept = tuple(one for one in config.sets if one.name in wanted)
    for one in config.sets:
        if one not in kept:
            log.warning("left out of training: %s in %s is not in table 5", one.key, one.path)
    return kept


def _refuse_test_sets(one: SetConfig, found: FoundSet, records: Sequence[Record], config: MixtureConfig) -> None:
    counts = Counter(
        name for record in records if (name := test_set_of(record, found.root)) not in (None, *config.allow_test_sets)
    )
    if counts:
        name, count = counts.most_common(1)[0]
        raise UsageError(
            f"{one.path}: {count:,} of the {len(records):,} records of {one.key} are of {name}, which results are published on: leave the "
            f'set out, or, if it is meant, set allow_test_sets = ["{name}"] under [mixture]'
        )


def _refuse_test_images(records: Mapping[Source, Mapping[str, Sequence[Record]]], config: MixtureConfig) -> None:
    tests = [one for folder in config.test_data for one in find_test_sets(folder)]
    if not tests:
        return
    for of_sets in records.values():
        for key, listed in of_sets.items():
            if same := shared_images(listed, tests):
                path, test = next(iter(same.items()))
                raise UsageError(
                    f"{len(same):,} images of {key} are test images, {path} is {test}: take them out of training, or their set out of test_data"
                )


def _source(one: SetConfig, found: FoundSet) -> Source:
    family = found.adapter.family
    source = one.source or _SOURCE_OF[family]
    if family not in FAMILIES[source]:
        raise UsageError(f"the set {one.name} ({family}) cannot be in the source {source}: it belongs to {_SOURCE_OF[family]}")
    return source


def _listed(one: SetConfig, found: FoundSet) -> list[Record]:
    splits = one.splits or found.adapter.training_splits
    records = list(found.records())
    kept = [record for record in records if record.split in splits]
    if kept and one.only is not None:
        first = kept[0].name
        kept = [record for record in kept if fnmatchcase(record.name, one.only)]
        if not kept:
            raise UsageError(f"{one.path}: {one.name} has no record whose name is like {one.only!r}; the first is {first}")
    if not kept:
        there = _counted(record.split for record in records)
        raise UsageError(f"{one.path}: {one.name} has no record in the splits {', '.join(splits)}; it has {there}")
    return kept


def _counted(splits: Iterable[str]) -> str:
    return ", ".join(sorted(set(splits))) or "none at all"
