"""What every training set is read into: one image with what is known of it; masks are read when they are asked for."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Family", "LabelSource", "MaskSource", "Record", "Shape", "Target", "Texts", "Turn"]

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
