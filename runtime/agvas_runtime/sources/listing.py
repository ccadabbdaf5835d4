"""Paths, folders and globs to a list of files."""

import codecs
import difflib
import glob
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from agvas_core.contract.errors import SetupError, UsageError
from agvas_runtime.images.read import IMAGE_SUFFIXES, OTHER_PICTURES
from agvas_runtime.masks.result import RUN_FILE
from agvas_runtime.sources.video import VIDEO_SUFFIXES

__all__ = ["list_files", "natural_key", "unread_pictures", "walk_images"]

MASK_FOLDER = "ground_truth"
"""Where MVTec-like data sets keep their masks, which are no parts."""


def list_files(paths: Sequence[str | Path], notes: list[str], stdin: TextIO | None = None) -> list[Path]:
    """Files named by ``paths``, in order.

    A path is a file (taken whatever its suffix), a folder (its images, recursively, in natural order: 2 before 10), a glob (as the
    shell would expand it, but files that are neither image nor video are left out), or ``-``: one path a line on ``stdin``, read
    to its end first. In folders, hidden files, ``ground_truth`` and results of earlier runs are skipped. What was left out is said in ``notes``.

    Raises UsageError (nothing there; a folder without images) and SetupError (a folder that may not be listed).
    """
    if not paths:
        raise UsageError("no source is given; at least one is needed: name a file, a folder, a glob, or - for a list on stdin")
    files: list[Path] = []
    for path in paths:
        if str(path) == "-":
            named = [line for line in _lines(stdin or sys.stdin) if line.strip()]
            if not named:
                raise UsageError("stdin gives 0 paths; at least one is needed: write one path a line")
            for line in named:
                files += _files(line, notes)
        else:
            files += _files(path, notes)
    return files


def _lines(stdin: TextIO | None) -> Iterator[str]:
    if stdin is None:  # what Python makes of one that the shell closed
        raise UsageError("stdin is closed; a list of paths is needed on it: pipe one in, or name the files")
    # Linux allows bytes in file names that are no UTF-8, and a list of such names is not to stop at them.
    binary = getattr(stdin, "buffer", None)
    if binary is None:
        return (line.rstrip("\r\n").removeprefix("\ufeff") for line in stdin)
    return _paths_of(binary.read())


def _paths_of(data: bytes) -> Iterator[str]:
    """Lines of a list. Windows writes it as UTF-16, or begins it with a byte order mark."""
    for mark, encoding in ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(mark):
            data = data[len(mark) :]
            if encoding != "utf-8":
                data = data.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
            break
    return (os.fsdecode(line).rstrip("\r\n") for line in data.split(b"\n"))


def _files(spec: str | Path, notes: list[str]) -> list[Path]:
    path = Path(spec)
    if not str(spec):  # an unset variable of the shell, which must not mean the current folder
        raise UsageError("a source is '', an empty name: name a file or a folder (. is the current one)")
    try:
        if path.is_dir():
            return _folder(path, notes)
        # A name that exists is no pattern, whatever signs it holds; pipes and devices are refused when they are read.
        if os.path.lexists(path):
            return [path]
    except (OSError, ValueError) as error:
        raise UsageError(f"{str(spec)!r} cannot be a path ({error}): check it") from error
    if isinstance(spec, str) and glob.has_magic(spec):
        return _glob(spec, notes)
    raise UsageError(_not_there(path, str(spec)))


def _folder(root: Path, notes: list[str]) -> list[Path]:
    left_out: Counter[str] = Counter()
    images = list(walk_images(root, left_out))
    masks, runs, videos = left_out["masks"], left_out["runs"], left_out["videos"]
    if masks:
        notes.append(
            f"{root}: skipped {masks} folder{'s' * (masks > 1)} named {MASK_FOLDER} (masks, not parts); name it to read it"
        )
    if runs:
        notes.append(
            f"{root}: skipped {runs} folder{'s' * (runs > 1)} with results of earlier runs ({RUN_FILE}); name it to read it"
        )
    unread_note = unread_pictures({name[1:]: count for name, count in left_out.items() if name.startswith("*")}, root)
    video_note = f"{root} holds {videos} video file{'s' * (videos > 1)}, which are read only when named: {root}/*"
    if not images:
        raise UsageError(
            f"folder {root} holds 0 images; at least one is needed: files that count end in {' '.join(sorted(IMAGE_SUFFIXES))}"
            + (f". {video_note}" if videos else "")
            + (f". {unread_note}" if unread_note else "")
        )
    if unread_note:
        notes.append(unread_note)
    if videos:
        notes.append(video_note)
    return sorted(images, key=natural_key)


def walk_images(root: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Images below ``root``, folder by folder as they are found, each folder in natural order.

    What is left out is counted under ``masks`` and ``runs`` (folders), ``videos`` (files), and ``*.heic`` and the like: pictures of
    formats that are not read.
    """
    for folder, subfolders, names in _walk(root):
        if RUN_FILE in names and Path(folder) != root:
            left_out["runs"] += 1
            subfolders.clear()
            continue
        left_out["masks"] += MASK_FOLDER in subfolders
        subfolders[:] = [name for name in subfolders if name != MASK_FOLDER]
        images = []
        for name in names:
            if not name.startswith("."):
                suffix = os.path.splitext(name)[1].lower()
                if suffix in IMAGE_SUFFIXES:
                    images.append(Path(folder, name))
                left_out["videos"] += suffix in VIDEO_SUFFIXES
                if suffix in OTHER_PICTURES:
                    left_out[f"*{suffix}"] += 1
        yield from sorted(images, key=natural_key)


def unread_pictures(counts: Mapping[str, int], where: str | Path) -> str:
    """A note on pictures of formats that are not read, by suffix; empty where there are none."""
    if not counts:
        return ""
    named = ", ".join(f"{count} {suffix} ({OTHER_PICTURES[suffix]})" for suffix, count in sorted(counts.items()))
    return f"{where}: left out {sum(counts.values())} pictures of formats that are not read: {named}; convert them"


def _walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As ``os.walk``, into links as well but into each folder once: they may be linked in a circle. Hidden folders are left out."""
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, onerror=_cannot_list, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield folder, subfolders, names


def _cannot_list(error: OSError) -> None:
    raise SetupError(f"folder {error.filename} cannot be listed ({error.strerror}): grant permission to read it") from error


def _glob(pattern: str, notes: list[str]) -> list[Path]:
    files: list[Path] = []
    others = 0
    unread: Counter[str] = Counter()
    found = [Path(match) for match in _expand(pattern)]
    for path in sorted(found, key=natural_key):
        if path.is_dir():
            if "**" not in pattern:  # ** matches the files of a folder as well as the folder
                files += _folder(path, notes)
        elif path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            files.append(path)
        elif path.suffix.lower() in OTHER_PICTURES:
            unread[path.suffix.lower()] += 1
        else:
            others += 1
    if unread:
        notes.append(unread_pictures(unread, pattern))
    if others:
        notes.append(f"{pattern}: left out {others} file{'s' * (others > 1)} that are neither image nor video by suffix")
    if not files:
        raise UsageError(
            f"pattern {pattern!r} matches {len(found)} paths and 0 images or videos; at least one is needed: check it"
        )
    return files


def _expand(pattern: str) -> list[str]:
    """As ``glob.glob``, which for ``**`` would go round and round where folders are linked in a circle."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return glob.glob(pattern)
    at = parts.index("**")
    rest = parts[at + 1 :] or ("*",)
    roots = glob.glob(str(Path(*parts[:at]))) if at else ["."]
    folders = [folder for root in roots if Path(root).is_dir() for folder, _, _ in _walk(Path(root))]
    return list(dict.fromkeys(match for folder in folders for match in _expand(str(Path(glob.escape(folder), *rest)))))


def natural_key(path: Path) -> tuple[tuple[tuple[int, int, str], ...], ...]:
    """Sorts ``part2`` before ``part10``, folder by folder."""
    return tuple(
        tuple((0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in re.split("([0-9]+)", part) if piece)
        for part in path.parts
    )


def _not_there(path: Path, spec: str) -> str:
    """Says how far the path goes, and what is there instead."""
    existing = path.absolute().parent
    missing = path.name
    while not existing.is_dir() and existing != existing.parent:
        missing, existing = existing.name, existing.parent
    try:
        near = difflib.get_close_matches(missing, os.listdir(existing), n=3, cutoff=0.5)
    except OSError:
        near = []
    place = f"{existing} has no {missing!r}"
    remedy = f"did you mean {', '.join(near)}?" if near else "check the path"
    if re.fullmatch("[0-9]+", spec):
        remedy = f"for a camera, pass --camera {spec}"
    return f"no such file or folder: {spec!r} ({place}): {remedy}"
