"""The records of one source, apart by set and by normal and anomalous, and drawing one of them."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from agvas_core.data.datasets.record import Record
from agvas_core.data.synthetic.raster import chance, pick

__all__ = ["Pool", "chosen", "even_quotas"]

Stratum = bool | None
"""Anomalous, normal, or neither."""


@dataclass(frozen=True)
class _Shelf:
    """Records of one set and one stratum."""

    records: tuple[Record, ...]
    weight: float


class Pool:
    """Where one source's records are drawn from, with replacement."""

    def __init__(
        self,
        records: Mapping[str, Sequence[Record]],
        weights: Mapping[str, float],
        spread: Literal["sets", "images"],
        normal_fraction: float,
    ) -> None:
        """``records`` and ``weights`` by set; the order within a set counts, that of the sets does not."""
        shelves: dict[Stratum, list[_Shelf]] = defaultdict(list)
        for name in sorted(records):
            by_stratum: dict[Stratum, list[Record]] = defaultdict(list)
            for record in records[name]:
                by_stratum[record.anomalous].append(record)
            for stratum, found in by_stratum.items():
                size = len(found) if spread == "images" else 1
                shelves[stratum].append(_Shelf(tuple(found), weights[name] * size))
        self._shelves = dict(shelves)
        self._normal_fraction = normal_fraction

    def __len__(self) -> int:
        return sum(len(shelf.records) for shelves in self._shelves.values() for shelf in shelves)

    def counts(self) -> dict[Stratum, int]:
        """Records in each stratum."""
        return {stratum: sum(len(shelf.records) for shelf in shelves) for stratum, shelves in self._shelves.items()}

    def stratum(self, rng: np.random.Generator) -> Stratum:
        """Whether a normal or an anomalous image comes next."""
        normal = chance(
            rng, self._normal_fraction
        )  # drawn in any case: a pool with one stratum uses as much chance as one with two
        wanted = not normal
        return wanted if wanted in self._shelves else next(iter(sorted(self._shelves, key=str)))

    def draw(self, stratum: Stratum, rng: np.random.Generator) -> Record:
        """One record of the stratum."""
        shelves = self._shelves[stratum]
        return pick(rng, pick(rng, shelves, [shelf.weight for shelf in shelves]).records)


def even_quotas(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """How many of each to take so that there are ``total`` (or all), and none has fewer than another that still has some to give."""
    quotas = dict.fromkeys(sizes, 0)
    left = min(total, sum(sizes.values()))
    while left:
        open_ = [name for name in sorted(sizes) if quotas[name] < sizes[name]]
        share = max(1, left // len(open_))
        for name in open_:
            more = min(share, sizes[name] - quotas[name], left)
            quotas[name] += more
            left -= more
    return quotas


def chosen(
    records: Mapping[str, Sequence[Record]],
    limit: int,
    normal_fraction: float,
    seed: int,
    choice: Literal["even", "random"] = "even",
) -> dict[str, list[Record]]:
    """At most ``limit`` records: ``normal_fraction`` of them normal as far as there are. The same ones for the same seed on every machine.

    The paper takes 20k at random from sets of very different size (118 road images, 150k of Real-IAD), and says only that normal and
    anomalous are balanced: ``random``. As ``even`` over the sets as they reach is ours, so that the small ones are seen at all.
    """
    strata: dict[Stratum, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(records):
        for position, record in enumerate(records[name]):
            strata[record.anomalous][name].append(position)
    have = {stratum: sum(map(len, of_sets.values())) for stratum, of_sets in strata.items()}
    normal = min(have.get(False, 0), round(limit * normal_fraction))
    rest = min(have.get(True, 0), limit - normal)
    totals: dict[Stratum, int] = {False: min(have.get(False, 0), limit - rest), True: rest, None: limit}
    kept: dict[str, set[int]] = defaultdict(set)
    for stratum, of_sets in strata.items():
        if choice == "random":
            all_of_it = [(name, position) for name, positions in of_sets.items() for position in positions]
            for name, position in random.Random(f"{seed}/{stratum}").sample(all_of_it, min(totals[stratum], len(all_of_it))):
                kept[name].add(position)
            continue
        for name, quota in even_quotas({name: len(positions) for name, positions in of_sets.items()}, totals[stratum]).items():
            # A string seeds Random by its bytes, not by the salted hash.
            kept[name].update(random.Random(f"{seed}/{name}/{stratum}").sample(of_sets[name], quota))
    return {name: [records[name][position] for position in sorted(kept[name])] for name in sorted(kept)}
