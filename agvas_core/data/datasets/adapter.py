"""What each published set says of itself, and looking for its folders."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agvas_core.contract.errors import UsageError
from agvas_core.data.datasets.record import Family, Record

__all__ = ["Adapter", "first_file", "first_folder", "image_in"]


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
