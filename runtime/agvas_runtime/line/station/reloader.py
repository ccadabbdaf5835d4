"""The active recipe, while others are activated: taken between two parts, and only where it can be followed.

A wrong recipe is refused, the one before goes on, and the ledger has the reason.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from agvas_core.contract.errors import AgvasError, RecipeError
from agvas_runtime.line.recipe.file import RecipeVersion, read_recipe
from agvas_runtime.line.recipe.store import ACTIVE_NAME, RecipeStore
from agvas_runtime.line.recipe.thresholds import not_calibrated

__all__ = ["RecipeFollower"]

POLL_S: Final = 0.5


class RecipeFollower:
    """Watches a recipe file, or the active recipe of a store, in a thread of its own."""

    def __init__(
        self,
        path: Path,
        *,
        prepare: Callable[[RecipeVersion], None],
        on_change: Callable[[RecipeVersion], None],
        on_refusal: Callable[[str], None],
        poll_s: float = POLL_S,
    ) -> None:
        """Args:
        path: a recipe, or a store with an active one.
        prepare: makes ready for a recipe, or raises AgvasError.
        on_change: called with a recipe that is active from now on, before ``current`` gives it.
        on_refusal: called with why one is refused.

        Raises:
            AgvasError: there is no recipe to begin with, or it cannot be followed.
        """
        self._path, self._store = path, RecipeStore(path) if RecipeStore(path).is_store() else None
        self._watched = path / ACTIVE_NAME if self._store else path
        self._prepare, self._on_change, self._on_refusal = prepare, on_change, on_refusal
        self._seen = self._stamp()
        version = self._read()
        self._refuse_uncalibrated(version)
        prepare(version)
        on_change(version)
        self._current = version
        self._poll_s = poll_s
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agvas-recipe", daemon=True)
        self._thread.start()

    def current(self) -> RecipeVersion:
        """The recipe for a part that comes now."""
        return self._current

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._poll_s):
                stamp = self._stamp()
                if stamp == self._seen:
                    continue
                self._seen = stamp
                self._take()
        except BaseException as error:
            self.failure = error

    def _take(self) -> None:
        try:
            version = self._read()
            if version.sha256 == self._current.sha256:
                return
            self._refuse_uncalibrated(version)
            if self._store is None and version.recipe.product != self._current.recipe.product:
                raise RecipeError(
                    f"{self._path} is now for {version.recipe.product} and the station runs {self._current.recipe.product}: another product "
                    "is taken from a store alone (agvas recipe activate FILE --store DIR), or by a new start"
                )
            self._prepare(version)
        except AgvasError as error:
            self._on_refusal(f"{error}; {self._current.identity} goes on")
            return
        self._on_change(version)
        self._current = version

    def _refuse_uncalibrated(self, version: RecipeVersion) -> None:
        """A file that was edited beside its calibration record is refused; in a store it was activated by name."""
        if self._store is None and (fault := not_calibrated(version.recipe)) is not None:
            raise RecipeError(f"{self._path}: {fault}, or activate it by name (agvas recipe activate FILE --store DIR)")

    def _read(self) -> RecipeVersion:
        return self._store.active() if self._store else read_recipe(self._path)

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = os.stat(self._watched)
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_size, found.st_ino
