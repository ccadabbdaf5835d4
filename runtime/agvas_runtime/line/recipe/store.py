"""A folder of recipe versions, one of which is active.

store/
  versions/0123456789ab.yaml      a version never changes; its name is the start of its sha256
  active.json                     which one goes, since when, and what went before; replaced as a whole

store = RecipeStore(Path("recipes"))
store.activate(read_recipe(Path("bracket.yaml")))
store.active().recipe
store.rollback()
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, ValidationError

from agvas_core.contract.durable import write_durably
from agvas_core.contract.errors import OutputError, RecipeError
from agvas_core.contract.validation import StrictModel
from agvas_runtime.line.recipe.file import RecipeVersion, read_recipe

__all__ = ["ACTIVE_NAME", "Activation", "RecipeStore"]

ACTIVE_NAME = "active.json"
HISTORY = 200  # activations that are remembered; versions are kept for ever
PREFIX_LENGTH = 12


class Activation(StrictModel):
    """One version that went, and since when."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    product: str
    since: str
    """UTC, ISO 8601."""
    why: str = "activate"


class _Pointer(StrictModel):
    history: tuple[Activation, ...] = Field(min_length=1)
    """The last one is active."""


class Change(NamedTuple):
    """What an activation did."""

    before: RecipeVersion | None
    after: RecipeVersion


class RecipeStore:
    """The recipes of one station. Several processes may use one store; activations take turns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def is_store(self) -> bool:
        """Whether a recipe was ever activated here."""
        return (self.folder / ACTIVE_NAME).is_file()

    def history(self) -> tuple[Activation, ...]:
        """All activations that are remembered, oldest first; the last one is active.

        Raises:
            RecipeError: there is none, or the pointer was damaged.
        """
        path = self.folder / ACTIVE_NAME
        try:
            return _Pointer.model_validate_json(path.read_bytes()).history
        except FileNotFoundError:
            raise RecipeError(f"{self.folder} has no active recipe: agvas recipe activate FILE --store {self.folder}") from None
        except (OSError, ValidationError) as error:
            raise RecipeError(f"{path} cannot be read ({_first_line(error)}): activate a recipe again") from error

    def active(self) -> RecipeVersion:
        """The active version.

        Raises:
            RecipeError: there is none, or its file is gone, changed or wrong.
        """
        return self.version(self.history()[-1].sha256)

    def version(self, prefix: str) -> RecipeVersion:
        """A version by the first digits of its sha256.

        Raises:
            RecipeError: none or several begin so, or the file is not what its name says.
        """
        found = sorted((self.folder / "versions").glob(f"{prefix[:PREFIX_LENGTH]}*.yaml")) if _is_hex(prefix) else []
        if len(found) != 1:
            count = "no version" if not found else f"{len(found)} versions"
            raise RecipeError(f"{self.folder} has {count} {prefix!r}: agvas recipe list --store {self.folder} shows them")
        version = read_recipe(found[0])
        if not version.sha256.startswith(prefix) or not version.sha256.startswith(found[0].stem):
            raise RecipeError(f"{found[0]} was changed: its sha256 is {version.sha256[:12]}; put it back, or activate the change")
        return version

    def activate(self, version: RecipeVersion, *, why: str = "activate") -> Change:
        """Makes a version the active one, at once and as a whole.

        Raises:
            OutputError: the store cannot be written; what was active stays.
        """
        with self._locked():
            before = self._history_or_none()
            old = self.version(before[-1].sha256) if before else None
            self._keep(version)
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            new = Activation(sha256=version.sha256, product=version.recipe.product, since=now, why=why)
            self._point([*before, new][-HISTORY:])
        return Change(old, version)

    def rollback(self) -> Change:
        """Goes back to what was active before; again, to what was before that.

        Raises:
            RecipeError: nothing was.
            OutputError: the store cannot be written; what was active stays.
        """
        self.history()  # no folder is made of a name that is no store
        with self._locked():
            history = self.history()
            if len(history) < 2:
                raise RecipeError(
                    f"{self.folder} has had one recipe only, {history[0].sha256[:12]}: there is nothing to go back to"
                )
            before, target = self.version(history[-1].sha256), self.version(history[-2].sha256)
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            # The step is taken out of the history, so that a second rollback goes one further.
            self._point([*history[:-2], history[-2].model_copy(update={"since": now, "why": "rollback"})])
        return Change(before, target)

    def _history_or_none(self) -> tuple[Activation, ...]:
        return self.history() if self.is_store() else ()

    def _keep(self, version: RecipeVersion) -> None:
        path = self.folder / "versions" / f"{version.sha256[:PREFIX_LENGTH]}.yaml"
        if path.exists():
            self.version(version.sha256)  # whole and unchanged, or an error
            return
        self._write(path, version.text.encode())

    def _point(self, history: list[Activation]) -> None:
        pointer = _Pointer(history=tuple(history))
        self._write(self.folder / ACTIVE_NAME, (json.dumps(pointer.model_dump(mode="json"), indent=2) + "\n").encode())

    def _write(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, data)
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror}): what was active stays; check space and rights"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be written ({error.strerror}): choose another --store") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _is_hex(text: str) -> bool:
    return 4 <= len(text) <= 64 and all(character in "0123456789abcdef" for character in text)


def _first_line(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0]
