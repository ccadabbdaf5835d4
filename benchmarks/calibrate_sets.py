"""Calibrates on half of a set's good parts, again and again at random, and counts rejects among the other half and escapes among the bad.

    python benchmarks/calibrate_sets.py --data ../shared/data --sets mpdd ksdd1 magtile --max-false-reject 0.1 --confidence 0.9

A promise of a share p with confidence c may be broken in a share 1 - c of all calibrations. The other half is finite, too, so what is
counted on it scatters around the share of all future parts, and lies above p more often than that: how often it must, where the halves are drawn
by chance, is a hypergeometric sum, which stands beside it (ties make it less). "Beyond chance" says how often the count lay above p
by more than a one-sided binomial test at 5 % explains. The last column takes the halves as the files are named, which is the nearest these sets
have to an order in time. Scores are kept in --cache, so that a run that was stopped goes on.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.durable import write_whole
from agvas_runtime.images.frame import Frame
from agvas_runtime.images.read import read_image
from agvas_runtime.line.calibration.calibration import Scores, allowed_rejects, binomial_at_most, calibrate
from agvas_runtime.line.recipe.file import RecipeVersion, parse_recipe
from agvas_runtime.line.recipe.rules import Judge
from agvas_runtime.line.recipe.thresholds import thresholds_of
from agvas_runtime.line.station.inspector import SegmenterInspector
from agvas_runtime.pipeline.options import SegmentOptions


def expected_above(half: int, rest: int, allowed: int, most: float) -> float:
    """How often more than a share ``most`` of ``rest`` lies above the threshold that ``allowed`` of ``half`` lie above, all in random order."""
    first = math.floor(most * rest + 1e-9) + 1  # the fewest rejects that are more than the share
    if first > rest:
        return 0.0
    top = allowed + first  # so it is where at most ``allowed`` of the highest so many are of the calibration
    return sum(math.comb(half, k) * math.comb(rest, top - k) for k in range(allowed + 1)) / math.comb(half + rest, top)


def scores_of(paths: list[Path], cache: Path, inspector: SegmenterInspector, version: RecipeVersion) -> NDArray[np.float64]:
    """Reject scores with the bundle's own least area, one for each picture."""
    known: dict[str, float] = json.loads(cache.read_text()) if cache.exists() else {}
    point = thresholds_of(version.recipe, inspector.bundle_of(version)).model_copy(
        update={"seed_threshold": math.nextafter(1.0, 0.0)}
    )
    for path in paths:
        if str(path) not in known:
            image = read_image(path)
            looked, _ = inspector.look(Frame(path.name, 0, image=image), version)
            known[str(path)] = Judge(version.recipe, point, *image.shape[:2]).judge(looked).reject_score
            write_whole(cache, json.dumps(known))
    return np.array([known[str(path)] for path in paths])


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", default=["mpdd", "ksdd1", "magtile"])
    parser.add_argument("--limit", type=int, default=10_000, help="good parts, and bad parts, of each set at most")
    parser.add_argument("--max-false-reject", type=float, default=0.1)
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--threads", type=int, default=None, help="all cores by default")
    parser.add_argument("--cache", type=Path, default=Path("runs/calibrate"))
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    version = parse_recipe(f"product: set\nmodel: {json.dumps(arguments.model)}\n", "the recipe")
    inspector = SegmenterInspector(SegmentOptions(threads=arguments.threads))
    inspector.prepare(version)
    bundle = inspector.bundle_of(version)
    point, rng = thresholds_of(version.recipe, bundle), np.random.default_rng(0)
    print(f"{bundle.identity}, at most {arguments.max_false_reject:g} with {arguments.confidence:g}, {arguments.draws} draws")
    print(
        "| set | good parts | bad parts | mean share rejected of the other half | calibrations with more than promised | as many must | "
        "beyond chance | escapes | halves by name |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.sets:
        folders = [folder for folder in sorted((arguments.data / name).glob("*/test/*")) if folder.is_dir()]
        pictures = {
            kind: [path for folder in folders if (folder.name == "good") == kind for path in sorted(folder.iterdir())]
            for kind in (True, False)
        }
        chosen = {
            kind: [paths[i] for i in sorted(rng.permutation(len(paths))[: arguments.limit])] for kind, paths in pictures.items()
        }
        cache = arguments.cache / f"{name}-{bundle.identity.replace('@', '-')}.json"
        good, bad = (scores_of(chosen[kind], cache, inspector, version) for kind in (True, False))
        shares, beyond, escapes = [], 0, []
        half, rest = len(good) // 2, len(good) - len(good) // 2
        in_order = ""
        for draw in range(arguments.draws + 1):
            order = rng.permutation(len(good)) if draw else np.arange(len(good))
            found = calibrate(
                Scores(good[order[:half], None]), [0.0], point,
                max_false_reject=arguments.max_false_reject, confidence=arguments.confidence,
            )  # fmt: skip
            if found.missing:
                raise SystemExit(f"{name}: {found.missing} good parts are missing for this promise: raise --max-false-reject")
            rejected = int((good[order[half:]] > found.seed_threshold).sum())
            if draw == 0:
                in_order = f"{rejected} of {rest}"
                continue
            shares.append(rejected / rest)
            beyond += 1 - binomial_at_most(rejected - 1, rest, arguments.max_false_reject) < 0.05
            escapes.append(float((bad <= found.seed_threshold).mean()) if len(bad) else math.nan)
        allowed = allowed_rejects(half, arguments.max_false_reject, arguments.confidence)
        assert allowed is not None
        must = expected_above(half, rest, allowed, arguments.max_false_reject)
        above = float(np.mean(np.array(shares) > arguments.max_false_reject))
        print(
            f"| {name} | {len(good)} | {len(bad)} | {np.mean(shares):.3f} | {above:.1%} | {must:.1%} | {beyond / arguments.draws:.1%} | "
            f"{np.mean(escapes):.1%} | {in_order} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
