"""The folder of one run: claimed without harm to what lies there, and valid at every moment of the run."""

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agvas_core.contract.errors import OutputError, UsageError
from agvas_runtime.masks.result import RUN_FILE

__all__ = ["CLASSES_NAME", "COCO_NAME", "CSV_NAME", "REPORT_NAME", "RESULTS_NAME", "RUN_FILE", "RunFolder"]

RESULTS_NAME = "results.jsonl"
REPORT_NAME = "report.html"
CSV_NAME, COCO_NAME, CLASSES_NAME = "results.csv", "coco.json", "classes.txt"
PART_SUFFIX = ".part"

OWN_FILES: Final = {"masks": (".png",), "overlays": (".jpg",), "scores": (".png", ".npy"), "labels": (".txt",)}
"""Folder -> suffixes of what a run writes there."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunFolder:
    """Files of one run.

    ``results.jsonl`` holds whole lines only, and a line stands there only after the images it names. An image is written under
    another name and then renamed, so that no half image ever has its final name. A folder that was removed, moved or taken by
    another run is noticed before anything more is written.
    """

    def __init__(self, path: Path | None, *, overwrite: bool = False, keep_lines: bool = True) -> None:
        """Args:
        path: folder to use; None means the next free ``runs/run-001``.
        overwrite: replace the files of an earlier run in it.
        keep_lines: write ``results.jsonl``; without it results are only counted.
        """
        self.requested = path
        self.overwrite = overwrite
        self.keep_lines = keep_lines
        self.saved = 0
        """Results that are completely written."""
        self._path: Path | None = None
        self._mark: int | None = None
        self._lines: int | None = None
        self._end = 0

    @property
    def path(self) -> Path:
        """The folder; known once it is open."""
        assert self._path is not None, "open() comes first"
        return self._path

    def check(self) -> None:
        """Says no before any work is done; changes nothing.

        Raises:
            UsageError: the path is a file, or a folder with files in it that may not be replaced.
        """
        path = self.requested
        if path is None:
            return
        try:
            if not path.exists():
                return
            if not path.is_dir():
                raise UsageError(f"{path} is a file, results need a folder: choose another name with --out DIR")
            if next(path.iterdir(), None) is None:
                return
        except OSError as error:
            raise self._error(path, error) from error
        if not self.overwrite:
            raise UsageError(
                f"{path} is not empty: choose another name with --out DIR, or say --overwrite to replace an earlier run"
            )
        if not _is_a_run(path):
            raise UsageError(
                f"{path} has files in it that no agvas-run wrote: --overwrite would mix with them; choose another --out DIR"
            )

    def open(self, about: Mapping[str, Any]) -> None:
        """Creates the folder, or clears an earlier run out of it; ``about`` (what was run) goes into ``run.json``."""
        self.check()
        path = self.requested
        try:
            if path is None:
                path = _next_run(Path("runs"))
            else:
                path.mkdir(parents=True, exist_ok=True)
                _clear(path)
            self._path = path
        except OSError as error:
            raise self._error(path or Path("runs"), error) from error
        record = {"tool": "agvas-run", **about}
        self.store(RUN_FILE, (json.dumps(record, indent=2) + "\n").encode("utf-8", "backslashreplace"))
        try:
            self._mark = os.open(path / RUN_FILE, os.O_RDONLY)  # kept open, so that no other file can be taken for it
            if self.keep_lines:
                self._lines = os.open(
                    path / RESULTS_NAME, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666
                )
        except OSError as error:
            raise self._error(path / RESULTS_NAME, error) from error

    def store(self, relative: str, data: bytes) -> str:
        """Writes one file, all of it or none; returns ``relative``.

        Raises:
            OutputError: the disk is full, or the folder cannot be written, or it is no longer ours.
        """
        self._check_ours()
        target = self.path / relative
        part = target.with_name(target.name + PART_SUFFIX)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            part.replace(target)
        except BaseException as error:  # an interrupt, too, leaves no half file
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise self._error(target, error) from error
            raise
        return relative

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a result to ``results.jsonl``, the whole line or nothing; its images are stored before.

        Raises:
            OutputError: the disk is full, or the file cannot be written, or the folder is no longer ours.
        """
        self._check_ours()
        if self._lines is not None:
            line = encode_line(record)
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._lines, line[written:])
            except BaseException as error:
                os.ftruncate(self._lines, self._end)
                os.lseek(self._lines, self._end, os.SEEK_SET)
                if isinstance(error, OSError):
                    raise self._error(self.path / RESULTS_NAME, error) from error
                raise
            self._end += len(line)
        self.saved += 1

    def close(self) -> None:
        """Closes ``results.jsonl``; may be called twice. Nothing is written afterwards."""
        for open_file in (self._lines, self._mark):
            if open_file is not None:
                os.close(open_file)
        self._lines = self._mark = None

    def _check_ours(self) -> None:
        if self._mark is None:
            return
        try:
            ours = os.path.samestat(os.fstat(self._mark), os.stat(self.path / RUN_FILE))
        except OSError:
            ours = False
        if not ours:
            raise OutputError(
                f"{self.path} was removed, moved or taken by another run, after {self.saved} results: run again with another --out DIR"
            )

    def _error(self, path: Path, error: OSError) -> OutputError:
        reason = error.strerror or str(error)
        safe = f"{self.saved} results are safe in {self._path}; " if self._path is not None else ""
        if error.errno in _FULL:
            return OutputError(
                f"{path}: the disk is full ({reason}): {safe}free some space, then run again with another --out DIR"
            )
        return OutputError(f"{path} cannot be written ({reason}): {safe}choose another place with --out DIR")


def encode_line(record: Mapping[str, Any]) -> bytes:
    """One line of JSON. A file name that is no valid Unicode keeps its bytes as ``\\udcXX`` escapes."""
    return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")


def _next_run(runs: Path) -> Path:
    runs.mkdir(parents=True, exist_ok=True)
    number = max((int(path.name[4:]) for path in runs.glob("run-*") if path.name[4:].isdecimal()), default=0)
    while True:
        number += 1
        path = runs / f"run-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:  # another run took it a moment ago
            continue
        return path


def _is_a_run(path: Path) -> bool:
    try:
        about = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and about.get("tool") == "agvas-run"


def _clear(path: Path) -> None:
    """Removes what an earlier run wrote, by place and suffix; all other files stay."""
    if not _is_a_run(path):
        return
    for folder, suffixes in OWN_FILES.items():
        if (path / folder).is_symlink():
            continue
        for place, _, names in os.walk(path / folder, topdown=False):
            for name in names:
                if name.endswith((*suffixes, PART_SUFFIX)):
                    Path(place, name).unlink()
            with contextlib.suppress(OSError):  # not empty: something there is not ours
                Path(place).rmdir()
    for name in (RESULTS_NAME, REPORT_NAME, CSV_NAME, COCO_NAME, CLASSES_NAME, RUN_FILE):
        (path / name).unlink(missing_ok=True)
