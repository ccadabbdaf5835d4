"""Eight hours of parts as fast as they go: does memory grow, and do the slowest verdicts get slower?

    python tests/soak/endure_line.py --parts 200000

All that ``agvas-run --recipe`` starts for a station is real: ledger, image store, JSONL sink, drift and dirt watch, metrics, log. The
three stages are stubs (``stub_stages``), so that 200,000 parts, one every 144 ms for 8 hours, take minutes. Resident memory and the
99th percentile of the time to a verdict are printed for each tenth; growth is counted from the end of the first tenth, when every
buffer has been used once.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from stub_stages import stub_inspector

from agvas_runtime.images.frame import Frame
from agvas_runtime.line.app.log import LineLog, logging_to
from agvas_runtime.line.app.metrics import Metrics
from agvas_runtime.line.ledger.check import check_ledger
from agvas_runtime.line.ledger.images import ImageStore
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.recipe.file import parse_recipe
from agvas_runtime.line.station.drift import DriftMonitor
from agvas_runtime.line.station.outbox import OutboxWorker
from agvas_runtime.line.station.station import Station
from agvas_runtime.sinks.json_lines import JsonLinesSink

GROWTH_MB = 20.0
SAMPLES = 100
PICTURES = 64

RECIPE = """
product: part
deadline_ms: 2000
frame: {width_px: 160, height_px: 120}
thresholds: {threshold: 0.5, seed_threshold: 0.9}
keep: {rejects: true, no_verdicts: true, sample_every: 100, max_gb: 0.02}
calibration: {date: "2026-01-01T00:00:00+00:00", bundle: nano@000000000000, good_parts: 1000, bad_parts: 0, max_false_reject: 0.2,
              confidence: 0.9, false_rejects: 100, false_reject_bound: 0.2, score_quantiles: [0.0, 0.4, 0.95], focus: [0.0, 1.0]}
"""


def resident_mb() -> float:
    """Of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def pictures() -> list[np.ndarray]:
    """Grey parts with noise; one of eight has a dark spot."""
    rng = np.random.default_rng(0)
    made = [rng.integers(190, 220, (120, 160, 3), dtype=np.uint8) for _ in range(PICTURES)]
    for image in made[::8]:
        y, x = rng.integers(10, 90, 2)
        image[y : y + 12, x : x + 12] = 10
    return made


def main() -> int:
    """Prints ten lines and what they come to; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=200_000)
    parser.add_argument("--state", type=Path, default=None, help="where the ledger lies; a temporary folder by default")
    arguments = parser.parse_args()
    tenth = max(1, arguments.parts // 10)
    took_ms = np.zeros(10 * tenth, np.float32)
    every = -(-10 * tenth // SAMPLES)
    memory = np.zeros(SAMPLES, np.float32)
    shots = pictures()
    with tempfile.TemporaryDirectory(dir=arguments.state) as name, open(os.devnull, "w") as quiet:
        folder, version = Path(name), parse_recipe(RECIPE, "the recipe")
        sink = JsonLinesSink(folder / "verdicts.jsonl")
        with logging_to("json", quiet), Ledger(folder / "line", sinks=[sink.name]) as ledger:
            ledger.know_recipe(version.sha256, version.recipe.product, version.text)
            inspector, images, worker = stub_inspector(), ImageStore(ledger), OutboxWorker(ledger, sink)
            inspector.prepare(version)
            metrics = Metrics(lambda: iter(()))
            worker.start()
            listeners = (lambda _: worker.wake(), metrics, LineLog(), DriftMonitor(ledger))
            station = Station("camera-0", ledger, inspector, lambda: version, images=images, listeners=listeners)
            began = time.monotonic()
            for number in range(10 * tenth):
                image = shots[number % PICTURES].copy()  # a new frame each time, as from a camera
                pending = station.offer(Frame(f"shot-{number}", number, image=image), key=str(number), block=True)
                end = pending.wait()
                assert end is not None, station.failure
                took_ms[number] = end.decided_ms
                if number % every == 0:
                    memory[number // every] = resident_mb()
                    metrics.text()
                if (number + 1) % tenth == 0:
                    tail = np.percentile(took_ms[number + 1 - tenth : number + 1], [50, 99, 99.9])
                    row = (number + 1, resident_mb(), *tail, (number + 1) / (time.monotonic() - began))
                    print("{:>9,} parts  {:6.1f} MB  p50 {:6.2f}  p99 {:6.2f}  p99.9 {:7.2f} ms  {:5.0f} parts/s".format(*row), flush=True)  # fmt: skip
            station.close()
            images.close()
            while worker.pending and worker.failure is None:
                time.sleep(0.1)
            worker.close()
        check = check_ledger(folder / "line")
        lines = sum(1 for _ in (folder / "verdicts.jsonl").open("rb"))
    used = memory[memory > 0]
    settled = float(used[len(used) // 10 :][0]) if len(used) > 10 else float(used[0])
    growth = float(used[-max(1, len(used) // 10) :].max()) - settled
    tails = [float(np.percentile(part, 99)) for part in np.split(took_ms, 10)]
    kept = growth < GROWTH_MB and not check.faults and check.triggers == lines == 10 * tenth and not check.unsettled
    print(
        json.dumps(
            {
                "parts": check.triggers, "lines": lines, "verdicts": check.verdicts | check.causes, "images": check.images,
                "growth_mb": round(growth, 1), "p99_ms_least_and_most_of_ten": [round(min(tails), 2), round(max(tails), 2)],
                "p99_ms_first_and_last": [round(tails[0], 2), round(tails[-1], 2)], "faults": check.faults, "kept": kept,
            }
        )
    )  # fmt: skip
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
