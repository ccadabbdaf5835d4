"""What was missed, by kind and by size; what good images were flagged."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agvas_core.evaluation.image_score import ImageRecord
from agvas_core.evaluation.metrics import mean_of

__all__ = ["SIZES", "KindRow", "SizeRow", "by_kind", "by_size", "worst_and_best"]

SIZES: Final = (("under 0.05 %", 0.0005), ("0.05 to 0.5 %", 0.005), ("0.5 to 5 %", 0.05), ("over 5 %", 1.0))
"""Area of a region as a share of its image: name and upper bound."""


@dataclass(frozen=True)
class KindRow:
    """Images of one kind."""

    specie: str
    anomalous: bool
    images: int
    missed: int
    """Anomalous: mask and truth have no pixel in common. Good: the mask is not empty."""
    iou: float | None


@dataclass(frozen=True)
class SizeRow:
    """Connected regions of one size."""

    size: str
    regions: int
    found: int
    """Those that the mask touches."""


def by_kind(records: Iterable[ImageRecord]) -> list[KindRow]:
    """One row per kind, the good images last."""
    kinds: dict[tuple[bool, str], list[ImageRecord]] = defaultdict(list)
    for record in records:
        kinds[not record.anomalous, record.specie].append(record)
    return [
        KindRow(specie, not good, len(some), sum(_failed(one) for one in some), mean_of(one.iou for one in some))
        for (good, specie), some in sorted(kinds.items())
    ]


def by_size(records: Iterable[ImageRecord]) -> list[SizeRow]:
    """One row per size of region."""
    regions = [0] * len(SIZES)
    found = [0] * len(SIZES)
    for record in records:
        for area, hit in record.regions:
            share = area / (record.size[0] * record.size[1])
            place = next(index for index, (_, bound) in enumerate(SIZES) if share < bound or index == len(SIZES) - 1)
            regions[place] += 1
            found[place] += hit
    return [SizeRow(name, regions[index], found[index]) for index, (name, _) in enumerate(SIZES)]


def worst_and_best(records: Iterable[ImageRecord], count: int) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """The images with the lowest and the highest IoU; a good image counts by its mask: none is best, the larger the worse."""
    ordered = sorted(records, key=_merit)
    count = min(count, (len(ordered) + 1) // 2)  # of a handful, half are the worst and half the best
    anomalous = [record for record in ordered if record.anomalous]
    best = list(reversed(anomalous or ordered))[:count]  # good images with an empty mask have nothing to show
    chosen = {record.key for record in best}
    return [record for record in ordered if record.key not in chosen][:count], best


def _failed(record: ImageRecord) -> bool:
    return record.iou == 0 if record.anomalous else record.mask_px > 0


def _merit(record: ImageRecord) -> tuple[float, float, str]:
    height, width = record.size
    if record.anomalous:
        return (record.iou or 0.0, -record.truth_px / (height * width), record.name)
    return (1.0 if record.mask_px == 0 else 0.0, -record.mask_px / (height * width), record.name)
