"""A server that dies or hangs is started again, ever later; one that never works is given up; ours ends with us."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agvas_core.contract.errors import SetupError
from agvas_runtime.stages.vllm.serve import RestartPolicy, supervise

QUICK = RestartPolicy(start_s=20.0, poll_s=0.02, hung_s=0.3, back_off_s=0.05, max_back_off_s=0.2, calm_s=60.0, stop_s=5.0)


class Enough(Exception):
    """Ends a supervision from within, as Ctrl-C does."""


def test_a_process_that_is_killed_comes_back_and_the_caller_is_told(tmp_path: Path) -> None:
    pids, said = tmp_path / "pids", list[str]()
    script = f"import os, time; open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(60)"

    def started() -> list[int]:
        return [int(line) for line in pids.read_text().split()] if pids.exists() else []

    def ready() -> None:
        if len(started()) == 3:
            raise Enough
        os.kill(started()[-1], signal.SIGKILL)

    with pytest.raises(Enough):
        supervise(
            [sys.executable, "-c", script],
            healthy=lambda: len(started()) > len(said),
            told=said.append,
            patience=QUICK,
            ready=ready,
        )
    assert said == [
        "the server was ended by SIGKILL; it is started again in 0.05 s",
        "the server was ended by SIGKILL; it is started again in 0.1 s",
    ]
    for pid in started():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_one_that_hangs_is_killed_with_its_workers(tmp_path: Path) -> None:
    worker = tmp_path / "worker"
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(worker)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    answers = iter([True])

    def told(line: str) -> None:
        assert line.startswith("the server did not answer for 0.3 s")
        raise Enough

    def healthy() -> bool:
        return worker.exists() and bool(worker.read_text()) and next(answers, False)

    with pytest.raises(Enough):
        supervise([sys.executable, "-c", script], healthy=healthy, told=told, patience=QUICK)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{worker.read_text()}").exists() and time.monotonic() < deadline:
        state = Path(f"/proc/{worker.read_text()}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":  # ended; whoever adopted it has not looked yet
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{worker.read_text()}").exists()


def test_one_that_never_works_is_given_up() -> None:
    said = list[str]()
    with pytest.raises(SetupError, match="ended with 7, 3 times in a row"):
        supervise([sys.executable, "-c", "raise SystemExit(7)"], healthy=lambda: False, told=said.append, patience=QUICK)
    assert len(said) == 2


def test_a_program_that_is_not_there_is_an_error_at_once() -> None:
    with pytest.raises(SetupError, match="cannot be started"):
        supervise(["/nowhere/vllm"], healthy=lambda: False, told=print, patience=QUICK)


def test_ctrl_c_ends_the_process_too(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    inner = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    outer = (
        "import signal, sys\nfrom agvas_runtime.stages.vllm.serve import supervise\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background inherits that it is ignored
        f"supervise([sys.executable, '-c', {inner!r}], healthy=lambda: True, told=print, ready=lambda: print('ready', flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            while not (pid.exists() and pid.read_text()):
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            process.wait(20)
        finally:
            process.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
