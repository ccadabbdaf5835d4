"""From SOURCE to names of images, one after the other: a folder tree, a listing, stdin, or an object store."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from agvas_core.contract.errors import SourceError, UsageError
from agvas_runtime.image_header import IMAGE_SUFFIXES
from agvas_runtime.sources.listing import walk_images

__all__ = ["names_of"]


def names_of(source: str, left_out: Counter[str]) -> Iterator[str]:
    """Names of the images that ``source`` stands for; none is held longer than it takes to write it down.

    A folder: its images and those of its folders, each folder in natural order; hidden ones, ``ground_truth`` and results of earlier
    runs are left out. A text file, or ``-`` for stdin: a name or address a line, taken as it is. An address: as a folder.

    Raises:
        UsageError: there is nothing of the kind.
        SourceError: it cannot be read to its end.
    """
    from agvas_runtime.batch.picture_store import is_address, walk_store

    if source == "-":
        yield from _lines(sys.stdin.buffer)
    elif is_address(source):
        yield from walk_store(source)
    elif os.path.isdir(source):
        yield from (str(path) for path in walk_images(Path(source), left_out))
    elif Path(source).suffix.lower() in IMAGE_SUFFIXES:
        raise UsageError(f"{source} is one image; a batch takes a folder, a listing or an address: for one, use agvas-run")
    else:
        try:
            with open(source, "rb") as file:
                yield from _lines(file)
        except OSError as error:
            raise UsageError(
                f"{source} cannot be read ({error.strerror}): name a folder, a text file with one image a line, or the address of a store"
            ) from error


def _lines(file: Iterator[bytes]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if b"\0" in line:
            raise SourceError(
                f"line {number} of the listing has a NUL byte, so it is no listing: give a text file with one image a line"
            )
        if name := os.fsdecode(line).rstrip("\r\n"):
            yield name
