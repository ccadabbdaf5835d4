"""What is scored: one image with its truth, and a set of them."""

from dataclasses import dataclass
from pathlib import Path

from agvas_core.files.picture import MaskLevel

__all__ = ["DataSet", "Item"]


@dataclass(frozen=True)
class Item:
    """One image of a set."""

    image_path: Path
    mask_path: Path | None
    """None for a good image, and where an anomalous one has no mask (which is refused later, with all others of its kind)."""
    category: str
    specie: str
    """Kind of anomaly, ``good`` for none."""
    anomalous: bool
    name: str
    """Path of the image inside its set, with ``/``: what predictions are paired with."""
    mask_level: MaskLevel = "any"


@dataclass(frozen=True)
class DataSet:
    """Items that share a mean."""

    name: str
    layout: str
    root: Path
    items: tuple[Item, ...]
