"""What every training set is read into, and the adapter that reads one published layout.

A record is one image with what is known of it; masks are read when they are asked for.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import UsageError

__all__ = [
    "Adapter",
    "Family",
    "LabelSource",
    "MaskSource",
    "Record",
    "Shape",
    "Target",
    "Texts",
    "Turn",
    "first_file",
    "first_folder",
    "image_in",
]


Shape = tuple[int, int]
"""Height and width of an image in px."""


class Family(StrEnum):
    """What a set teaches (table 5)."""

    GENERAL = "general"
    """Things and their parts by name."""
    REFERRING = "referring"
    """One thing by an expression that fits no other in its image."""
    ANOMALY = "anomaly"
    """Normal and anomalous images, with masks."""
    INSTRUCT = "instruct"
    """Anomalous images with masks and the five texts of sec. 3.3."""
    CONVERSATION = "conversation"
    """Questions and answers about an image, without masks."""


class MaskSource(Protocol):
    """A mask that has not been read yet."""

    @property
    def path(self) -> Path | None:
        """The file that it lies in; None where it came with the annotations."""
        ...

    @property
    def coarse(self) -> bool:
        """Whether it is a box, and not an outline."""
        ...

    def read(self, shape: Shape) -> NDArray[np.bool_]:
        """bool [H, W] for an image of ``shape``.

        Raises:
            ImageError: it is missing, cannot be read, or has another size.
        """
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Something in an image that can be asked for. ``names``: words each of which means ``mask``."""

    names: tuple[str, ...]
    mask: MaskSource


class LabelSource(Protocol):
    """A file in which every pixel has the number of its class: what is in the image is known only once it is read."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    def targets(self, shape: Shape) -> tuple[Target, ...]:
        """One for each class in the image; raises ImageError as ``MaskSource.read``."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange of a conversation."""

    instruction: str
    answer: str


@dataclass(frozen=True, slots=True)
class Texts:
    """The five texts about an anomalous image (sec. 3.3); ``summary`` carries the anchors."""

    expectation: str
    observation: str
    diagnosis: str
    summary: str
    explanation: str


@dataclass(frozen=True, slots=True)
class Record:
    """One image of a training set.

    ``mask``, ``anomalous`` and ``kind`` belong to anomaly and instruct, ``targets`` or ``labels`` to general and referring, ``texts`` to
    instruct, ``turns`` to conversation.
    """

    dataset: str
    family: Family
    image: Path
    name: str
    """What tells it from every other record of its set: path inside the set, with ``/``, and more where an image comes often."""
    split: str
    category: str = ""
    anomalous: bool | None = None
    """None where the question makes no sense."""
    kind: str = ""
    """Of anomaly; empty for a normal image, and where the set does not say."""
    mask: MaskSource | None = None
    targets: tuple[Target, ...] = ()
    labels: LabelSource | None = None
    texts: Texts | None = None
    turns: tuple[Turn, ...] = ()

    def all_targets(self, shape: Shape) -> tuple[Target, ...]:
        """What can be asked for in the image; reads the label file where there is one."""
        return self.targets if self.labels is None else self.labels.targets(shape)


# Adapters: what each published set is, and where its folders are.


@dataclass(frozen=True)
class Adapter:
    """One set in one published layout."""

    name: str
    family: Family
    layout: str
    """The paths that it is known by, for messages."""
    matches: Callable[[Path], bool]
    records: Callable[[Path], Iterator[Record]]
    """All its records, in the same order on every machine; raises UsageError where the listing itself is broken."""
    parts: tuple[str, ...] = ()
    """Paths that a complete copy has, other than ``layout``'s; ``a|b`` is either."""
    training_splits: tuple[str, ...] = ("train",)
    published_images: int | None = None
    """How many images the whole set has, where its authors say so."""

    def missing_parts(self, root: Path) -> list[str]:
        """Which of ``parts`` are not there."""
        return [part for part in self.parts if not any((root / path).exists() for path in part.split("|"))]


def first_folder(root: Path, *candidates: str) -> Path | None:
    """The first of ``candidates``, relative to ``root``, that is a folder."""
    return next((root / path for path in candidates if (root / path).is_dir()), None)


def first_file(root: Path, *candidates: str) -> Path | None:
    """The first of ``candidates``, relative to ``root``, that is a file."""
    return next((root / path for path in candidates if (root / path).is_file()), None)


def image_in(root: Path, what: str, *candidates: str) -> Path:
    """The folder of the images.

    Raises:
        UsageError: none of the places where they may lie is there.
    """
    found = first_folder(root, *candidates)
    if found is None:
        raise UsageError(f"{root} has the annotations of {what} and not its images: put them into {' or '.join(candidates)}")
    return found
