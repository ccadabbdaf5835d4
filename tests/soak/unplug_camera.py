"""Kills a camera again and again while a station runs on it, and counts what came of it.

    python tests/soak/unplug_camera.py mjpeg --times 50
    python tests/soak/unplug_camera.py gige --times 50
    python tests/soak/unplug_camera.py rtsp --times 50

The camera is a process of its own (examples/demo_camera.py), killed with SIGKILL; each of its frames has a number that stands in a file before
the frame is sent. The station is the real one, with its ledger; the engine passes everything. In the end every gap must stand in the ledger,
the camera must have been taken up again within two seconds of its return, and every frame that became a part must be one that was sent, once.
"""

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from agvas_runtime.images.frame import Frame
from agvas_runtime.line.ledger.check import check_ledger
from agvas_runtime.line.ledger.disk_reserve import DiskReserve
from agvas_runtime.line.ledger.images import ImageStore
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.recipe.file import RecipeVersion
from agvas_runtime.line.recipe.rules import Judgement
from agvas_runtime.line.station.inspector import Inspection
from agvas_runtime.line.station.runner import StationJob, StationRunner
from agvas_runtime.line.station.station import Outcome
from agvas_runtime.masks.result import Verdict

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import demo_camera

PATIENCE_S = 60.0
ADDRESSES = {"mjpeg": "http://127.0.0.1:{}/", "gige": "genicam://Aravis-Fake-U{}", "rtsp": "rtsp://127.0.0.1:{}/live"}
NUMBERS_A_LIFE = 100_000  # a camera that comes back goes on with numbers that no life before had


class PassAll:
    """An engine at the stage boundary that finds nothing."""

    identity = "pass-all@000000000000"
    facts: Mapping[str, Any] = {"engine": "pass-all"}

    def prepare(self, version: RecipeVersion) -> None:
        """Is always ready."""

    def concern(self, version: RecipeVersion) -> str | None:
        """Nothing."""

    def inspect(self, frame: Frame, version: RecipeVersion) -> Inspection:
        empty = np.zeros((1, 1), np.float32)
        return Inspection(Judgement(Verdict.PASS, 0.0, (), (), empty > 1), empty, "none@000000000000", {})


def start_camera(kind: str, port: int, life: int, log: Path) -> tuple[subprocess.Popen[str], float]:
    """A camera that runs, and the time.time() at which it was there."""
    serial = f"U{port}"
    where = ["--serial", serial] if kind == "gige" else ["--port", str(port)]
    command = [sys.executable, str(demo_camera.__file__), kind, *where]
    command += ["--stamp", str(1 + life * NUMBERS_A_LIFE), "--log", str(log), "--fps", "25", "--size", "512x512"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        if not said.readline():
            raise SystemExit(f"the {kind} camera did not start")
    return process, time.time()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("what should have happened did not, for a minute")
        time.sleep(0.005)


def unplug(folder: Path, kind: str, times: int, seed: int, silent: bool = False, port: int | None = None) -> dict[str, Any]:
    """Runs the station in ``folder`` and kills its camera ``times`` times.

    Args:
        silent: the camera is stopped before it is killed, so that no connection breaks.
        port: of the camera, one that is free now by default.
    """
    chance = random.Random(seed)
    (folder / "recipe.yaml").write_text(
        "product: part\nmodel: none\ndeadline_ms: 5000\nkeep: {rejects: false, no_verdicts: false}\n"
    )
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
    uri = ADDRESSES[kind].format(port)
    sent, seen, broken = folder / "sent.txt", [], []

    def listen(outcome: Outcome) -> None:
        (broken if outcome.frame.image is None else seen).append(
            str(outcome.frame.error) if outcome.frame.image is None else demo_camera.read_stamp(outcome.frame.image)
        )

    noticed, recovered = [], []
    with Ledger(folder / "line", reserve=DiskReserve(folder / "line", size_mb=1, reserve_mb=1, images_reserve_mb=1)) as ledger:
        images = ImageStore(ledger)
        lane = StationRunner(StationJob("camera", folder / "recipe.yaml", uri), ledger, PassAll(), images, (listen,))

        def events(what: str) -> list[float]:
            rows = ledger.read("SELECT utc FROM events WHERE kind = ?", (what,))
            return [datetime.fromisoformat(utc).timestamp() for (utc,) in rows]

        camera, _ = start_camera(kind, port, 0, sent)
        stop = threading.Event()
        lane.start(stop, limit=None)
        until(lambda: bool(seen))
        before = len(events("source-lost"))  # the station may have been quicker than its camera, the first time
        for life in range(1, times + 1):
            time.sleep(chance.uniform(0.2, 1.0))
            camera.send_signal(signal.SIGSTOP if silent else signal.SIGKILL)
            killed = time.time()
            until(lambda life=life: len(events("source-lost")) == before + life)  # type: ignore[misc]
            noticed.append(events("source-lost")[-1] - killed)
            camera.kill()
            camera.wait()
            time.sleep(chance.uniform(0.0, 3.0))
            camera, back = start_camera(kind, port, life, sent)
            until(lambda life=life: len(events("source-back")) == before + life)  # type: ignore[misc]
            recovered.append(max(0.0, events("source-back")[-1] - back))
        stop.set()
        lane.end("all kills are done")
        lane.close()
        images.close()
        camera.kill()
        camera.wait()
        failure = lane.failure
    numbers = set(map(int, sent.read_text().split()))
    check = check_ledger(folder / "line")
    return {
        "kind": kind,
        "silent": silent,
        "kills": times,
        "gaps_in_ledger": len(noticed),
        "noticed_s_most": round(max(noticed), 2),
        "recovered_s_most": round(max(recovered), 2),
        "recovered_s_median": round(sorted(recovered)[len(recovered) // 2], 2),
        "frames_sent": len(numbers),
        "parts": check.triggers,
        "verdicts": check.verdicts,
        "dropped": check.dropped,
        "broken_frames": len(broken),
        "invented": len(set(seen) - numbers),
        "twice": sum(count - 1 for count in Counter(seen).values()),
        "faults": check.faults + ([str(failure)] if failure is not None else []),
    }


def main() -> int:
    """Prints what it came to; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*ADDRESSES])
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--silent",
        action="store_true",
        help="the camera falls silent, as when its cable is pulled, and is killed once that is noticed",
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = unplug(Path(folder), arguments.kind, arguments.times, arguments.seed, arguments.silent)
    wrong = found["invented"] or found["twice"] or found["faults"] or max(found["noticed_s_most"], found["recovered_s_most"]) > 2
    print(json.dumps({**found, "kept": not wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
