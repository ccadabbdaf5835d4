"""How far an evaluation is: a bar on a terminal, a line every few seconds elsewhere."""

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["EvalProgress"]

LINE_EVERY_S: Final = 5.0
_WORDS: Final = {"check": "masks checked", "score": "images scored"}


class EvalProgress:
    """Use as a context manager; ``advance`` is what ``evaluate`` takes.

    Args:
        total: images to come.
        quiet: say nothing.
    """

    def __init__(self, console: Console, total: int, *, quiet: bool = False) -> None:
        self._console, self._total, self._quiet = console, total, quiet
        self._counts = dict.fromkeys(_WORDS, 0)
        self._doing = ""
        self._said = self._began = time.monotonic()
        self._bar: Progress | None = None
        if not quiet and console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True)
            self._tasks = {phase: self._bar.add_task(words, total=total) for phase, words in _WORDS.items()}

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def doing(self, what: str) -> None:
        """Says what comes next, such as ``mpdd/plates, 4 good images, seed 0``."""
        self._doing = what
        if self._bar is not None:
            self._bar.update(self._tasks["score"], description=what)
        elif not self._quiet:
            self._say("")

    def advance(self, phase: str) -> None:
        """One more image went through ``phase``: ``check`` or ``score``."""
        self._counts[phase] += 1
        if self._bar is not None:
            self._bar.advance(self._tasks[phase])
        elif not self._quiet and time.monotonic() - self._said >= LINE_EVERY_S:
            self._say(phase)

    def _say(self, phase: str) -> None:
        self._said = time.monotonic()
        parts = [self._doing] if self._doing else []
        if phase:
            done, seconds = self._counts[phase], self._said - self._began
            rate = f"{done / seconds:.1f} images/s" if seconds > 0 else "-"
            parts.append(f"{done:,} of {self._total:,} {_WORDS[phase]}, {rate}")
        self._console.print(": ".join(parts), markup=False, highlight=False, soft_wrap=True)
