"""How far a fit or a calibration is: a bar on a terminal, a line for each step elsewhere."""

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["StepProgress"]

LINE_EVERY_S: Final = 5.0


class StepProgress:
    """Use as a context manager; called with a step, how many images of it are done, and of how many."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console, self._quiet = Console(stderr=True), quiet
        self._step, self._said = "", 0.0
        self._bar: Progress | None = None
        if self._console.is_terminal and not quiet:
            columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, step: str, done: int, total: int) -> None:
        """Says how far ``step`` is."""
        if self._bar is not None:
            if step != self._step:
                self._bar.reset(self._task, total=total, description=step)
            self._bar.update(self._task, completed=done)
        elif not self._quiet:
            now = time.monotonic()
            if step != self._step:
                self._console.print(f"{step}: {total}", markup=False, highlight=False)
                self._said = now
            elif now - self._said >= LINE_EVERY_S:
                self._console.print(f"{step}: {done} of {total}", markup=False, highlight=False)
                self._said = now
        self._step = step
