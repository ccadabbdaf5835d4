"""A pool of worker processes on this machine: one that dies is replaced, and its shard is repeated."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from agvas_core.contract.errors import AgvasError, SetupError, SourceError, UsageError
from agvas_runtime.batch.shard_result import Done

__all__ = ["Crew", "error_of"]

MOST_DEATHS: Final = 40  # with one shard; an image that kills is left alone after three, so this is a machine that kills


class Crew:
    """Shards to what their footers will say, in the order in which they are done.

        with Crew(out, workers=2, threads=1) as crew:
            for done in crew.run([0, 1, 2]): ...

    Leaving it ends the workers at their next image; shards under way are done again another time.
    """

    def __init__(self, out: Path, *, workers: int, threads: int | None) -> None:
        self._out, self._threads = out, threads
        self._count = workers
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._answers: queue.Queue[Done | BaseException | None] = queue.Queue()
        self._members: list[threading.Thread] = []
        self.deaths = 0
        """Workers that ended while they had a shard."""

    def run(self, shards: Iterable[int]) -> Iterator[Done]:
        """Raises what a worker reports (AgvasError); SetupError where workers die again and again."""
        waiting = iter(shards)
        self._members = [
            threading.Thread(target=self._guarded, args=(waiting,), name=f"agvas-batch-{number}", daemon=True)
            for number in range(self._count)
        ]
        for member in self._members:
            member.start()
        left = len(self._members)
        while left:
            match self._answers.get():
                case None:
                    left -= 1
                case Done() as done:
                    yield done
                case error:
                    raise error

    def close(self) -> None:
        """Ends all workers."""
        self._stopping.set()
        with self._lock:
            for process in self._processes.values():
                process.terminate()
        for member in self._members:
            member.join()

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _guarded(self, waiting: Iterator[int]) -> None:
        try:
            self._member(waiting)
            self._answers.put(None)
        except BaseException as error:  # raised again in the caller of the crew
            self._answers.put(error)

    def _member(self, waiting: Iterator[int]) -> None:
        """One worker after the other, until there is nothing left to do."""
        process: subprocess.Popen[str] | None = None
        try:
            while not self._stopping.is_set():
                with self._lock:
                    shard = next(waiting, None)
                if shard is None:
                    return
                for deaths in range(1, MOST_DEATHS + 1):
                    if process is None and (process := self._start()) is None:
                        return
                    done = self._ask(process, shard)
                    if done is not None:
                        self._answers.put(done)
                        break
                    code = self._end(process)
                    process = None
                    if self._stopping.is_set():
                        return
                    self.deaths += 1
                    if deaths == MOST_DEATHS:
                        raise SetupError(
                            f"{MOST_DEATHS} workers died with shard {shard} (the last with {_said(code)}): is there enough memory? Look at "
                            "dmesg, give fewer --workers, and run the same command again; what is done is kept"
                        )
        finally:
            if process is not None:
                self._end(process)

    def _start(self) -> "subprocess.Popen[str] | None":
        """A worker that is ready; None where the crew is to end."""
        command = [sys.executable, "-m", "agvas_runtime.batch.worker_process", str(self._out), str(self._threads or 0)]
        with self._lock:
            if self._stopping.is_set():
                return None
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self._processes[process.pid] = process
        answer = self._read(process)
        if answer is None:
            code = self._end(process)
            if self._stopping.is_set():
                return None
            raise SetupError(f"a worker ended with {_said(code)} before it was ready: see above; is there enough memory?")
        return process

    def _ask(self, process: "subprocess.Popen[str]", shard: int) -> Done | None:
        """None where the worker died."""
        assert process.stdin is not None
        try:
            process.stdin.write(f"{shard}\n")
            process.stdin.flush()
        except BrokenPipeError:
            return None
        answer = self._read(process)
        return None if answer is None else Done(**answer)

    def _read(self, process: "subprocess.Popen[str]") -> dict[str, Any] | None:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.endswith("\n"):
            return None
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise error_of(answer["code"], answer["failed"])
        return answer

    def _end(self, process: "subprocess.Popen[str]") -> int:
        assert process.stdin is not None and process.stdout is not None
        with self._lock:
            self._processes.pop(process.pid, None)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        return process.wait()


def error_of(code: int, message: str) -> AgvasError:
    """What a worker raised, from its exit code and words."""
    kinds: dict[int, type[AgvasError]] = {2: UsageError, 3: SetupError, 5: SourceError}
    return kinds.get(code, SetupError)(message)


def _said(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
