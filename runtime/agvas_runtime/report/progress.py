"""The terminal output of a run: progress, then the summary."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from agvas_core.contract.command_line import printable
from agvas_runtime.masks.result import Result, Verdict
from agvas_runtime.report.run_report import reason

__all__ = ["RunProgress", "print_summary"]

LINE_EVERY_S = 5.0
MAX_ERRORS = 10

_STYLES = {Verdict.PASS: "bold blue", Verdict.FAIL: "bold dark_orange", Verdict.NO_VERDICT: "bold magenta"}


class RunProgress:
    """A bar on a terminal, a line every few seconds elsewhere, nothing when ``quiet``; counts in every case."""

    def __init__(self, console: Console, *, total: int | None, quiet: bool = False, verbose: bool = False) -> None:
        """Args:
        verbose: a line for each result; without it only for one that is alone and has an answer in words.
        """
        self.console = console
        self.verbose = verbose
        self.total = total
        self.quiet = quiet
        self.counts: Counter[Verdict] = Counter()
        self.errors: list[tuple[str, str]] = []
        """The first ``MAX_ERRORS`` names and messages."""
        self.elapsed_s = 0.0
        self._started = self._said = time.monotonic()
        self._bar: Progress | None = None
        if not quiet and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.completed:,.0f}{task.fields[of]} images"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[rate]} images/s"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[failed]} FAIL", style="dark_orange"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=total, of="" if total is None else f" of {total:,}", rate="-", failed=0)

    def __enter__(self) -> Self:
        self._started = self._said = time.monotonic()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def done(self) -> int:
        """Results so far."""
        return sum(self.counts.values())

    def advance(self, result: Result) -> None:
        """Takes note of one result."""
        self.counts[result.verdict] += 1
        if result.error is not None and len(self.errors) < MAX_ERRORS:
            self.errors.append((result.name, reason(result)))
        if self.verbose or (self.total == 1 and result.answer is not None and not self.quiet):
            self.console.print(_result_line(result), soft_wrap=True)
        now = time.monotonic()
        self.elapsed_s = now - self._started
        if self._bar is not None:
            rate = f"{self.done / self.elapsed_s:.1f}" if self.elapsed_s else "-"
            self._bar.update(self._task, advance=1, rate=rate, failed=self.counts[Verdict.FAIL])
        elif not self.quiet and now - self._said >= LINE_EVERY_S:
            self._said = now
            self.console.print(self._line(), markup=False, highlight=False)

    def _line(self) -> str:
        rate = self.done / self.elapsed_s
        if self.total is None:
            return f"{self.done:,} images, {rate:.1f} images/s, {self.counts[Verdict.FAIL]} FAIL"
        left_s = max(0, self.total - self.done) / rate
        return (
            f"{self.done:,} of {self.total:,} images, {rate:.1f} images/s, {left_s:.0f} s left, {self.counts[Verdict.FAIL]} FAIL"
        )


def _result_line(result: Result) -> Text:
    """Verdict, score, name, and what the model said or why there is no verdict."""
    score = "" if result.score is None else f" {result.score:.3f}"
    words = result.answer if result.error is None else reason(result)
    return Text.assemble(
        (result.verdict, _STYLES[result.verdict]),
        f"{score}  ",
        (printable(result.name), "bold"),
        f"  {printable(words)}" if words else "",
    )


def print_summary(
    console: Console,
    progress: RunProgress,
    *,
    stage_medians: Mapping[str, float],
    report: Path | None,
    folder: Path | None,
    notes: Sequence[str] = (),
) -> None:
    """Counts, errors, speed, and where everything lies."""
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    for verdict in Verdict:
        table.add_row(Text(verdict, style=_STYLES[verdict]), f"{progress.counts[verdict]:,}")
    table.add_section()
    if progress.elapsed_s > 0:
        table.add_row("images/s", f"{progress.done / progress.elapsed_s:.1f}")
    for stage, ms in stage_medians.items():
        table.add_row(Text(f"{stage}, median", style="dim"), f"{ms:.1f} ms")
    console.print(table)
    for name, message in progress.errors:
        console.print(
            Text.assemble(("no verdict ", "magenta"), (printable(name), "bold"), ": ", printable(message)), soft_wrap=True
        )
    if (more := progress.counts[Verdict.NO_VERDICT] - len(progress.errors)) > 0:
        console.print(f"and {more:,} more without a verdict", highlight=False)
    for note in notes:
        console.print(Text(printable(note), style="yellow"), soft_wrap=True)
    if folder is not None:
        console.print(Text(f"results  {printable(str(folder))}"), soft_wrap=True)
    if report is not None:
        console.print(Text(f"report   {printable(str(report))}"), soft_wrap=True)
