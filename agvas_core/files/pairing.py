"""Images and their masks by name."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from agvas_core.contract.errors import UsageError
from agvas_core.contract.images.header import IMAGE_SUFFIXES as READ_SUFFIXES
from agvas_core.contract.images.rare import OTHER_PICTURES

__all__ = ["GOOD", "IMAGE_SUFFIXES", "folders", "images", "inside", "pair", "parts_of_mask", "unread_note"]

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
            raise UsageError(f"{seen[picture.stem]} and {picture.name} have one name, so their masks cannot be told: rename one")
        seen[picture.stem] = picture
        found = [mask for suffix in dict.fromkeys(suffixes) for mask in by_stem.get(picture.stem + suffix, [])]
        if len(found) > 1:
            raise UsageError(f"{picture} has two masks, {found[0]} and {found[1].name}: remove one")
        yield picture, found[0] if found else None
