"""A watched folder: each image file once, when it is complete.

    with FolderWatch("incoming/") as source: ...       # watch:incoming on the command line

Its subfolders, too, also those that are made later; hidden ones are left alone. A file is taken when its size and time stood still between two looks and its bytes are a whole picture. A file that is cut short is
waited for; after ``patience_s`` without a change it is a Frame with an error. It is looked, not listened: folders on a server tell nobody of
their changes. Names that begin with a dot or end in .tmp or .part are left alone, and files stay where they are. A picture that is overwritten
before its turn came is counted in ``dropped``.
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
END_BYTES: Final = 64


Stamp = tuple[int, int]
"""Nanoseconds of the last change, and bytes."""


class _Seen(NamedTuple):
    """A file at the last look."""

    stamp: Stamp
    inode: int
    since_s: float
    """It has stood still since."""
    still: bool = False
    """It was there, the same, at two looks."""
    tried: bool = False
    """It stood still before, and was not whole."""
    whole: bool = False
    """Its end looks like that of a picture."""


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
        self.dropped = 0
        """Pictures that were overwritten before they were taken, as far as a look saw them."""
        self._closed = threading.Event()
        self._changed = threading.Condition()
        self._taken: dict[str, Stamp] = {}
        self._waiting: dict[str, _Seen] = {}
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[Frame]:
        # Looks go on while a frame is judged, or files that are overwritten meanwhile would be missed.
        ended = threading.Event()
        looker = threading.Thread(target=self._watch, args=(ended,), name="agvas-watch", daemon=True)
        self._error = None
        looker.start()
        try:
            yield from self._frames()
        finally:
            ended.set()
            looker.join()

    def _frames(self) -> Iterator[Frame]:
        index = 0
        while not self._closed.is_set():
            with self._changed:
                if self._error is not None:
                    raise self._error
                still = sorted(
                    (name for name, seen in self._waiting.items() if seen.still), key=lambda name: natural_key(Path(name))
                )
            for name in still:
                if self._closed.is_set():
                    return
                frame = self._frame(name, index)
                if frame is not None:
                    yield frame
                    index += 1
            with self._changed:
                self._changed.wait(self._look_s)

    def _watch(self, ended: threading.Event) -> None:
        try:
            while not ended.is_set() and not self._closed.is_set():
                there = self._there()
                with self._changed:
                    self._look(there)
                    self._changed.notify_all()
                ended.wait(self._look_s)
        except BaseException as error:  # carried over to the consumer, which raises it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _there(self) -> dict[str, tuple[Stamp, int]]:
        """Image files below the folder: name within it -> stamp and inode."""
        found: dict[str, tuple[Stamp, int]] = {}
        seen: set[tuple[int, int]] = set()  # folders may be linked in a circle
        folders = [""]
        while folders:
            inside = folders.pop()
            try:
                with os.scandir(self.folder / inside) as entries:
                    for entry in entries:
                        name = os.path.join(inside, entry.name)
                        suffix = os.path.splitext(entry.name)[1].lower()
                        if entry.name.startswith("."):
                            continue
                        if suffix not in IMAGE_SUFFIXES and entry.is_dir():
                            status = entry.stat()
                            if (status.st_dev, status.st_ino) not in seen:
                                seen.add((status.st_dev, status.st_ino))
                                folders.append(name)
                        elif suffix in OTHER_PICTURES:
                            kind = OTHER_PICTURES[suffix]
                            self.noted.of(writable_name(entry.path))(f"pictures of the format {kind} ({suffix}) are not read")
                        elif suffix in IMAGE_SUFFIXES and (stamp := _stamp(Path(entry.path))) is not None:
                            found[name] = stamp  # None: moved on meanwhile
            except OSError as error:
                if not inside or not os.path.isdir(self.folder):
                    raise self._away(error) from error
                self.noted.of(writable_name(self.folder / inside))(f"the folder cannot be watched ({error.strerror})")
        return found

    def _look(self, there: dict[str, tuple[Stamp, int]]) -> None:
        """Compares what is there with what was."""
        self._taken = {name: stamp for name, stamp in self._taken.items() if name in there}
        now = time.monotonic()
        for name, (stamp, inode) in there.items():
            if self._taken.get(name) == stamp:
                continue
            seen = self._waiting.get(name)
            if seen is not None and seen.stamp == stamp:
                if not seen.still:
                    self._waiting[name] = seen._replace(still=True, whole=_looks_whole(self.folder / name))
                continue
            # A file that grows was written on; one that was whole, or was another file, was a picture that is gone now.
            self.dropped += seen is not None and not seen.tried and (seen.whole or seen.inode != inode)
            self._waiting[name] = _Seen(stamp, inode, now)
        self._waiting = {name: seen for name, seen in self._waiting.items() if name in there}

    def _frame(self, name: str, index: int) -> Frame | None:
        """The frame of a file that stands still; None where it is to be waited for, or was taken before."""
        with self._changed:
            seen = self._waiting.get(name)
        if seen is None or not seen.still:
            return None  # moved, or written again
        path, stamp = self.folder / name, seen.stamp
        key = file_key(path, stamp)
        patient = time.monotonic() - seen.since_s < self._patience_s
        if seen.tried and patient:
            return None  # nothing has changed since it was not whole
        if self._known(key):
            self._take(name, seen)
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
        if (error is not None and patient) or now is None or now[0] != stamp:
            # Not whole yet, or it changed while it was read.
            with self._changed:
                if (found := self._waiting.get(name)) is not None and found.stamp == stamp:
                    self._waiting[name] = found._replace(tried=True)
            return None
        self._take(name, seen)
        return Frame(writable_name(path), index, image=image, error=error, path=path, read_ms=read_ms, trigger=key)

    def _read(self, path: Path) -> NDArray[np.uint8]:
        return read_image(path, max_pixels=self._max_pixels, bits=self._bits, note=self.noted.of(writable_name(path)))

    def _away(self, error: OSError) -> SourceError:
        return SourceError(f"{self.folder} cannot be watched ({error.strerror}): make it, or check disk and network")

    def _take(self, name: str, seen: _Seen) -> None:
        with self._changed:
            self._taken[name] = seen.stamp
            if (found := self._waiting.get(name)) is not None and found.stamp == seen.stamp:
                del self._waiting[name]

    def close(self) -> None:
        """Ends an iteration under way."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()

    def __enter__(self) -> "FolderWatch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def file_key(path: Path, stamp: tuple[int, int]) -> str:
    """What makes a file one and the same part, in whatever run: where it lies, when it was written (ns), its size."""
    return writable_name(f"{os.path.realpath(path)} {stamp[0]} {stamp[1]}")


def _looks_whole(path: Path) -> bool:
    """Whether the last bytes are those that end a picture; True for formats that have no end."""
    ends = {".png": b"IEND", ".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9"}
    wanted = ends.get(path.suffix.lower())
    if wanted is None:
        return True
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - END_BYTES))
            return wanted in file.read(END_BYTES)
    except OSError:
        return False


def _stamp(path: Path) -> tuple[Stamp, int] | None:
    """Stamp and inode of a file, or of a link that leads to none; None where there is neither.

    Raises:
        OSError: the folder itself is away.
    """
    try:
        found = path.stat()
    except (
        OSError
    ):  # a link to nowhere, in a circle, or to where reading is forbidden: in time an error, and no matter of the others
        try:
            found = path.lstat()
        except FileNotFoundError:
            return None
    return (found.st_mtime_ns, found.st_size), found.st_ino
