"""Trains presets one after the other, scores each, and writes one table: the paper's ablations on data of one's own.

    python benchmarks/ablations.py --with data.toml --data test-sets --out runs/ablations ov-7b ablations/no-spam ablations/lisa

Without names: every preset under ``ablations/``. ``--seeds 3`` trains each three times, and the table has mean and standard deviation. What is
done already is not done again: a run that was stopped goes on, one that is finished is scored.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from agvas_core.contract.errors import UsageError
from agvas_core.model.preset import ablation_names, load_preset

AGVAS = [sys.executable, "-c", "from agvas.cli import main; main()"]
METRICS = {"ap": "AP", "f1_max": "F1-Max", "iou_ano": "IoU_ano", "iou_nor": "IoU_nor"}


def run(preset: str, seed: int | None, options: argparse.Namespace) -> dict[str, float | None]:
    """Trains and scores one preset with one seed, its own where None; its means over the sets."""
    name = preset.replace("/", "-").removesuffix(".toml")
    folder: Path = options.out / (name if seed is None else f"{name}-seed-{seed}")
    train = ["train", "--preset", preset, "--with", str(options.tables), "--out", str(folder)]
    train += [] if seed is None else ["--seed", str(seed)]
    resume = ["--resume"] if (folder / "state.safetensors").exists() else []
    launcher = options.launcher.split() if options.launcher else []
    subprocess.run([*(launcher or AGVAS), *train, *resume], check=True)
    score = [
        "eval",
        "--predictor",
        "checkpoint",
        "--model",
        str(folder),
        "--data",
        str(options.data),
        "--protocol",
        "paper",
        "--out",
        str(folder / "eval"),
        "-q",
    ]
    subprocess.run([*AGVAS, *score], check=True)
    means: dict[str, float | None] = json.loads((folder / "eval/result.json").read_text(encoding="utf-8"))["mean_of_sets"]
    return means


def cell(values: list[float | None]) -> str:
    """Of the runs of one preset, in percent: the value of one, mean and standard deviation of several."""
    percent = [100 * value for value in values if value is not None]
    if len(percent) < len(values):
        return "-"
    spread = f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else ""
    return f"{statistics.mean(percent):.1f}{spread}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", help="names or .toml files; all ablations by default")
    parser.add_argument("--with", dest="tables", type=Path, required=True, help="tables mixture and train for all of them")
    parser.add_argument("--data", type=Path, required=True, help="sets to score on, as agvas eval takes them")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="train each with seeds 0 to N - 1; without it once, with its own"
    )
    parser.add_argument("--launcher", help="what trains, for example 'torchrun --nproc-per-node 4 --no-python agvas'")
    options = parser.parse_args()
    presets = options.presets or ablation_names()
    for preset in presets:
        load_preset(preset)  # a wrong name is known before the first of them has trained for a day
    seeds = list(range(options.seeds)) if options.seeds > 1 else [None]
    lines = [f"| preset | {' | '.join(METRICS.values())} |", f"|---|{'---:|' * len(METRICS)}"]
    for preset in presets:
        runs = [run(preset, seed, options) for seed in seeds]
        cells = [cell([means[name] for means in runs]) for name in METRICS]
        lines.append(f"| {preset} | {' | '.join(cells)} |")
        (options.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"ablations: {error}")
