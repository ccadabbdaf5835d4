"""A folder into which somebody writes images: each file once, when it is all there.

    with FolderWatch("incoming/") as source: ...       # watch:incoming on the command line

A file is taken when its size and time stood still between two looks and its bytes are a whole picture. A file that is cut short is
waited for; after ``patience_s`` without a change it is a Frame with an error. It is looked, not listened: folders on a server tell nobody of
their changes. Names that begin with a dot or end in .tmp or .part are left alone, and files stay where they are.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, SourceError
from agvas_runtime.images.frame import Frame
from agvas_runtime.images.read import IMAGE_SUFFIXES, MAX_PIXELS, OTHER_PICTURES, NotedOnce, read_image, writable_name
from agvas_runtime.sources.listing import natural_key

__all__ = ["WATCH_SCHEME", "FolderWatch", "file_key"]

WATCH_SCHEME: Final = "watch:"
LOOK_S: Final = 0.05
PATIENCE_S: Final = 10.0


class _Seen(NamedTuple):
    """A file at the last look."""

    stamp: tuple[int, int]
    """Nanoseconds of the last change, and bytes."""
    since_s: float
    """It has stood still since."""
    tried: bool
    """It stood still before, and was not whole."""


class FolderWatch:
    """Frames of a folder, in natural order of those that are there, then as they come. It ends when it is closed."""

    live = False
    total = None

    def __init__(
        self,
        folder: str | Path,
        *,
        known: Callable[[str], bool] = lambda key: False,
        look_s: float = LOOK_S,
        patience_s: float = PATIENCE_S,
        max_pixels: int = MAX_PIXELS,
        bits: int | None = None,
    ) -> None:
        """Args:
            known: whether the file of a trigger key was taken before, in an earlier run; it is not read again.
            look_s: between two looks.
            patience_s: a file that is not whole is given up after so long without a change.
            bits: used bits of 16-bit files.

        A folder that is not there, or no more, is a SourceError of the iterator: it may be on a server.
        """
        self.folder = Path(folder)
        self.notes: list[str] = []
        self._known, self._look_s, self._patience_s, self._max_pixels, self._bits = known, look_s, patience_s, max_pixels, bits
        self.noted = NotedOnce(self.notes)
        self._closed = threading.Event()
        self._taken: dict[str, tuple[int, int]] = {}
        self._waiting: dict[str, _Seen] = {}

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while not self._closed.is_set():
            for name, stamp in self._look():
                if self._closed.is_set():
                    return
                frame = self._frame(name, stamp, index)
                if frame is not None:
                    yield frame
                    index += 1
            self._closed.wait(self._look_s)

    def _look(self) -> list[tuple[str, tuple[int, int]]]:
        """Files that stood still since the last look and were not taken, in natural order."""
        there: dict[str, tuple[int, int]] = {}
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    suffix = Path(entry.name).suffix.lower()
                    if entry.name.startswith(".") or suffix not in IMAGE_SUFFIXES:
                        if suffix in OTHER_PICTURES:
                            kind = OTHER_PICTURES[suffix]
                            self.noted.of(writable_name(entry.path))(f"pictures of the format {kind} ({suffix}) are not read")
                        continue
                    if (stamp := _stamp(Path(entry.path))) is not None:  # None: moved on meanwhile
                        there[entry.name] = stamp
        except OSError as error:
            raise self._away(error) from error
        self._taken = {name: stamp for name, stamp in self._taken.items() if name in there}
        still = []
        now = time.monotonic()
        for name, stamp in there.items():
            if self._taken.get(name) == stamp:
                continue
            seen = self._waiting.get(name)
            if seen is None or seen.stamp != stamp:
                self._waiting[name] = _Seen(stamp, now, False)
            else:
                still.append((name, stamp))
        self._waiting = {name: seen for name, seen in self._waiting.items() if name in there}
        return sorted(still, key=lambda item: natural_key(Path(item[0])))

    def _frame(self, name: str, stamp: tuple[int, int], index: int) -> Frame | None:
        """The frame of a file that stands still; None where it is to be waited for, or was taken before."""
        path, seen = self.folder / name, self._waiting[name]
        key = file_key(path, stamp)
        patient = time.monotonic() - seen.since_s < self._patience_s
        if seen.tried and patient:
            return None  # nothing has changed since it was not whole
        if self._known(key):
            self._take(name, stamp)
            return None
        start = time.perf_counter()
        try:
            image, error = self._read(path), None
        except ImageError as caught:
            image, error = None, caught
        read_ms = (time.perf_counter() - start) * 1000
        try:
            now = _stamp(path)
        except OSError as caught:
            raise self._away(caught) from caught
        if (error is not None and patient) or now != stamp:  # not whole yet, or it changed while it was read
            self._waiting[name] = seen._replace(tried=True)
            return None
        self._take(name, stamp)
        return Frame(writable_name(path), index, image=image, error=error, path=path, read_ms=read_ms, trigger=key)

    def _read(self, path: Path) -> NDArray[np.uint8]:
        return read_image(path, max_pixels=self._max_pixels, bits=self._bits, note=self.noted.of(writable_name(path)))

    def _away(self, error: OSError) -> SourceError:
        return SourceError(f"{self.folder} cannot be watched ({error.strerror}): make it, or check disk and network")

    def _take(self, name: str, stamp: tuple[int, int]) -> None:
        del self._waiting[name]
        self._taken[name] = stamp

    def close(self) -> None:
        """Ends an iteration under way."""
        self._closed.set()

    def __enter__(self) -> "FolderWatch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def file_key(path: Path, stamp: tuple[int, int]) -> str:
    """What makes a file one and the same part, in whatever run: where it lies, when it was written (ns), its size."""
    return writable_name(f"{os.path.realpath(path)} {stamp[0]} {stamp[1]}")


def _stamp(path: Path) -> tuple[int, int] | None:
    """Of a file, or of a link that leads to none; None where there is neither.

    Raises:
        OSError: the folder itself is away.
    """
    try:
        found = path.stat()
    except OSError:  # a link to nowhere, in a circle, or to where nobody may look: in time an error, and no matter of the others
        try:
            found = path.lstat()
        except FileNotFoundError:
            return None
    return found.st_mtime_ns, found.st_size
