"""What the prior, the net and the generator's scenes each give: short trainings that differ in one thing, and the prior untrained.

    python benchmarks/ablate_nano.py --data ../shared/data --images 3000 --limit 20 --out runs/ablation

Each variant is trained from scratch with the nano preset and the direct instruction alone, exported, and scored by ``agvas eval`` on the
same photographs, one view at scale 1. A variant that is there already is not trained again. Prints a Markdown table of AP in percent.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from agvas_core.contract.preprocess import back_to_frame, make_view
from agvas_core.data.datasets.layouts import find_test_sets, limited
from agvas_core.model.config import load_preset, parse_config
from agvas_core.model.encoders.encoders import Normalize
from agvas_core.model.encoders.prior import ImagePrior

VARIANTS = {
    "net and prior": "",
    "net without prior": "[model.pixel.arguments]\nprior_dim = 0\n",
    "net and prior, textures only": "[train.scenes]\ntexture = 1.0\n",
    "net and prior, few large defects": "[train]\nlarge_fraction = 0.05\n",
}
PLAIN = """extends = "nano"

[model]
scales = [1.0]

[train]
fresh = []
learning_rate = 2.0e-3
rates = {{ semantic_encoder = 0.25, linear_p = 0.25, spam = 0.25, lmm = 0.3, refiner = 0.3, agmd = 0.3 }}
images = {images}

[train.tasks]
describe = 0
describe-plus = 0
explain = 0
referring = 0
absent = 0
refuse = 0

[train.calibration]
images = 24
"""


def run(*command: object) -> None:
    """One of the project's commands, beside this Python."""
    subprocess.run([Path(sys.executable).with_name(str(command[0])), *map(str, command[1:])], check=True)


def trained(name: str, difference: str, images: int, out: Path) -> Path:
    """The bundle of a variant."""
    folder = out / name.replace(",", "").replace(" ", "-")
    if not (folder / "bundle").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        plain, changed = folder / "plain.toml", folder / "variant.toml"
        plain.write_text(PLAIN.format(images=images), encoding="utf-8")
        changed.write_text(f'extends = "plain.toml"\n{difference}', encoding="utf-8")
        run("agvas", "train", "--preset", changed, "--out", folder / "run", "--threads", "1", "--resume")
        run("agvas-export", "bundle", folder / "run", "-o", folder / "bundle")
    return folder / "bundle"


@torch.no_grad()
def prior_maps(data: Path, limit: int, out: Path) -> Path:
    """Score maps of the prior alone: the mean of its distances that need no training (all channels but the z-scores and the border)."""
    folder, view = out / "prior-maps", parse_config(load_preset("nano")["model"]).pixel_view
    normalize, prior = Normalize(view.mean, view.std), ImagePrior()
    for one in find_test_sets(data):
        for item in limited(one, limit, 0).items:
            image = cv2.cvtColor(cv2.imread(str(item.image_path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            shown = make_view(view, image)
            channels = prior(normalize(torch.from_numpy(shown.pixels)[None]))[0, prior.features : -1]  # [5, h, w]
            distance = channels.mean(0).numpy()
            path = folder / one.name / Path(item.name).with_suffix(".npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, 1 - np.exp(-back_to_frame(distance, shown, image.shape[:2])).astype(np.float32))
    return folder


def main() -> None:
    """Parses the arguments, runs what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    given = parser.parse_args()
    sources: dict[str, tuple[object, ...]] = {"prior alone": ("--predictions", prior_maps(given.data, given.limit, given.out))}
    for name, difference in VARIANTS.items():
        sources[name] = ("--model", trained(name, difference, given.images, given.out))
    rows = {}
    for name, source in sources.items():
        result = given.out / f"eval-{name.replace(',', '').replace(' ', '-')}"
        run("agvas", "eval", *source, "--data", given.data, "--limit", given.limit, "--out", result, "--quiet")
        rows[name] = json.loads((result / "result.json").read_text(encoding="utf-8"))
    names = [one["set"] for one in next(iter(rows.values()))["sets"]]
    print("| | mean | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 2) + "|")
    for name, result in rows.items():
        values = [result["mean_of_sets"]["ap"], *(one["mean"]["ap"] for one in result["sets"])]
        print(f"| {name} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |")


if __name__ == "__main__":
    main()
