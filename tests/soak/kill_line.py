"""Kills a station with SIGKILL at random moments, again and again, while a client triggers it; then counts.

    python tests/soak/kill_line.py --kills 300
    python tests/soak/kill_line.py --kills 100 --parts examples/parts --rate 3 --alive-s 4     a model that takes its time

The client numbers its triggers and sends each one until the station says that it was taken, as a PLC does. Whatever the moment of the
kill, in the end each trigger must stand in the ledger once, with one verdict, and in the JSONL sink once. Each station is a process
of its own, forked from one that has imported everything, so that the time goes into kills.
"""

import argparse
import contextlib
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from agvas_runtime.images.frame import Frame
from agvas_runtime.line.ledger.check import check_ledger
from agvas_runtime.line.ledger.disk_reserve import DiskReserve
from agvas_runtime.line.ledger.images import ImageStore
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.recipe.file import read_recipe
from agvas_runtime.line.station.inspector import SegmenterInspector
from agvas_runtime.line.station.outbox import OutboxWorker
from agvas_runtime.line.station.station import Station
from agvas_runtime.sinks.json_lines import JsonLinesSink

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from demo_camera import pictures


class Kills(NamedTuple):
    """What a run of kills came to."""

    kills: int
    sent: int
    in_ledger: int
    unsettled: int
    lines: int
    lines_twice: int
    taken_and_missing: int
    verdicts: dict[str, int]
    faults: list[str]

    @property
    def kept(self) -> bool:
        """Whether nothing was lost and nothing came twice."""
        return self.sent == self.in_ledger == self.lines and not (
            self.unsettled or self.lines_twice or self.taken_and_missing or self.faults
        )


def squares() -> list[np.ndarray]:
    """Every third has something dark on it."""
    clean = np.full((96, 128, 3), 210, np.uint8)
    marked = clean.copy()
    marked[20:60, 20:60] = 20
    return [marked, clean, clean]


def serve(folder: Path, parts: list[np.ndarray], triggers: TextIO, answers: TextIO) -> None:
    """The station: reads a trigger's number per line, and answers it once the trigger is durable."""
    version = read_recipe(folder / "recipe.yaml")
    sink = JsonLinesSink(folder / "verdicts.jsonl")
    reserve = DiskReserve(folder / "line", size_mb=1, reserve_mb=1, images_reserve_mb=1)
    with Ledger(folder / "line", sinks=[sink.name], reserve=reserve) as ledger:
        ledger.know_recipe(version.sha256, version.recipe.product, version.text)
        inspector, images, worker = SegmenterInspector(), ImageStore(ledger), OutboxWorker(ledger, sink)
        inspector.prepare(version)
        worker.start()
        station = Station("plc", ledger, inspector, lambda: version, images=images)
        print("ready", file=answers, flush=True)
        for line in triggers:
            number = int(line)
            station.offer(Frame(f"shot-{number}", number, image=parts[number % len(parts)]), key=str(number))
            worker.wake()
            print(number, file=answers, flush=True)
        station.close()
        images.close()
        worker.close(grace_s=60)


class Child:
    """A station in a process of its own."""

    def __init__(self, folder: Path, parts: list[np.ndarray]) -> None:
        inner_read, outer_write = os.pipe()
        outer_read, inner_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(outer_write)
                os.close(outer_read)
                serve(folder, parts, os.fdopen(inner_read), os.fdopen(inner_write, "w"))
                code = 0
            finally:
                traceback.print_exc() if code else None
                os._exit(code)
        os.close(inner_read)
        os.close(inner_write)
        self.triggers, self.answers = os.fdopen(outer_write, "w"), os.fdopen(outer_read)

    def end(self, *, kill: bool) -> int:
        """Kills it, or lets it come to its end; its exit code."""
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):
            self.triggers.close()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.answers.close()
        return code


def kill_again_and_again(
    folder: Path, model: str, kills: int, *, seed: int, max_alive_s: float, parts: list[np.ndarray], rate: float
) -> Kills:
    """Runs the station in ``folder``, kills it ``kills`` times, lets it end once, and counts.

    Args:
        rate: triggers a second at most; more than the model can look at find a full queue.
    """
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(
        f"product: part\nmodel: {json.dumps(model)}\ndeadline_ms: 5000\nkeep: {{sample_every: 5}}\n"
    )
    taken: set[int] = set()
    number = 1
    for attempt in range(kills + 1):
        station = Child(folder, parts)
        last = attempt == kills
        if station.answers.readline() != "ready\n":
            raise RuntimeError("the station did not start")
        end = time.monotonic() + (0.2 if last else chance.uniform(0.0, max_alive_s))
        while time.monotonic() < end:
            station.triggers.write(f"{number}\n")  # sent again after a kill: its acknowledgement may have been lost
            station.triggers.flush()
            if not last and chance.random() < 0.05:
                break  # killed before the acknowledgement is read
            if station.answers.readline() != f"{number}\n":
                raise RuntimeError("the station ended by itself")
            taken.add(number)
            number += 1
            time.sleep(max(0.0, min(1 / rate, end - time.monotonic())))
        if station.end(kill=not last) != (-signal.SIGKILL if not last else 0):
            raise RuntimeError("the station did not end as it should")
    return count(folder, kills, number - 1, taken)


def count(folder: Path, kills: int, sent: int, taken: set[int]) -> Kills:
    """Ledger and sink against what the client sent."""
    check = check_ledger(folder / "line", images=True)
    with Ledger(folder / "line", reserve=DiskReserve(folder / "line", size_mb=1, reserve_mb=1, images_reserve_mb=1)) as ledger:
        keys = {int(key) for (key,) in ledger.read("SELECT trigger_key FROM parts")}
    lines = [json.loads(line)["key"] for line in (folder / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    twice = sum(times - 1 for times in Counter(lines).values())
    # The last trigger may have been written down without the client having heard of it.
    sent = max(keys, default=sent)
    return Kills(
        kills,
        sent,
        check.triggers,
        check.unsettled,
        len(set(lines)),
        twice,
        len(taken - keys),
        check.verdicts | check.causes,
        check.faults,
    )


def main() -> int:
    """Prints what it came to; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alive-s", type=float, default=1.0, help="a station lives for at most this long")
    parser.add_argument("--parts", type=Path, help="a folder of pictures, instead of drawn squares")
    parser.add_argument("--rate", type=float, default=math.inf, help="triggers a second at most")
    arguments = parser.parse_args()
    parts = squares() if arguments.parts is None else pictures(arguments.parts, 480, 360)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        result = kill_again_and_again(
            Path(folder),
            arguments.model,
            arguments.kills,
            seed=arguments.seed,
            max_alive_s=arguments.alive_s,
            parts=parts,
            rate=arguments.rate,
        )
    print(json.dumps({**result._asdict(), "kept": result.kept, "minutes": round((time.monotonic() - began) / 60, 1)}))
    return 0 if result.kept else 1


if __name__ == "__main__":
    sys.exit(main())
