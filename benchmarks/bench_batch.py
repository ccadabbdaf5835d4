"""The figures of docs/batch.md: images a second with one and two workers, what each step costs, and what a thousand million images would.

    python benchmarks/bench_batch.py --images 240 --ray

Wall time depends on what else the machine does, so the CPU time of all processes stands beside it, and the model is made of that. The
pictures are examples/parts, named again and again in a listing.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from agvas_runtime.batch.plan import BatchJob, make_plan
from agvas_runtime.batch.shard_result import read_done, write_result

ROOT = Path(__file__).resolve().parents[1]
LISTED = 1_000_000
SHARD = 12
MANY = 1_000_000_000


class Rate(NamedTuple):
    """What one batch came to."""

    first_s: float
    """Until the first shard was done."""
    images_per_s: float
    """From then to the last shard, by the times of their files, so that no start is in it."""
    cpu_s: float
    """Of all of it."""


def run(images: int, folder: Path, *options: str) -> Rate:
    """``agvas batch`` as a user starts it; with Ray, the CPU time of Ray's own processes is not ours to count, and is not in it."""
    pictures = sorted((ROOT / "examples" / "parts").glob("*.jpg"))
    listing = folder / f"{'ray' if '--ray' in options else 'processes'}-{options[1]}-{images}.txt"
    listing.write_text("".join(f"{pictures[i % len(pictures)]}\n" for i in range(images)))
    command = [sys.executable, "-c", "from agvas.cli import main; main()", "batch", str(listing), "-q"]
    command += ["--out", str(listing.with_suffix("")), "--shard", str(SHARD), "--threads", "1", *options]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    subprocess.run(command, check=True, cwd=ROOT, stderr=subprocess.DEVNULL if "--ray" in options else None)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = sorted(path.stat().st_mtime for path in listing.with_suffix("").rglob("shard-*.parquet"))
    rate = (len(done) - 1) * SHARD / (done[-1] - done[0]) if len(done) > 1 else 0.0
    return Rate(done[0] - began, rate, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def names() -> Iterator[str]:
    """As a store of a plant might name them."""
    return (f"s3://plant-7/line-3/2026-11-24/shift-{n % 3}/part-{n:012d}.png" for n in range(LISTED))


def plan_costs(folder: Path) -> dict[str, float]:
    """Writing names down, and counting what is done."""
    job = BatchJob(source="x", base="/", model="nano", bundle="nano@0", max_pixels=1)
    began = time.process_time()
    plan = make_plan(folder, job, names(), shard_images=None, left_out={})
    listing_s = time.process_time() - began
    plan_bytes = sum(path.stat().st_size for path in (folder / "plan").iterdir())
    found = sorted((folder.parent / "first").rglob("shard-*.parquet"))
    import pyarrow.parquet as pq

    rows = [row for path in found for row in pq.read_table(path).to_pylist()]
    rows = (rows * (plan.shard_images // len(rows) + 1))[: plan.shard_images]
    began, cpu = time.monotonic(), time.process_time()
    for number in range(20):
        write_result(folder, plan, number, rows)
    write_s, write_cpu_s = (time.monotonic() - began) / 20, (time.process_time() - cpu) / 20
    row_bytes = sum(path.stat().st_size for path in (folder / "results").rglob("*.parquet")) / 20 / plan.shard_images
    began = time.process_time()
    for number in range(20):
        assert read_done(folder, plan, number) is not None
    return {
        "names_per_cpu_s": LISTED / listing_s, "plan_bytes_per_image": plan_bytes / LISTED, "result_bytes_per_image": row_bytes,
        "write_ms_per_shard": write_s * 1000, "write_cpu_ms_per_shard": write_cpu_s * 1000, "count_ms_per_shard": (time.process_time() - began) / 20 * 1000,
        "shard_images": plan.shard_images,
    }  # fmt: skip


def main() -> int:
    """Prints measured figures and the model as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=240, help=f"beyond the first shard; a multiple of {SHARD}")
    parser.add_argument("--ray", action="store_true", help="measure with Ray, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "plan").mkdir()
        cpu_s = 0.0
        for kind in [(), *([("--ray",)] if arguments.ray else [])]:
            for workers in ("1", "2"):
                load = os.getloadavg()[0]
                options = ("--workers", workers, *kind)
                many = run(arguments.images + SHARD, folder, *options)
                line = {"on": "ray" if kind else "processes", "workers": int(workers), "first_shard_s": round(many.first_s, 1)}
                line["images_per_s"] = round(many.images_per_s, 2)
                if not kind:
                    image_cpu_s = (many.cpu_s - run(SHARD, folder, *options).cpu_s) / arguments.images
                    cpu_s = cpu_s or image_cpu_s
                    line["cpu_s_per_image"] = round(image_cpu_s, 4)
                print(json.dumps({**line, "load_before": round(load, 1)}), flush=True)
        (folder / f"processes-1-{SHARD}").rename(folder / "first")
        costs = plan_costs(folder / "plan")
    print(json.dumps({key: round(value, 3) for key, value in costs.items()}), flush=True)
    shards = MANY / costs["shard_images"]
    print(json.dumps({
        "images": MANY,
        "worker_hours": round(MANY * cpu_s / 3600),
        "days_with_1000_workers": round(MANY * cpu_s / 1000 / 86400, 2),
        "listing_hours": round(MANY / costs["names_per_cpu_s"] / 3600, 2),
        "plan_gb": round(MANY * costs["plan_bytes_per_image"] / 1e9, 1),
        "results_gb": round(MANY * costs["result_bytes_per_image"] / 1e9, 1),
        "writing_worker_hours": round(shards * costs["write_ms_per_shard"] / 3.6e6, 1),
        "counting_hours": round(shards * costs["count_ms_per_shard"] / 3.6e6, 2),
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
