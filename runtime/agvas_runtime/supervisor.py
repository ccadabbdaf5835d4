"""Keeps one process running: waits until it is healthy, starts it again with back-off when it ends or hangs, ends it with us."""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, sleep

from agvas_core.contract.errors import SetupError

__all__ = ["Patience", "supervise"]


@dataclass(frozen=True)
class Patience:
    """Times in seconds."""

    start_s: float = 900.0
    """Until a process that was started must be healthy: 15 GB of weights take minutes."""
    poll_s: float = 1.0
    hung_s: float = 30.0
    """A process that was healthy and has not been for so long is killed."""
    back_off_s: float = 1.0
    """Before the first new start; doubled before each further one."""
    max_back_off_s: float = 60.0
    calm_s: float = 120.0
    """After so long in health, the next failure counts as the first."""
    stop_s: float = 10.0
    """Between asking a process to end and killing it."""
    attempts: int = 3
    """Starts that may fail before the process was healthy even once."""


def supervise(
    command: Sequence[str],
    *,
    healthy: Callable[[], bool],
    told: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    patience: Patience | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Runs ``command`` until the caller is interrupted (KeyboardInterrupt), which ends the process, too.

    Args:
        healthy: does it do its work? Called every ``poll_s``.
        told: gets a line when something happens.
        ready: called each time that it became healthy.

    Raises:
        SetupError: it never became healthy.
    """
    patience = patience or Patience()
    failures, ever = 0, False
    while True:
        process = _start(command, environment)
        try:
            lasted_s, why = _watch(process, healthy, ready, patience)
        finally:
            _stop(process, patience)
        ever = ever or lasted_s is not None
        failures = 1 if lasted_s is not None and lasted_s >= patience.calm_s else failures + 1
        if not ever and failures >= patience.attempts:
            raise SetupError(f"{command[0]} {why}, {failures} times in a row: what it printed before says why")
        wait_s = min(patience.back_off_s * 2.0 ** (failures - 1), patience.max_back_off_s)
        told(f"the server {why}; it is started again in {wait_s:g} s")
        sleep(wait_s)


def _start(command: Sequence[str], environment: Mapping[str, str] | None) -> "subprocess.Popen[bytes]":
    try:
        # A group of its own: its workers end with it, and Ctrl-C reaches it through us alone.
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        raise SetupError(f"{command[0]} cannot be started ({error.strerror})") from error


def _watch(
    process: "subprocess.Popen[bytes]", healthy: Callable[[], bool], ready: Callable[[], None], patience: Patience
) -> tuple[float | None, str]:
    """Until it ends or hangs: how long it was in health (None: never), and what happened."""
    began = monotonic()
    first: float | None = None
    last = began
    while True:
        code = process.poll()
        now = monotonic()
        if code is not None:
            ended = f"ended with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
            return (None if first is None else now - first), ended
        if healthy():
            last = monotonic()
            if first is None:
                first = last
                ready()
        elif first is None and now - began > patience.start_s:
            return None, f"was not healthy {patience.start_s:g} s after its start"
        elif first is not None and now - last > patience.hung_s:
            return now - first, f"did not answer for {patience.hung_s:g} s"
        sleep(patience.poll_s)


def _stop(process: "subprocess.Popen[bytes]", patience: Patience) -> None:
    """Asks, waits, kills; with its workers."""
    with suppress(ProcessLookupError, PermissionError):
        _signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience.stop_s)
        _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    os.killpg(process.pid, number)  # start_new_session made its pid the group's
