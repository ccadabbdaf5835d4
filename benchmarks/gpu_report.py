"""What ``gpu_figures.sh`` left in a folder, as one table against the targets: python benchmarks/gpu_report.py FOLDER > figures.md

Also writes FOLDER/figures.json. A step that failed, or was not run, is a line that says so; nothing is filled in.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

Found = dict[str, Any]


def read(folder: Path, name: str) -> Found | None:
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() and path.stat().st_size else None


def target_rows(ratios: dict[str, Found]) -> list[tuple[str, str, str, bool | None]]:
    """What, target, measured, held; of the fastest variant of each."""

    def best(prefix: str, precision: str) -> Found | None:
        fitting = [found for name, found in ratios.items() if name.startswith(prefix) and found["precision"] == precision]
        return min(fitting, key=lambda found: found["ours"]["p50"], default=None)

    rows: list[tuple[str, str, str, bool | None]] = []

    def row(what: str, target: str, found: Found | None, text: str, held: bool | None) -> None:
        named = "" if found is None else f" ({found['precision']}{', compiled' if found['compiled'] else ''})"
        rows.append((what, target, "not measured" if found is None else text + named, None if found is None else held))

    large, short, small = best("ov-7b", "bf16"), best("ov-7b", "fp8"), best("ov-0.5b", "bf16")
    ours = large["ours"] if large else {}
    row("ov-7b, batch 1, direct mode, p50", "under 80 ms", large, f"{ours.get('p50', 0):.1f} ms", ours.get("p50", 0) < 80)
    ratio, share = (large[key] if large else 0 for key in ("ratio", "share"))
    row("the same over the paper's way, one process", "10x or more", large, f"{ratio:.1f}x", ratio >= 10)
    row("the same, share of the measured matrix rate", "45 % or more", large, f"{share:.0%}", share >= 0.45)
    ms = short["ours"]["p50"] if short else 0
    row(
        "ov-7b in float8",
        "under 55 ms",
        short,
        f"{ms:.1f} ms; masks differ at {short['masks_differ']:.1%}" if short else "",
        ms < 55,
    )
    together = large["batch"] if large else {"times": 0, "peak_gb": 0, "size": 8}
    row(
        f"ov-7b, throughput at batch {together['size']} over batch 1",
        "1.3x or more",
        large,
        f"{together['times']:.2f}x",
        together["times"] >= 1.3,
    )
    memory = together["peak_gb"]
    row(
        "the same, memory",
        "under 24 GB",
        large,
        "none on a CPU" if memory is None else f"{memory:.1f} GB",
        memory is not None and memory < 24,
    )
    ms = small["ours"]["p50"] if small else 0
    row("ov-0.5b + SAM ViT-B", "under 15 ms", small, f"{ms:.1f} ms", ms < 15)
    tail = large["tail"] if large else 0
    row(f"p99 / p50 over {ours.get('count', 0):,} frames of ov-7b", "under 1.15", large, f"{tail:.3f}", tail < 1.15)
    return rows


def variants(ratios: dict[str, Found]) -> list[str]:
    lines = [
        "| model | precision | compiled | paper's way p50, ms | GB | ours p50 / p99, ms | GB | ratio | RGB frame to P p50 / p99, ms | generate, ms | one prefill, ms | TFLOP | share of rate | logits off by | masks differ |",
        "|" + "---|" * 15,
    ]
    for found in ratios.values():
        reference, ours, whole = found["reference"], found["ours"], found["whole_frame"]
        frame = (
            "no kernels"
            if whole is None
            else f"{whole['p50']:.1f} / {whole['p99']:.1f} ({'x'.join(map(str, whole['size'][::-1]))})"
        )
        lines.append(
            f"| {found['name']} | {found['precision']} | {'yes' if found['compiled'] else 'no'} | {reference['p50']:.1f} | {_gb(reference)} | "
            f"{ours['p50']:.1f} / {ours['p99']:.1f} | {_gb(ours)} | {found['ratio']:.1f} | {frame} | {found['generate_ms']:.1f} | {found['prefill_ms']:.1f} | "
            f"{found['tflop']:.2f} | {found['share']:.0%} | {found['off_by']:.1e} | {found['masks_differ']:.2%} |"
        )
    return lines


def training(found: Found) -> list[str]:
    lines = [
        f"\n{found['name']}: {found['tflop']:.1f} TFLOP an example by `agvas train --dry-run`'s count, {found['trained'] / 1e6:,.0f} M parameters trained\n",
        "| micro-batch | examples/s | share of rate | peak, GB | 20k steps of 80, days |\n|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        if "error" in row:
            lines.append(f"| {row['micro_batch']} | {row['error']} | | | |")
        else:
            lines.append(
                f"| {row['micro_batch']} | {row['examples_per_s']:.2f} | {row['share']:.0%} | {_gb(row)} | {row['days']:.1f} |"
            )
    return lines


def tests(folder: Path) -> list[str]:
    """Of the files that pytest wrote."""
    lines = []
    for path in sorted(folder.glob("*.xml")):
        counted = re.search(r'errors="(\d+)" failures="(\d+)" skipped="(\d+)" tests="(\d+)"', path.read_text(encoding="utf-8"))
        errors, failures, skipped, count = map(int, counted.groups()) if counted else (1, 0, 0, 0)
        lines.append(f"| {path.stem} | {count} | {errors + failures} | {skipped} |")
    return ["| tests | run | failed | skipped |\n|---|---|---|---|", *lines] if lines else ["No test was run."]


def _gb(found: Found) -> str:
    return "-" if found.get("peak_gb") is None else f"{found['peak_gb']:.1f}"


def main() -> None:
    folder = Path(sys.argv[1])
    ratios = {path.stem.removeprefix("ratio-"): read(folder, path.stem) or {} for path in sorted(folder.glob("ratio-*.json"))}
    ratios = {name: found for name, found in ratios.items() if found}
    steps = {path.stem: found for path in sorted(folder.glob("train-*.json")) if (found := read(folder, path.stem))}
    first: Found = next(iter(ratios.values()), {})
    tiny = first.get("tiny", False)
    print(f"# Figures of {first.get('device', 'no device')}\n")
    if tiny:
        print("**At tiny size: what follows shows that every step runs, and no figure in it means anything.**\n")
    if first:
        print(
            f"torch {first['torch']}; a bfloat16 product of matrices reaches {first['matrix_tflops']:.0f} TFLOP/s. Random weights.\n"
        )
    rows = target_rows(ratios)
    print("| | target | measured | held |\n|---|---|---|---|")
    for what, target, measured, held in rows:
        print(f"| {what} | {target} | {measured} | {'' if held is None or tiny else 'yes' if held else '**no**'} |")
    print("\n## Every variant\n\n" + "\n".join(variants(ratios)))
    print(
        "\n## A training step\n" + ("\n".join(line for found in steps.values() for line in training(found)) or "\nNot measured.")
    )
    print("\n## Tests\n\n" + "\n".join(tests(folder)))
    log = folder / "steps.txt"
    print("\n## Steps\n\n```\n" + (log.read_text(encoding="utf-8") if log.is_file() else "") + "```")
    whole = {
        "targets": [dict(zip(("what", "target", "measured", "held"), row, strict=True)) for row in rows],
        "ratios": ratios,
        "training": steps,
    }
    (folder / "figures.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
