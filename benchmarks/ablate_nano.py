"""What each choice of nano gives: short trainings that differ in one thing, over several seeds.

    python benchmarks/ablate_nano.py --data ../shared/data --images 4000 --seeds 3 --limit 15 --out runs/ablation

Each variant is trained with the nano preset and the direct instruction alone, then judged on generated images of the textures that no
training shows, which decide, and on photographs, which are reported. A training that is there already is not repeated, one that was stopped
goes on. Prints a Markdown table of pixel AP and image AUROC in percent, mean and spread over seeds.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

VARIANTS = {
    "as shipped": "",
    "trunk not pretrained": "[model.pixel.arguments]\npretrained = false\n",
    "without prior": "[model.pixel.arguments]\nprior = false\n",
    "neither": "[model.pixel.arguments]\npretrained = false\nprior = false\n",
    "two layers of attention at stride 16": "[model.pixel.arguments]\nattention = 2\n",
    "positions of SPAM in one block": "[model.spam]\ninterleaved = false\n",
    "textures only": "[train.scenes]\ntexture = 1.0\n",
    "few large defects": "[train]\nlarge_fraction = 0.05\n",
}
PLAIN = """extends = "nano"

[train]
seed = {seed}
images = {images}
phases = [ {{ share = 1.0, batch = 16, frozen = {frozen}, tasks = {{}}, cuts = [
  {{ weight = 0.4, canvas = [256, 256], size = [256, 256], how = "crop" }},
  {{ weight = 0.4, canvas = [320, 320], size = [256, 256], how = "resize" }},
  {{ weight = 0.2, canvas = [448, 448], size = [256, 256], how = "resize" }},
] }} ]

[train.calibration]
images = 24
"""


def run(*command: object) -> None:
    """One of the project's commands, beside this Python."""
    subprocess.run([Path(sys.executable).with_name(str(command[0])), *map(str, command[1:])], check=True)


def trained(name: str, seed: int, images: int, out: Path) -> Path:
    """The checkpoint of a variant and seed."""
    folder = out / f"{name.replace(' ', '-')}-{seed}"
    if not (folder / "finished").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        plain, changed = folder / "plain.toml", folder / "variant.toml"
        frozen = "[]" if "pretrained = false" in VARIANTS[name] else '["pixel_encoder.backbone.trunk"]'
        plain.write_text(PLAIN.format(images=images, seed=seed, frozen=frozen), encoding="utf-8")
        changed.write_text(f'extends = "plain.toml"\n{VARIANTS[name]}', encoding="utf-8")
        run("agvas", "train", "--preset", changed, "--out", folder / "run", "--threads", "1", "--resume")
        (folder / "finished").touch()
    return folder / "run"


def judged(checkpoint: Path, data: Path, limit: int, out: Path) -> tuple[float, float]:
    """Pixel AP and image AUROC in percent, means over sets."""
    if not (out / "result.json").is_file():
        options = ("--predictor", "checkpoint", "--model", checkpoint, "--data", data, "--limit", limit, "--out", out)
        run("agvas", "eval", *options, "--quiet")
    mean = json.loads((out / "result.json").read_text(encoding="utf-8"))["mean_of_sets"]
    return 100 * mean["ap"], 100 * mean["image_auroc"]


def spread(values: list[float]) -> str:
    """Mean, and standard deviation where there are several."""
    mean = statistics.fmean(values)
    return f"{mean:.1f} ±{statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"


def main() -> None:
    """Parses the arguments, runs what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=4000, help="of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=15, help="photographs of each kind")
    parser.add_argument("--generated", type=int, default=180, help="images of unseen textures")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    given = parser.parse_args()
    unseen = given.out / f"unseen-{given.generated}"
    if not unseen.is_dir():
        given.out.mkdir(parents=True, exist_ok=True)
        size = ("--size", "352x352", "--seed", 90210)
        run(
            "agvas",
            "synth",
            unseen,
            "--count",
            given.generated,
            "--families",
            "held-out",
            "--normal-fraction",
            0.5,
            *size,
            "--quiet",
        )
    print("| | generated: AP | image AUROC | photographs: AP | image AUROC |\n|---|---|---|---|---|", flush=True)
    for name in given.variants:
        columns: list[list[float]] = [[], [], [], []]
        for seed in range(given.seeds):
            checkpoint = trained(name, seed, given.images, given.out)
            found = judged(checkpoint, unseen, given.generated, checkpoint.parent / f"unseen-{given.generated}")
            found += judged(checkpoint, given.data, given.limit, checkpoint.parent / f"photographs-{given.limit}")
            for column, value in zip(columns, found, strict=True):
                column.append(value)
        print(f"| {name} | {' | '.join(map(spread, columns))} |", flush=True)


if __name__ == "__main__":
    main()
