"""The figures of docs/benchmarks.md: `make bench ARGS="--data ../shared/data"`.

Runs agvas-run, as a user would, on each set of a folder in the layout of ../shared/data and prints Markdown: images/s and
milliseconds per stage, peak memory, mean score of good and bad images, verdicts; and leaves a page of overlays for looking at.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

STAGES = ("read", "preprocess", "vision", "lmm", "decoder", "postprocess")


def run(set_folder: Path, out: Path, model: str, threads: int, limit: int) -> tuple[list[dict], float]:
    """agvas-run in a process of its own: its results and its peak resident memory in MB."""
    images = sorted(path for path in set_folder.glob("*/test/*/*") if path.is_file())
    by_kind: dict[Path, list[Path]] = {}
    for path in images:
        by_kind.setdefault(path.parent, []).append(path)
    rng = np.random.default_rng(0)
    chosen = [kind[i] for kind in by_kind.values() for i in sorted(rng.permutation(len(kind))[:limit])]
    command = [sys.executable, "-m", "agvas.cli", "run", "-", "--out", str(out), "--overwrite", "--model", model]
    command += ["--save", "jsonl,overlay,mask", "--threads", str(threads), "--quiet"]
    program = "import resource, subprocess, sys; r = subprocess.run(sys.argv[1:]); "
    program += "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr); sys.exit(r.returncode)"
    done = subprocess.run(
        [sys.executable, "-c", program, *command], input="\n".join(map(str, chosen)), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    peak_kb = int(re.search(r"PEAK (\d+)", done.stderr).group(1))  # type: ignore[union-attr]
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    return rows, peak_kb / 1024


def is_good(row: dict) -> bool:
    return Path(row["name"]).parent.name == "good"


def mean(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f}" if values else "-"


def contact_sheet(out: Path, page: Path, count: int = 16, side: int = 220) -> None:
    """The overlays of one set, evenly picked, in one picture."""
    files = sorted((out / "overlays").rglob("*.*"))
    picked = [files[i] for i in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int)]
    tiles = []
    for path in picked:
        image = cv2.imread(str(path))
        scale = side / max(image.shape[:2])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        tile = np.full((side, side, 3), 32, np.uint8)
        tile[: image.shape[0], : image.shape[1]] = image[:side, :side]
        tiles.append(tile)
    tiles += [np.full((side, side, 3), 32, np.uint8)] * (-len(tiles) % 8)
    cv2.imwrite(str(page), np.concatenate([np.concatenate(tiles[i : i + 8], 1) for i in range(0, len(tiles), 8)], 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--model", default="nano")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit", type=int, default=10_000, help="images of each kind at most, drawn with seed 0")
    arguments = parser.parse_args()
    sets = sorted(path.name for path in arguments.data.iterdir() if (path / f"meta_{path.name}.json").is_file())
    if not sets:
        sys.exit(f"{arguments.data} holds no set with a meta_<set>.json: give the folder of the sets with --data")
    print(
        f"machine: {platform.processor() or platform.machine()}, {os.cpu_count()} cores, {arguments.threads} threads; model {arguments.model}\n"
    )
    speed, scores = [], []
    for name in sets:
        out = arguments.out / name
        rows, peak_mb = run(arguments.data / name, out, arguments.model, arguments.threads, arguments.limit)
        contact_sheet(out, arguments.out / f"{name}.png")
        fine = [row for row in rows if row["error"] is None]
        times = {stage: statistics.median(row["timing_ms"].get(stage, 0.0) for row in fine) for stage in STAGES}
        total = [row["timing_ms"]["total"] for row in fine]
        quantiles = np.quantile(total, [0.5, 0.95, 0.99])
        pixels = statistics.median(row["width"] * row["height"] for row in fine) / 1e6
        speed.append(
            f"| {name} | {len(rows)} | {pixels:.2f} | {1000 / statistics.fmean(total):.1f} | "
            + " | ".join(f"{times[stage]:.1f}" for stage in STAGES)
            + " | "
            + " / ".join(f"{value:.0f}" for value in quantiles)
            + f" | {peak_mb:.0f} |"
        )
        good, bad = [row for row in fine if is_good(row)], [row for row in fine if not is_good(row)]
        passed = f"{sum(row['verdict'] == 'PASS' for row in good)} of {len(good)}" if good else "-"
        scores.append(
            f"| {name} | {mean([row['score'] for row in good])} | {mean([row['score'] for row in bad])} | {passed} "
            f"| {sum(row['verdict'] == 'FAIL' for row in bad)} of {len(bad)} | {len(rows) - len(fine)} |"
        )
        print(f"{name}: {len(rows)} images", file=sys.stderr)
    print(
        "| set | images | MP | images/s | "
        + " | ".join(f"{stage}, ms" for stage in STAGES)
        + " | p50 / p95 / p99, ms | peak, MB |"
    )
    print("|" + "---|" * (6 + len(STAGES)))
    print("\n".join(speed))
    print(
        "\n| set | mean score, good | mean score, bad | good parts passed | bad parts failed | errors |\n|---|---|---|---|---|---|"
    )
    print("\n".join(scores))
    print(f"\noverlays to look at: {arguments.out}/*.png")


if __name__ == "__main__":
    main()
