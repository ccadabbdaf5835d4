"""The samples that are asked about, each with the normal images of its category."""

import os
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_core.data.datasets.masks import FileMask
from agvas_core.data.datasets.record import Record
from agvas_core.data.instruct.likeness import ReferenceShelf
from agvas_core.data.instruct.pictures import Rgb
from agvas_core.files import read_rgb

__all__ = ["Found", "Sample", "limited", "samples_of"]


@dataclass(frozen=True)
class Sample:
    """One anomalous image that a description is wanted for."""

    dataset: str
    root: Path
    image: Path
    mask: FileMask
    category: str
    kind: str
    references: ReferenceShelf

    @property
    def image_name(self) -> str:
        """Path of the image inside its set, with ``/``."""
        return _inside(self.root, self.image)

    @property
    def mask_name(self) -> str:
        """Path of the mask inside its set, with ``/``."""
        return _inside(self.root, self.mask.path)

    @property
    def key(self) -> str:
        """What tells this sample from every other; as ``Entry.key``."""
        return f"{self.dataset}/{self.image_name}"

    def read(self) -> tuple[Rgb, NDArray[np.bool_]]:
        """Image, RGB uint8 [H, W, 3], and mask, bool [H, W].

        Raises:
            ImageError: one of them is missing, broken or of another size, or the mask is empty.
        """
        image = read_rgb(self.image, self.image_name)
        mask = self.mask.read(image.shape[:2])
        if not mask.any():
            raise ImageError(f"{self.image_name} is anomalous ({self.kind}) and its mask {self.mask.path.name} is empty")
        return image, mask


@dataclass(frozen=True)
class Found:
    """What a folder has to ask about."""

    samples: list[Sample]
    unusable: list[str]
    """Anomalous images that have no mask in a picture file, and so nothing to show."""
    alone: list[str]
    """Categories without a normal image: their samples go without the third picture."""


def samples_of(records: Iterable[Record], root: Path, dataset: str) -> Found:
    """The anomalous images of a set, with its normal ones to choose references from.

    Args:
        records: of an anomaly set, normal and anomalous, of all its splits.
        root: the folder of the set.
        dataset: its name, by which resumed runs know the samples again.
    """
    good: dict[str, list[Path]] = defaultdict(list)
    bad: list[tuple[Record, FileMask]] = []
    unusable = []
    for record in records:
        if not record.anomalous:
            good[record.category].append(record.image)
        elif isinstance(record.mask, FileMask):
            bad.append((record, record.mask))
        else:
            unusable.append(f"{record.name} is anomalous and has no mask in a picture file")
    categories = sorted({record.category for record, _ in bad})
    shelves = {category: ReferenceShelf(good[category]) for category in categories}
    samples = [
        Sample(dataset, root, record.image, mask, record.category, record.kind, shelves[record.category]) for record, mask in bad
    ]
    return Found(samples, unusable, [category for category in categories if not good[category]])


def limited(samples: Sequence[Sample], per_kind: int, seed: int) -> list[Sample]:
    """At most ``per_kind`` samples of each kind of each category; the same ones for the same seed on every machine."""
    kinds: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        kinds[sample.category, sample.kind].append(sample)
    kept: set[str] = set()
    for (category, kind), listed in kinds.items():
        keys = sorted(sample.key for sample in listed)
        # A string seeds Random by its bytes, not by the salted hash.
        kept.update(random.Random(f"{seed}/{category}/{kind}").sample(keys, min(per_kind, len(keys))))
    return [sample for sample in samples if sample.key in kept]


def _inside(root: Path, path: Path) -> str:
    return Path(os.path.relpath(path.resolve(), root.resolve())).as_posix()
