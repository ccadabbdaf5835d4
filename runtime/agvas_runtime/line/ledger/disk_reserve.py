"""Space on disk that is held back for the last verdicts.

A file of a fixed size lies beside the ledger. When the disk is full it is given up, and what it held takes the rows of the parts that
are under way; from then on every part is NO_VERDICT, until the disk has room again.
"""

import os
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Final

from agvas_core.contract.errors import OutputError

__all__ = ["DiskLevel", "DiskReserve"]

BALLAST_NAME: Final = "reserve.bin"
MB: Final = 1_000_000


class DiskLevel(IntEnum):
    """What may still be written; each level includes the ones before it."""

    FINE = 0
    NO_IMAGES = 1
    NO_VERDICTS = 2


class DiskReserve:
    """The reserve of one ledger."""

    def __init__(
        self, folder: Path, *, size_mb: float = 32.0, reserve_mb: float = 128.0, images_reserve_mb: float = 1024.0
    ) -> None:
        """Args:
        size_mb: size of the file.
        reserve_mb: free space below which every part is NO_VERDICT.
        images_reserve_mb: free space below which no image is kept.
        """
        self.path = folder / BALLAST_NAME
        self._size, self._reserve, self._images_reserve = int(size_mb * MB), reserve_mb * MB, images_reserve_mb * MB
        self.needed_mb, self.images_reserve_mb = reserve_mb + 2 * size_mb, images_reserve_mb

    @property
    def free_mb(self) -> float:
        """Free space for this user."""
        found = os.statvfs(self.path.parent)
        return found.f_bavail * found.f_frsize / MB

    @property
    def held(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()

    def level(self) -> DiskLevel:
        """How much the disk still takes; fills the file again where there is room for it."""
        free = self.free_mb * MB
        if not self.held:
            if free < self._reserve + 2 * self._size:
                return DiskLevel.NO_VERDICTS
            try:
                self.fill()
            except OutputError:  # another process took the space at this moment
                return DiskLevel.NO_VERDICTS
        if free < self._reserve:
            return DiskLevel.NO_VERDICTS
        return DiskLevel.NO_IMAGES if free < self._images_reserve else DiskLevel.FINE

    def fill(self) -> None:
        """Makes the file.

        Raises:
            OutputError: the disk has no room for it.
        """
        part = self.path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, self._size))
            part.replace(self.path)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise OutputError(
                f"{self.path} cannot hold back {self._size / MB:g} MB ({error.strerror}): free some space, or choose another --state DIR"
            ) from error

    def give_up(self) -> bool:
        """Frees the space; False where it was freed before."""
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        return True
