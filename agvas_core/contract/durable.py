"""Atomic writes: a file is complete or absent, even if the process is killed."""

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["write_durably", "write_whole"]


def write_whole(path: Path, text: str) -> None:
    """Writes beside ``path`` and renames. A write that fails leaves nothing behind."""
    _write(path, text.encode("utf-8"), synced=False)


def write_durably(path: Path, data: bytes) -> None:
    """As ``write_whole``, and on disk when it returns: whole or not there after a power cut, too."""
    _write(path, data, synced=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write(path: Path, data: bytes, *, synced: bool) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
