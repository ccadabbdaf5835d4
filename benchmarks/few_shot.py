"""Few-shot adaptation, measured: from one set some images are reviewed parts to train on, all others test, before and after.

    python benchmarks/few_shot.py ../shared/data/magtile --shots 20 --out runs/few-shot

A test of the review loop, not of the shipped nano, which stays zero-shot. Parts never lie on both sides: images whose names agree in
``--group`` (a regular expression with one group) are one part. Writes the folder of reviewed parts, the adapted checkpoints, and a table.
"""

import argparse
import json
import random
import re
import shutil
import time
from collections import defaultdict
from pathlib import Path

import torch

from agvas_core.contract.review_folder import IMAGES, MASKS, ReviewLine, add_line
from agvas_core.data.datasets.item import DataSet, Item, examine
from agvas_core.data.datasets.layouts import find_test_sets, limited
from agvas_core.evaluation.checkpoint import open_predictor
from agvas_core.train.cli import train
from agvas_core.train.validation import validate

METRICS = ("ap", "f1_max", "iou_ano", "iou_nor", "image_auroc")


def split(items: list[Item], shots: int, seed: int, group: str | None) -> tuple[list[Item], list[Item]]:
    """``shots`` images with a defect, evenly over its kinds, as many good ones, and the rest, with no part in both."""

    def part(item: Item) -> str:
        found = re.search(group, item.name) if group else None
        return found.group(1) if found else item.name

    chance = random.Random(seed)
    kinds: dict[str, list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda each: each.name):
        kinds[item.specie].append(item)
    for listed in kinds.values():
        chance.shuffle(listed)
    chosen = [item for item in kinds.pop("good", [])[:shots]]
    for number in range(shots):
        kind = sorted(kinds)[number % len(kinds)]
        if kinds[kind]:
            chosen.append(kinds[kind].pop())
    parts = {part(item) for item in chosen}
    names = {item.name for item in chosen}
    return chosen, [item for item in items if item.name not in names and part(item) not in parts]


def write_review(folder: Path, items: list[Item]) -> None:
    """As a review on the line leaves it."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / IMAGES).mkdir(parents=True)
    (folder / MASKS).mkdir()
    for number, item in enumerate(items):
        image = f"{IMAGES}/{number:04d}{item.image_path.suffix}"
        shutil.copy(item.image_path, folder / image)
        mask = None
        if item.mask_path is not None and item.anomalous:
            mask = f"{MASKS}/{number:04d}{item.mask_path.suffix}"
            shutil.copy(item.mask_path, folder / mask)
        add_line(folder, ReviewLine(image=image, mask=mask, good=not item.anomalous, kind=item.specie if item.anomalous else ""))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--shots", type=int, default=20, help="images with a defect to train on, and as many good ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--group", help=r"names of one part agree in this, for example '(kos\d+)_'")
    parser.add_argument("--limit", type=int, help="at most so many test images of each kind")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--presets", nargs="+", default=["nano-decoder", "nano-lora"])
    parser.add_argument("--out", type=Path, default=Path("runs/few-shot"))
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = find_test_sets(options.data)[0]
    chosen, rest = split([item for item in found.items if examine(item) is None], options.shots, options.seed, options.group)
    write_review(options.out / "reviewed", chosen)
    test = DataSet(found.name, found.layout, found.root, tuple(rest))
    test = test if options.limit is None else limited(test, options.limit, options.seed)
    good = sum(not item.anomalous for item in test.items)
    lines = [
        f"{found.name}: trained on {sum(item.anomalous for item in chosen)} defective and {sum(not item.anomalous for item in chosen)} good "
        f"images, tested on {len(test.items) - good} and {good} others; seed {options.seed}, in %",
        "",
        f"| model | {' | '.join(METRICS)} | training, s |",
        f"|---|{'---:|' * (len(METRICS) + 1)}",
    ]
    for preset in [None, *options.presets]:
        seconds = None
        folder: str | Path = "nano"
        if preset is not None:
            folder = options.out / preset
            shutil.rmtree(folder, ignore_errors=True)
            began = time.monotonic()
            train(preset=preset, sets=options.out / "reviewed", out=folder, steps=options.steps)
            seconds = time.monotonic() - began
        figures = validate(open_predictor(folder), [test], options.out)
        cells = ["-" if (value := figures[name]) is None else f"{100 * value:.1f}" for name in METRICS]
        lines.append(f"| {preset or 'nano, as shipped'} | {' | '.join(cells)} | {'-' if seconds is None else round(seconds)} |")
        print(lines[-1], flush=True)
    (options.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (options.out / "split.json").write_text(
        json.dumps({"train": [item.name for item in chosen], "test": [item.name for item in test.items]}, indent=1),
        encoding="utf-8",
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
