"""A worker as a process of its own: numbers of shards come in on stdin, a line of JSON for each goes out on stdout.

    python -m agvas_runtime.batch.worker_process OUT THREADS

It ends with its crew: when stdin is closed, when it is told to (SIGTERM), and at the next image when the crew's process is gone.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from agvas_core.contract.command_line import needs_packages
from agvas_core.contract.errors import AgvasError
from agvas_runtime.batch.shard_worker import ShardWorker

__all__ = ["main"]


def main(out: str, threads: str) -> int:
    """Works until there is no more to do."""
    crew, told = os.getppid(), []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the crew says what is to be done

    def stopped() -> bool:
        return bool(told) or os.getppid() != crew

    # What a library prints must not come between our lines.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    try:
        with needs_packages():
            worker = ShardWorker(Path(out), threads=int(threads) or None, stopped=stopped)
            answer(ready=os.getpid())
            for line in sys.stdin:
                done = worker.work(int(line))
                if done is None or stopped():
                    break
                answer(**done._asdict())
    except AgvasError as error:
        answer(failed=str(error), code=error.exit_code)
        return error.exit_code
    except BrokenPipeError:
        pass  # the crew is gone
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
