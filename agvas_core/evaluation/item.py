"""What is scored: one image with its truth, and a set of them."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_core.files import MaskLevel, binary, decoded

__all__ = ["DataSet", "Item", "examine", "read_truth"]


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
    """What is tested."""
    train: tuple[Item, ...] = ()
    """Good images that the layout keeps apart for training, where they were asked for."""


# Reading an item's truth, and refusing what cannot be scored against.


def examine(item: Item) -> str | None:
    """Why an item cannot be scored, None where it can: reads everything once, before hours of work depend on it."""
    try:
        read_truth(item)
    except ImageError as error:
        return str(error)
    return None


def read_truth(item: Item) -> NDArray[np.bool_]:
    """What is anomalous in an image, bool [H, W] at the image's own resolution.

    Raises:
        ImageError: image or mask is missing or cannot be decoded, their sizes differ, or the mask of an anomalous image is empty.
    """
    # In colour, so that OpenCV turns it upright by its EXIF orientation, as the runtime does.
    image = decoded(item.image_path, cv2.IMREAD_COLOR, item.name)
    if not item.anomalous:
        return np.zeros(image.shape[:2], bool)
    if item.mask_path is None:
        raise ImageError(f"{item.name} is anomalous ({item.specie}) and has no mask")
    raw = decoded(item.mask_path, cv2.IMREAD_UNCHANGED, item.name)
    if raw.shape[:2] != image.shape[:2]:
        raise ImageError(
            f"{item.name} is {image.shape[1]}x{image.shape[0]} px, its mask {item.mask_path.name} {raw.shape[1]}x{raw.shape[0]}"
        )
    mask = binary(raw, item.mask_level)
    if not mask.any():
        raise ImageError(f"{item.name} is anomalous ({item.specie}) and its mask {item.mask_path.name} is empty")
    return mask
