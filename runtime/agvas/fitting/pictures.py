"""The images that a fit is given: good ones, bad ones with or without masks, and those of a review folder."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.contract.images.rgb import to_rgb
from agvas_core.contract.review_folder import IMAGES, MASKS, REVIEW, read_lines
from agvas_runtime.images.locate import Locator
from agvas_runtime.images.read import IMAGE_SUFFIXES, MAX_PIXELS, read_image, writable_name
from agvas_runtime.sources.listing import list_files

__all__ = ["Picture", "Pictures", "bad_pictures", "chosen", "good_pictures", "review_pictures"]

Rgb = NDArray[np.uint8]

MASK_SUFFIX: Final = "_mask"
"""MVTec's: the mask of 000.png is 000_mask.png."""
MASK_FOLDERS: Final = ("ground_truth", "masks", MASKS)


@dataclass(frozen=True)
class Picture:
    """One image that is read when it is needed."""

    name: str
    path: Path | None = None
    pixels: Rgb | None = field(default=None, repr=False)
    mask: Path | None = None
    """Where its defects are, 0 or 255; None where nobody drew them."""
    bits: int | None = None
    locator: Locator | None = field(default=None, repr=False)
    """Finds the part, which is then all that is read; None: the whole frame is."""

    def read(self) -> Rgb:
        """RGB uint8 [H, W, 3].

        Raises:
            ImageError: it cannot be read, or the part is not found in it.
        """
        image = self._whole()
        return image if self.locator is None else self.locator.find(image).crop(image)

    def _whole(self) -> Rgb:
        if self.pixels is not None:
            return to_rgb(self.pixels)
        assert self.path is not None, "a picture has a path or pixels"
        return read_image(self.path, max_pixels=MAX_PIXELS, bits=self.bits)

    def read_mask(self, shape: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Bool [H, W] where its defects are, or None; of what ``read`` gives, whose shape is ``shape``.

        Raises:
            ImageError: the mask cannot be read or has another size.
        """
        if self.mask is None:
            return None
        found = read_image(self.mask)[..., 0] > 127
        image = None if self.locator is None else self._whole()
        if image is not None:
            shape = (image.shape[0], image.shape[1])
        if found.shape != shape:
            raise ImageError(
                f"{writable_name(self.mask)} is {found.shape[1]}x{found.shape[0]} px and its image {shape[1]}x{shape[0]}: give a mask of "
                "the image's size"
            )
        if image is not None and self.locator is not None:
            return self.locator.find(image).crop_mask(found)
        return found


@dataclass
class Pictures:
    """What was found, and what is to be said of it."""

    pictures: list[Picture]
    notes: list[str] = field(default_factory=list)


def good_pictures(good: object, bits: int | None = None) -> Pictures:
    """The images of a path, folder or glob, of several of these, or of arrays.

    Raises:
        UsageError: nothing there, or something that is no image.
    """
    if isinstance(good, str | Path):
        good = [good]
    if isinstance(good, np.ndarray):
        good = [good] if good.ndim < 4 else list(good)
    if not isinstance(good, Iterable):
        raise UsageError(f"good is {type(good).__name__}; paths or arrays of images are needed")
    items = list(good)
    if not items:
        raise UsageError("there is no good image: name a folder or files of images of good parts")
    if all(isinstance(item, np.ndarray) for item in items):
        return Pictures([Picture(f"array {number}", pixels=item) for number, item in enumerate(items)])
    if not all(isinstance(item, str | Path) for item in items):
        raise UsageError("good has other things than paths in it: give paths alone, or arrays alone")
    notes: list[str] = []
    found = []
    for path in list_files(items, notes):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found.append(Picture(writable_name(path), path, bits=bits))
        else:
            notes.append(f"{writable_name(path)} is no image: left out")
    return Pictures(found, notes)


def bad_pictures(folder: Path) -> Pictures:
    """Images of defective parts: a flat folder, ``images/`` with ``masks/``, or MVTec's ``test/KIND`` with ``ground_truth/KIND``.

    Images below a folder ``good`` are left out. A mask has the image's name, with or without ``_mask``.

    Raises:
        UsageError: no images, or masks of which none has an image's name.
    """
    notes: list[str] = []
    files = [path for path in list_files([folder], notes) if path.suffix.lower() in IMAGE_SUFFIXES]
    masks: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts[:-1]
        if path.suffix.lower() in IMAGE_SUFFIXES and any(part in MASK_FOLDERS for part in inside):
            masks.setdefault(path.stem.removesuffix(MASK_SUFFIX), []).append(path)
    flat = [path for path in files if path.stem.endswith(MASK_SUFFIX)]
    for path in flat:
        masks.setdefault(path.stem.removesuffix(MASK_SUFFIX), []).append(path)
    of_masks = {path for paths in masks.values() for path in paths}
    pictures = []
    used = 0
    for path in files:
        inside = path.relative_to(folder).parts[:-1]
        if path in of_masks or "good" in inside:
            continue
        options = [each for each in masks.get(path.stem, ()) if not inside or each.parent.name in (inside[-1], *MASK_FOLDERS)]
        used += bool(options)
        pictures.append(Picture(writable_name(path), path, mask=options[0] if options else None))
    if not pictures:
        raise UsageError(f"{folder} has no image of a defective part: name a folder of images")
    if masks and not used:
        mask = next(iter(of_masks))
        raise UsageError(
            f"{folder} has {len(of_masks)} masks ({mask.name}) and none has the name of an image ({pictures[0].path.name}): "  # type: ignore[union-attr]
            f"name the mask of {pictures[0].path.name} {pictures[0].path.stem}{MASK_SUFFIX}.png"  # type: ignore[union-attr]
        )
    if masks and used < len(pictures):
        notes.append(f"{len(pictures) - used} of {len(pictures)} images in {folder} have no mask")
    return Pictures(pictures, notes)


def review_pictures(folder: Path) -> tuple[Pictures, Pictures]:
    """Good and bad images of a review folder (``agvas review --out``).

    Raises:
        UsageError: no review folder, or a line of it that is wrong.
    """
    if not (folder / REVIEW).is_file():
        raise UsageError(
            f"{folder} has no {REVIEW}: name the folder that agvas review --out wrote ({IMAGES}/, {MASKS}/, {REVIEW})"
        )
    good, bad = Pictures([]), Pictures([])
    for line in read_lines(folder):
        mask = None if line.mask is None else folder / line.mask
        (good if line.good else bad).pictures.append(Picture(f"{folder}/{line.image}", folder / line.image, mask=mask))
    return good, bad


def chosen(pictures: Sequence[Picture], most: int) -> list[Picture]:
    """At most ``most`` of them, evenly spaced."""
    if len(pictures) <= most:
        return list(pictures)
    return [pictures[round(index)] for index in np.linspace(0, len(pictures) - 1, most)]


def fingerprint(image: Rgb) -> str:
    """Equal for images that are equal pixel by pixel."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes() + str(image.shape).encode()).hexdigest()


def thumbnail(image: Rgb, side: int) -> Rgb:
    """The image with its longer side at most ``side`` px."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
