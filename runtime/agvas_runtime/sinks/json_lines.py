"""Verdicts as lines of a file: each exactly once, also after kill -9."""

import json
import os
from pathlib import Path

from agvas_core.contract.errors import DeliveryError
from agvas_runtime.sinks.message import Message

__all__ = ["JsonLinesSink"]

TAIL_BYTES = 1 << 22  # holds more lines than a courier sends before it writes down what was acknowledged
REMEMBERED = 4096


class JsonLinesSink:
    """Appends to a file, on disk when ``send`` returns.

    The file of that name: after logrotate or ``rm`` a new one is made, for what is written to a file that has no name any more is
    not read. A line that was cut off by a kill is removed when the file is opened, and a message whose key stands among the last lines is not
    written again: no more than a few messages are ever sent and not yet acknowledged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = f"jsonl:{path}"
        self._file: int | None = None
        self._end = 0
        self._known: dict[str, None] = {}
        """Keys of the last lines, oldest first."""

    def open(self) -> None:
        """Opens or makes the file, and removes a line that was cut off."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._end = os.fstat(self._file).st_size
            start = max(0, self._end - TAIL_BYTES)
            tail = os.pread(self._file, self._end - start, start)
            whole = tail.rfind(b"\n") + 1
            self._end = start + whole
            os.ftruncate(self._file, self._end)
            for line in tail[:whole].splitlines()[1 if start else 0 :]:
                self._remember(str(json.loads(line)["key"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.close()
            raise DeliveryError(
                f"{self.path} cannot be appended to ({error}): check space and rights, or move it away"
            ) from error

    def send(self, message: Message) -> None:
        """Appends one line, or nothing."""
        assert self._file is not None, "open() comes first"
        if self._moved_away():
            self.close()
            self._known.clear()
            self.open()
        if message.key in self._known:
            return
        line = message.encode() + b"\n"
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._end + written)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise DeliveryError(f"{self.path} cannot be written ({error.strerror}): free some space") from error
        self._end += len(line)
        self._remember(message.key)

    def _moved_away(self) -> bool:
        assert self._file is not None
        opened = os.fstat(self._file)
        try:
            there = os.stat(self.path)
        except OSError:
            return True
        # A file that became shorter was emptied in place (logrotate's copytruncate).
        return (there.st_dev, there.st_ino) != (opened.st_dev, opened.st_ino) or opened.st_size < self._end

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _remember(self, key: str) -> None:
        self._known[key] = None
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
