"""Items of an evaluation: one image with its truth, and a set of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_core.files import MaskLevel, read_mask, read_rgb

__all__ = ["DataSet", "Examined", "Item", "examine", "read_truth"]


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
    more_masks: tuple[Path, ...] = ()
    """Further masks of the same image, as MVTec LOCO has them: an anomaly each."""

    @property
    def mask_paths(self) -> tuple[Path, ...]:
        """All masks; none for a good image."""
        return () if self.mask_path is None else (self.mask_path, *self.more_masks)


@dataclass(frozen=True)
class DataSet:
    """Items that share a mean."""

    name: str
    layout: str
    root: Path
    items: tuple[Item, ...]
    """What is tested."""
    train: tuple[Item, ...] = ()
    """Good images that the layout keeps apart for training, where they were asked for."""


# Reading an item's truth, and refusing what cannot be scored against.


class Examined(NamedTuple):
    """What a first look at an item found."""

    reason: str | None
    """Why it cannot be scored; None where it can."""
    notes: tuple[str, ...] = ()
    """What its reader should know, each beginning with ``image:`` or ``mask:``."""


def examine(item: Item) -> Examined:
    """Reads image and mask once, before hours of work depend on them."""
    try:
        return Examined(None, _read_truth(item)[1])
    except ImageError as error:
        return Examined(str(error))


def read_truth(item: Item) -> NDArray[np.bool_]:
    """What is anomalous in an image, bool [H, W] at the image's own resolution.

    Raises:
        ImageError: image or mask is missing or cannot be decoded, their sizes differ, or the mask of an anomalous image is empty.
    """
    return _read_truth(item)[0]


def _read_truth(item: Item) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    notes: list[str] = []
    height, width = read_rgb(item.image_path, item.name, note=lambda text: notes.append(f"image: {text}")).shape[:2]
    if not item.anomalous:
        return np.zeros((height, width), bool), tuple(notes)
    if not item.mask_paths:
        raise ImageError(f"{item.name} is anomalous ({item.specie}) and has no mask")
    mask = np.zeros((height, width), bool)
    for path in item.mask_paths:
        part = read_mask(path, item.name, item.mask_level)
        if part.pixels.shape != (height, width):
            raise ImageError(
                f"{item.name} is {width}x{height} px, its mask {path.name} {part.pixels.shape[1]}x{part.pixels.shape[0]}"
                + (": it is turned by 90 degrees" if part.pixels.shape == (width, height) else "")
            )
        mask |= part.pixels
        notes += [f"mask: {path.name} {note}" for note in part.notes]
    if not mask.any():
        names = ", ".join(path.name for path in item.mask_paths)
        raise ImageError(f"{item.name} is anomalous ({item.specie}) and its mask {names} is empty")
    return mask, tuple(notes)
