"""Folders and picture files, as both training and evaluation read them: images with their masks by name, and their pixels.

Photographs are decoded as the runtime does it (``agvas_core.contract.images``), so that training, evaluation and the line see the same.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.contract.images.decode import Samples, check_header, decode_image, decode_palette, decode_samples
from agvas_core.contract.images.header import IMAGE_SUFFIXES as READ_SUFFIXES
from agvas_core.contract.images.metadata import turn_upright
from agvas_core.contract.images.rare import OTHER_PICTURES

__all__ = [
    "GOOD",
    "IMAGE_SUFFIXES",
    "MaskFile",
    "MaskLevel",
    "binary",
    "folders",
    "images",
    "inside",
    "is_empty",
    "pair",
    "parts_of_mask",
    "read_mask",
    "read_rgb",
    "read_samples",
    "unread_note",
]


GOOD = "good"
"""What MVTec-AD, and all who follow it, call the folder of defect-free parts."""
IMAGE_SUFFIXES = tuple(sorted(READ_SUFFIXES))


def folders(parent: Path) -> list[Path]:
    """Folders in ``parent`` that are not hidden, by name."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))


def images(folder: Path) -> list[Path]:
    """Image files directly in ``folder``, by name."""
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in files if path.is_file())


def unread_note(root: Path) -> str:
    """What to say of pictures below ``root`` whose format is not read; empty where there are none."""
    counts = Counter(path.suffix.lower() for path in root.rglob("*") if path.suffix.lower() in OTHER_PICTURES)
    if not counts:
        return ""
    named = ", ".join(f"{count} {suffix} ({OTHER_PICTURES[suffix]})" for suffix, count in sorted(counts.items()))
    return f"{root.name}: {sum(counts.values())} pictures are of formats that are not read: {named}; convert them"


def parts_of_mask(path: Path) -> list[Path]:
    """The files of one image's mask: ``path`` itself, or all in it where it is a folder, as in MVTec LOCO (one an anomaly)."""
    return images(path) if path.is_dir() else [path]


def inside(root: Path, path: Path) -> str:
    """``path`` relative to ``root``, with ``/``."""
    return path.relative_to(root).as_posix()


def pair(pictures: Iterable[Path], masks: Iterable[Path], suffixes: tuple[str, ...]) -> Iterator[tuple[Path, Path | None]]:
    """Each picture with the mask of its name.

    Args:
        suffixes: what a mask's stem has more than its picture's, ``_mask`` or nothing.

    Raises:
        UsageError: two pictures of one name, or two masks for one picture: whichever were taken would be a guess.
    """
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for mask in masks:
        by_stem[mask.stem].append(mask)
    seen: dict[str, Path] = {}
    for picture in pictures:
        if picture.stem in seen:
            raise UsageError(
                f"{seen[picture.stem]} and {picture.name} have one name, so their masks cannot be assigned: rename one"
            )
        seen[picture.stem] = picture
        found = [mask for suffix in dict.fromkeys(suffixes) for mask in by_stem.get(picture.stem + suffix, [])]
        if len(found) > 1:
            raise UsageError(f"{picture} has two masks, {found[0]} and {found[1].name}: remove one")
        yield picture, found[0] if found else None


# Picture files as pixels: photographs, and masks of which each pixel is anomalous or is not.

MaskLevel = Literal["any", "half"]
"""Which mask values are anomalous: ``any`` above 0 (VisA numbers its kinds from 1), or more than ``half`` of 255, for masks that
went through lossy compression and carry its noise."""

HALF = 127
_WHITE_LEAST = 224  # a mask that reaches this is black and white, and not a list of kinds numbered from 1
_KINDS_MOST = 8  # more values than this, up to white: soft edges
_NEARLY_ALL = 0.9


class MaskFile(NamedTuple):
    """A mask as it was read, and what its reader should know."""

    pixels: NDArray[np.bool_]
    """[H, W], True where anomalous."""
    notes: tuple[str, ...]
    """Each says what was done, or what looks wrong, without the file's name."""


def read_rgb(path: Path, name: str, note: Callable[[str], None] | None = None) -> NDArray[np.uint8]:
    """A photograph as RGB uint8 [H, W, 3], upright by its EXIF orientation, as the runtime reads it.

    Args:
        name: what the message calls it.
        note: called with a message for each ambiguity.

    Raises:
        ImageError: missing, no picture, damaged or cut short.
    """
    data = _bytes(path, name)
    try:
        return decode_image(data, note=note)
    except ImageError as error:
        raise ImageError(f"{name}: {path} {error}") from error.__cause__


def read_samples(path: Path, name: str) -> Samples:
    """The values of a picture file as they are stored: [H, W] or [H, W, C], not turned. Raises ImageError as :func:`read_rgb`."""
    return _decoded(_bytes(path, name), path, name)[1]


def read_mask(path: Path, name: str, level: MaskLevel = "any") -> MaskFile:
    """A mask file, upright by its own EXIF orientation.

    Black is normal. In JPEGs, and where edges are soft (many greys up to white), more than half of white is anomalous, and a note says
    so; the colour of a palette does not matter, only whether it is the background's. A mask of nearly everything gets a warning.

    Args:
        name: what the message calls it.
        level: the set's own rule; ``half`` is never made less strict.

    Raises:
        ImageError: missing, no picture, damaged, or a JPEG that is too dark to tell black from white.
    """
    data = _bytes(path, name)
    kind, samples = _decoded(data, path, name)
    raw = _values(samples.pixels)
    notes = []
    coloured = samples.pixels.ndim == 3 and bool(
        (samples.pixels[..., :3].max(axis=2) != samples.pixels[..., :3].min(axis=2)).any()
    )
    palette = decode_palette(data) if kind == "png" else None
    if palette is not None and (classes := _palette_classes(*palette)) is not None:
        raw, palette_note = classes
        notes += [palette_note] if palette_note else []
    highest = int(raw.max())
    if level == "any" and kind == "jpeg" and highest:
        if highest < _WHITE_LEAST // 4:
            raise ImageError(
                f"{name}: {path.name} is a JPEG whose highest value is {highest}; white is needed: save it as PNG, 0 and 255"
            )
        level = "half"
        notes.append(f"is a JPEG: more than {HALF} is anomalous, as its compression blurs 0 and 255")
    elif level == "any" and not coloured and _is_soft(raw):
        level = "half"
        notes.append(f"has soft edges (greys between 0 and {highest}): more than {HALF} is anomalous")
    mask = binary(raw, level)
    if samples.orientation != 1:
        mask = turn_upright(np.repeat(mask[..., None].astype(np.uint8), 3, axis=2), samples.orientation)[..., 0] > 0
    share = float(mask.mean())
    if share > _NEARLY_ALL:
        notes.append(
            f"covers {share:.0%} of the image: where black means anomalous it is inverted; save it with white for anomalous"
        )
    return MaskFile(mask, tuple(notes))


def is_empty(path: Path) -> bool:
    """Whether a mask marks nothing; False where it cannot be read, for its reader to say why."""
    try:
        return not read_mask(path, path.name).pixels.any()
    except ImageError:
        return False


def binary(raw: NDArray[Any], level: MaskLevel) -> NDArray[np.bool_]:
    """Which pixels of a mask file are anomalous, bool [H, W]; ``raw`` is [H, W] or [H, W, channels], 8 or 16 bits, or float."""
    raw = _values(raw)
    if level == "any":
        return np.asarray(raw > 0)
    return np.asarray(raw > (HALF if raw.dtype == np.uint8 else HALF * 257 if raw.dtype.kind in "ui" else HALF / 255))


def _values(raw: NDArray[Any]) -> NDArray[Any]:
    """[H, W]: the highest of the colours; opacity says nothing about anomalies."""
    if raw.ndim == 3:
        return np.asarray(raw[..., : 3 if raw.shape[2] in (3, 4) else 1].max(axis=2))
    return raw


def _is_soft(raw: NDArray[Any]) -> bool:
    """Whether there are so many greys, up to white, that they are edges and no numbers of kinds."""
    if raw.dtype == np.uint16:
        raw = (raw >> 8).astype(np.uint8)
    if raw.dtype != np.uint8:
        return False
    values = np.flatnonzero(np.bincount(raw.ravel(), minlength=256))
    return len(values) > _KINDS_MOST + 2 and int(values[-1]) >= _WHITE_LEAST


def _palette_classes(indices: NDArray[np.uint8], colours: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], str] | None:
    """(0 for background and 255 elsewhere, a note or nothing) of a PNG whose palette numbers classes; None where colours tell.

    Args:
        indices: [H, W].
        colours: [N, 3].
    """
    used = np.unique(indices)
    shown = colours[np.minimum(used, len(colours) - 1)]
    black = int((shown.max(axis=1) == 0).sum())
    grey = bool((shown.max(axis=1) == shown.min(axis=1)).all())
    if black == 1 and grey:  # a grey picture that was saved with a palette
        return None
    if black == 1:
        background = int(used[shown.max(axis=1) == 0][0])
        return np.where(indices != background, np.uint8(255), np.uint8(0)), ""
    if len(used) == 1:
        return None
    note = f"has a palette with {black} blacks: index 0 is taken as normal, all others as anomalous"
    return np.where(indices != 0, np.uint8(255), np.uint8(0)), note


def _bytes(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{name}: {path} is missing or cannot be read ({error.strerror}): copy it again") from error


def _decoded(data: bytes, path: Path, name: str) -> tuple[str, Samples]:
    try:
        header = check_header(data)
        return header.format, decode_samples(data, header)
    except ImageError as error:
        raise ImageError(f"{name}: {path} {error}") from error.__cause__
