"""A worker's hold on a shard, and what is remembered of those that died with it.

``OUT/open/shard-000000123`` is locked while somebody works at the shard, and is still there, unlocked, where that somebody was killed.
Whoever takes the shard up then works with care: before each image its index is written down. An image with which two careful workers died is
not tried a third time: it kills whoever looks at it.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Final

__all__ = ["OPEN_FOLDER", "Claim"]

OPEN_FOLDER: Final = "open"
DEADLY: Final = 2  # careful workers that died at an image
RECORD_BYTES: Final = 8192  # always as long, so that no write is ever half a record


class Claim:
    """Held until ``release``, ``finish``, or the end of the process."""

    def __init__(self, out: Path, number: int) -> None:
        """Waits while another holds it: one that was left behind when its crew was killed ends at its next image."""
        self._path = out / OPEN_FOLDER / f"shard-{number:09d}"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._locked()
        found = os.pread(self._file, RECORD_BYTES, 0).strip()
        record = json.loads(found) if found else {}
        self.tries = int(record.get("tries", 0)) + 1
        """How many have taken the shard up, with this one."""
        self._deaths: dict[str, int] = record.get("deaths", {})
        if record.get("at") is not None:
            at = str(record["at"])
            self._deaths[at] = self._deaths.get(at, 0) + 1
        self._write(None)

    @property
    def careful(self) -> bool:
        """Whether somebody died with this shard."""
        return self.tries > 1

    def deadly(self, index: int) -> int:
        """With how many the image is to be left alone; 0 for those that may be looked at."""
        deaths = self._deaths.get(str(index), 0)
        return deaths if deaths >= DEADLY else 0

    def at(self, index: int) -> None:
        """Says that this image comes now."""
        self._write(index)

    def finish(self) -> None:
        """The shard is done."""
        self._path.unlink(missing_ok=True)
        os.close(self._file)

    release = finish  # nobody died: what follows need not be careful

    def _locked(self) -> int:
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if os.path.samestat(os.fstat(file), os.stat(self._path)):
                    return file
            except FileNotFoundError:
                pass
            os.close(file)  # whoever held it is done, and removed it

    def _write(self, at: int | None) -> None:
        record = {"tries": self.tries, "at": at, "deaths": self._deaths, "pid": os.getpid(), "host": os.uname().nodename}
        os.pwrite(self._file, json.dumps(record).encode().ljust(RECORD_BYTES), 0)
