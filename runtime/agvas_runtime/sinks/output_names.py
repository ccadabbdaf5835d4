"""From the name of a frame to the names of its files: readable, safe on every file system, never the same twice."""

import glob
import hashlib
import itertools
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

__all__ = ["OutputNames", "common_root"]

MAX_PART_BYTES = 120  # ext4 and NTFS allow 255; leaves room for suffixes

_UNSAFE = re.compile(r"[^\w.+=@ -]")
_FRAME_NUMBER = re.compile(r"^(?P<source>.+)#(?P<number>\d+)$")
_RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # Windows
_OUR_SUFFIX = re.compile(r"\.(png|jpg|npy|part)$", re.IGNORECASE)


def common_root(sources: Sequence[str]) -> Path | None:
    """The folder that all given paths, folders and patterns lie in; names of files are kept relative to it.

    None where there is none: names of cameras, or paths read from stdin.
    """
    folders = []
    for source in sources:
        if source == "-" or "://" in source or source.startswith("watch:"):
            return None
        path = Path(os.path.abspath(source))
        if not path.is_dir():
            path = path.parent
        while glob.has_magic(str(path)):
            path = path.parent
        folders.append(path)
    if not folders:
        return None
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:  # two drives of Windows
        return None


class OutputNames:
    """Hands out a stem per frame, ``bottle/broken/000`` for ``../data/bottle/broken/000.png`` under root ``../data``.

    The suffix of the source is dropped unless two sources differ in nothing else. Frames of a video lie in a folder of the
    video's name: ``clip.mp4/000120``.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root
        self._used: set[str] = set()

    def stem(self, name: str) -> str:
        """A relative path, ``/`` between its parts, without suffix. Asking twice for one name gives two stems."""
        path, number = name, None
        if not os.path.exists(name) and (frame := _FRAME_NUMBER.match(name)):
            path, number = frame["source"], frame["number"]
        parts = [_safe(part) for part in self._relative_parts(path)] or ["frame"]
        folders = [_OUR_SUFFIX.sub(r"_\1", part) for part in parts[:-1]]  # a folder never has the name of one of our files
        last = parts[-1]
        if number is not None:
            folders.append(_OUR_SUFFIX.sub(r"_\1", last))
            return self._claim(folders, [number])
        short = os.path.splitext(last)[0]
        return self._claim(folders, [short, last] if short != last else [last])

    def _relative_parts(self, name: str) -> list[str]:
        path = Path(name)
        if self.root is not None and "://" not in name:
            absolute = Path(os.path.abspath(path))
            if absolute != self.root and absolute.is_relative_to(self.root):
                path = absolute.relative_to(self.root)
        return [part for part in path.parts if part not in ("..", ".", path.anchor)]

    def _claim(self, folders: list[str], candidates: list[str]) -> str:
        numbered = (f"{candidates[-1]}-{count}" for count in itertools.count(2))
        for last in itertools.chain(candidates, numbered):
            stem = "/".join([*folders, last])
            # macOS and Windows hold A.png and a.png for one file, macOS also the two ways to write a syllable.
            key = unicodedata.normalize("NFC", stem.casefold())
            if key not in self._used:
                self._used.add(key)
                return stem
        raise AssertionError("an endless count ended")


def _safe(part: str) -> str:
    part = _UNSAFE.sub("_", part).lstrip(".").rstrip(". ") or "_"
    if _RESERVED.match(part):
        part = f"_{part}"
    encoded = part.encode()
    if len(encoded) > MAX_PART_BYTES:
        stem, suffix = os.path.splitext(part)
        digest = hashlib.sha256(encoded).hexdigest()[:8]
        kept = stem.encode()[: MAX_PART_BYTES - len(suffix.encode()) - 9].decode(errors="ignore")
        part = f"{kept}-{digest}{suffix}" if len(suffix.encode()) < 20 else f"{encoded[:100].decode(errors='ignore')}-{digest}"
    return part
