"""A file of JSON lines that only grows: what was appended is there after kill -9, and half a line is never taken for one.

with Journal(Path("out.jsonl")) as journal:
    journal.append({"image": "a.png"})
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agvas_core.contract.errors import OutputError, UsageError

if sys.platform != "win32":
    import fcntl

__all__ = ["Journal", "read_lines"]


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) of each line; a last line that was cut short by a kill is left out.

    Raises:
        UsageError: the file cannot be read, or another line is no JSON object.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.strip():
                    continue
                line = _parsed(raw)
                if line is None and raw.endswith(b"\n"):
                    raise UsageError(f"{path}, line {number} is no JSON object: fix it or remove it")
                if line is not None:
                    yield number, line
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; name a file of JSON lines") from error


class Journal:
    """Appends lines, each in one write that has reached the disk when :meth:`append` returns. One process at a time."""

    def __init__(self, path: Path) -> None:
        """Opens ``path`` or makes it; a last line that was cut short is taken off.

        Raises:
            UsageError: another process writes into it.
            OutputError: it cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise self._error(error) from error
        try:
            self._lock()
            self._end = self._mended()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, line: Mapping[str, Any]) -> None:
        """Writes one line; it is on the disk when this returns.

        Raises:
            OutputError: it is not, and the file is as it was before.
        """
        raw = json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            self._write(raw)
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):  # a full disk still lets a file shrink
                os.ftruncate(self._file, self._end)
            raise self._error(error) from error
        self._end += len(raw)

    def close(self) -> None:
        """Lets the next process in."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _write(self, raw: bytes) -> None:
        os.lseek(self._file, self._end, os.SEEK_SET)
        written = 0
        while written < len(raw):
            written += os.write(self._file, raw[written:])

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(
                self._file, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # the system takes it back when the process dies, however it dies
        except BlockingIOError as error:
            raise UsageError(f"{self.path} is being written by another process: wait for it, or name another file") from error

    def _mended(self) -> int:
        """Length of the file once its last line is whole."""
        size = os.lseek(self._file, 0, os.SEEK_END)
        start, tail = size, b""
        while start and b"\n" not in tail:
            step = min(65536, start)
            start -= step
            os.lseek(self._file, start, os.SEEK_SET)
            tail = os.read(self._file, step) + tail
        last = tail.rpartition(b"\n")[2]
        if not last:
            return size
        if _parsed(last) is None:
            if not last.startswith((b"{", b"\0")):  # not a journal of ours: another file must not be cut
                raise UsageError(f"{self.path} is no file of JSON lines: name another one")
            os.ftruncate(self._file, size - len(last))
            return size - len(last)
        self._end = size
        self._write(b"\n")  # whole, as an editor leaves it that adds no newline
        return size + 1

    def _error(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {self.path}: {error.strerror}; choose a file in a folder with space and permission")


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
