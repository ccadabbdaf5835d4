"""One engine for several stations: they take turns, whoever has waited longest first."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from agvas_core.contract.preprocess import ViewSpec
from agvas_runtime.frame import Frame
from agvas_runtime.line.inspector import Inspection, Inspector
from agvas_runtime.line.recipe_file import RecipeVersion

__all__ = ["InTurns"]


class InTurns:
    """An inspector that any thread may use. A busy station cannot keep the others from the engine, as with a plain lock it could."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._mutex = threading.Lock()
        self._busy = False
        self._line: deque[threading.Event] = deque()

    @property
    def identity(self) -> str:
        """Of the engine."""
        return self._inspector.identity

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of the engine."""
        return self._inspector.facts

    def prepare(self, version: RecipeVersion) -> None:
        """Makes ready for a recipe, between two parts."""
        with self._turn():
            self._inspector.prepare(version)

    def whole_views(self, version: RecipeVersion, height: int, width: int) -> list[ViewSpec]:
        """Of the engine; takes no turn, for it only looks up."""
        return self._inspector.whole_views(version, height, width)

    def inspect(self, frame: Frame, version: RecipeVersion) -> Inspection:
        """Looks at a frame when its turn has come."""
        with self._turn():
            return self._inspector.inspect(frame, version)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        mine = threading.Event()
        with self._mutex:
            if self._busy:
                self._line.append(mine)
            else:
                self._busy = True
                mine.set()
        mine.wait()
        try:
            yield
        finally:
            with self._mutex:
                if self._line:
                    self._line.popleft().set()
                else:
                    self._busy = False
