"""Does the zero-shot weight that painted defects choose for a product beat the fixed one?

    python benchmarks/fit_rules.py --out runs/fit-rules      # 12 generated products
    python benchmarks/fit_rules.py --data ../shared/data --set mpdd --out runs/mpdd
    python benchmarks/fit_rules.py --head --out runs/fit-head  # products with --head against those without
    python benchmarks/fit_rules.py --head --first 1 --shots 10 --tests 2 --out runs/fit-head-small

For each product some good images become references as in ``agvas fit``, defects are painted on the same
images, each compared with a memory bank that has nothing of it, and other images are the test. Generated
products are made by the painter of the painted defects, and nano was trained with it, so gains there are
the most that can be hoped for. Real sets are reported; nothing may be chosen by them.

Maps are kept in ``--out`` as one .npz per product, figures of heads as one .json, so a run that was stopped goes on, and several runs
(``--part 0/2``) share the work.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas import Segmenter, fit
from agvas.fitting.bank import colour_weight_of
from agvas.fitting.fit import MOST_FOLDS
from agvas.fitting.judging import Engine, open_engine
from agvas.fitting.operating_point import IMAGE_SHARE, map_scale
from agvas.fitting.pictures import thumbnail
from agvas.fitting.rules import LEAST_IMAGES, WEIGHTS, Evidence, average_precision, zero_shot_weight
from agvas_core.contract.decision import mean_of_highest
from agvas_core.contract.durable import write_whole
from agvas_core.contract.product import HeadTrial
from agvas_core.data.datasets.item import read_truth
from agvas_core.data.datasets.layouts import find_test_sets, limited
from agvas_core.data.synthetic.defects import KINDS
from agvas_core.data.synthetic.photographs import paint_defects
from agvas_core.data.synthetic.products import ProductKind, SyntheticProduct, Variation
from agvas_core.evaluation.few_shot import draw
from agvas_core.evaluation.metrics import auroc, caught
from agvas_core.files import read_rgb
from agvas_runtime.pipeline.references import Statistics, grids

Float = NDArray[np.float32]
Rgb = NDArray[np.uint8]

PIXELS: Final = 128
"""Side of the maps that are compared here."""
DEFECTS: Final = 4
PAINTED_PX: Final = 800

STILL, TURNS, SLIGHTLY = (
    Variation(),
    Variation(turn_deg=180.0, shift=0.03),
    Variation(turn_deg=15.0, shift=0.02),
)
COLOUR = Variation(turn_deg=2.0, shift=0.01, colour=0.2)
GENERATED: Final[tuple[tuple[str, int, ProductKind, Variation], ...]] = (
    ("object, still, 1", 101, "object", STILL),
    ("object, still, 2", 102, "object", Variation(light=0.06, grain=0.03)),
    ("object, turning, 1", 103, "object", TURNS),
    ("object, turning, 2", 104, "object", TURNS),
    ("object, turning a little", 105, "object", SLIGHTLY),
    ("object, colour varies, 1", 106, "object", COLOUR),
    ("object, colour varies, 2", 107, "object", Variation(turn_deg=180.0, shift=0.03, colour=0.2)),
    ("frame, 1", 108, "frame", Variation(turn_deg=0.3, shift=0.004)),
    ("frame, 2", 109, "frame", Variation(turn_deg=0.5, shift=0.01, grain=0.04, light=0.06)),
    ("frame, 3", 110, "frame", STILL),
    ("texture, 1", 111, "texture", STILL),
    ("texture, 2", 112, "texture", Variation(colour=0.1, light=0.05)),
)


@dataclass
class Images:
    """Of one product."""

    name: str
    references: list[Rgb]
    test: list[Rgb]
    truth: list[NDArray[np.bool_]]
    """Of the test images, [H, W]."""


def generated(index: int, references: int, tests: int) -> Images:
    """Generated product ``index``."""
    name, seed, kind, variation = GENERATED[index]
    product = SyntheticProduct(seed, kind, (448, 448), variation)
    good = [product.good(number) for number in range(references + tests)]
    bad = [product.bad(number) for number in range(tests)]
    test = [*good[references:], *bad]
    return Images(
        name,
        [each.image for each in good[:references]],
        [each.image for each in test],
        [each.labels > 0 for each in test],
    )


def real(data: Path, name: str | None, references: int, tests: int, seed: int) -> list[Images]:
    """The categories of sets on disk that have good images."""
    found = []
    for one in find_test_sets(data, only=name):
        for category in sorted({item.category for item in one.items}):
            split = draw(one, category, references, seed)
            test = limited(split.test, tests, seed).items
            if len(split.good) >= 4 and any(not item.anomalous for item in test):
                found.append(
                    Images(
                        f"{one.name} {category}, seed {seed}",
                        [read_rgb(item.image_path, item.name) for item in split.good],
                        [read_rgb(item.image_path, item.name) for item in test],
                        [read_truth(item) for item in test],
                    )
                )
    return found


def measure(engine: Engine, images: Images, painted_each: int, seed: int) -> dict[str, NDArray[np.generic]]:
    """Maps of references, painted references and tests, [N, 3, PIXELS, PIXELS], and their truth."""
    rng = np.random.default_rng(seed)
    frames = [engine.cells.prepare(image) for image in images.references]
    cells = []
    for frame in frames:
        embedding = engine.cells.embed(frame)
        cells.append(embedding.reshape(-1, embedding.shape[-1]))
    engine.colour_weight = colour_weight_of(cells, rng, colour=engine.colour)
    folds = min(len(frames), MOST_FOLDS)
    banks = [engine.bank([each for index, each in enumerate(cells) if index % folds != fold], rng) for fold in range(folds)]
    whole = engine.bank(cells, rng)

    def maps(image: Rgb, bank: Float) -> Float:
        zero_shot, frame = engine.look("image", image)
        found = grids(engine.compare(frame, bank), zero_shot)
        return np.stack([_small(found[kind]) for kind in ("joint", "deep", "zero_shot")])

    good = [maps(image, banks[index % folds]) for index, image in enumerate(images.references)]
    spoiled, labels, owners = [], [], []
    for index, image in enumerate(images.references):
        for _ in range(painted_each):
            kinds = list(KINDS)
            rng.shuffle(kinds)
            painted = paint_defects(rng, thumbnail(image, PAINTED_PX), DEFECTS, tuple(kinds))
            spoiled.append(maps(painted.image, banks[index % folds]))
            labels.append(_labels(painted.labels, len(painted.defects)))
            owners.append(index)
    test = [maps(image, whole) for image in images.test]
    truth = [_share(each) >= 0.5 if (_share(each) >= 0.5).any() else _share(each) > 0.1 for each in images.truth]
    return {
        "good": np.stack(good).astype(np.float16),
        "painted": np.stack(spoiled).astype(np.float16),
        "labels": np.stack(labels),
        "owners": np.array(owners),
        "test": np.stack(test).astype(np.float16),
        "truth": np.stack(truth),
        "bad": np.array([each.any() for each in images.truth]),
    }


def _small(grid: Float) -> Float:
    return np.asarray(cv2.resize(grid, (PIXELS, PIXELS), interpolation=cv2.INTER_AREA), np.float32)


def _share(mask: NDArray[np.bool_]) -> Float:
    return np.asarray(
        cv2.resize(mask.astype(np.float32), (PIXELS, PIXELS), interpolation=cv2.INTER_AREA),
        np.float32,
    )


def _labels(labels: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    small = np.zeros((PIXELS, PIXELS), np.uint8)
    for number in range(1, count + 1):
        share = _share(labels == number)
        small[share > min(0.2, 0.9 * float(share.max()))] = number
    return small


@dataclass
class Measured:
    """One product on the common scale of its good images."""

    evidence: list[Evidence]
    test: list[tuple[Float, Float, Float]]
    """Rarity of joint distance, deep distance and the model's own map, [PIXELS, PIXELS] each."""
    truth: NDArray[np.bool_]
    """[N, PIXELS, PIXELS]"""
    bad: NDArray[np.bool_]
    """[N]"""


def measured(stored: dict[str, NDArray[np.generic]]) -> Measured:
    """Of the maps that ``measure`` gave."""
    good, spoiled, test = (np.asarray(stored[name], np.float32) for name in ("good", "painted", "test"))
    owners, labels = np.asarray(stored["owners"]), np.asarray(stored["labels"]) > 0
    joint, deep, own = (map_scale(list(good[:, column])) for column in range(3))
    evidence = []
    for index, maps in enumerate(good):
        copies = np.flatnonzero(owners == index)
        all_maps = np.concatenate([maps[None], spoiled[copies]])
        truth = np.concatenate([np.zeros_like(labels[:1]), labels[copies]])
        evidence.append(Evidence(joint(all_maps[:, 0]).ravel(), own(all_maps[:, 2]).ravel(), truth.ravel()))
    rarities = [(joint(maps[0]), deep(maps[1]), own(maps[2])) for maps in test]
    return Measured(evidence, rarities, np.asarray(stored["truth"], bool), np.asarray(stored["bad"], bool))


def tested(found: Measured, weight: float) -> tuple[float, float, float]:
    """On the test images: AP of pixels, image AUROC, share of bad images caught at 5 % false rejects."""
    maps = [Statistics(joint + np.float32(weight) * own, deep + own).fused(IMAGE_SHARE) for joint, deep, own in found.test]
    scores = np.array([mean_of_highest(each, IMAGE_SHARE) for each in maps], np.float32)
    precision = average_precision(np.stack(maps).ravel(), found.truth.ravel())
    return precision, auroc(scores, found.bad) or 0.0, caught(scores, found.bad, 0.05) or 0.0


def with_head(images: Images, folder: Path, model: str, threads: int, seed: int) -> dict[str, object]:
    """What the trial of a head says, and AP / image AUROC / caught at 5 % by the test of the product without it and as it was written."""
    fitted = fit(images.references, folder / "head", model=model, head=True, threads=threads, seed=seed)
    trial = fitted.product.head_trial
    written = _tested_product(folder / "head", images, threads)
    without = written
    if trial is not None and trial.adopted:
        fit(images.references, folder / "none", model=model, threads=threads, seed=seed)
        without = _tested_product(folder / "none", images, threads)
    seconds = fitted.product.seconds.get("head", 0.0)
    told = None if trial is None else trial.model_dump()
    return {"name": images.name, "trial": told, "seconds": seconds, "without": without, "written": written}


def report_heads(found: Sequence[dict[str, Any]]) -> str:
    """A row for each product, and the means."""
    lines = [
        "| product | trial AP without, with (error) | trial AUROC | trained in | without a head | as written | |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in found:
        known, adopted = "- | -", "too few images that look alike"
        if each["trial"] is not None:
            trial = HeadTrial.model_validate(each["trial"])
            known = f"{trial.ap[0]:.3f}, {trial.ap[1]:.3f} ({trial.error:.3f}) | {trial.auroc[0]:.3f}, {trial.auroc[1]:.3f}"
            adopted = "with head" if trial.adopted else "left out"
        figures = f"{_figures(each['without'])} | {_figures(each['written'])}"
        lines.append(f"| {each['name']} | {known} | {each['seconds']:.0f} s | {figures} | {adopted} |")
    means = (_figures(np.mean([each[key] for each in found], axis=0)) for key in ("without", "written"))
    lines.append(f"| mean | | | | {' | '.join(means)} | |")
    return "\n".join(lines) + "\n"


def _tested_product(folder: Path, images: Images, threads: int) -> tuple[float, float, float]:
    segmenter = Segmenter.load(folder, threads=threads)
    results = [segmenter.predict([image])[0] for image in images.test]
    # An image that is refused as unlike the product counts as defective in all of its pixels.
    maps = [np.ones((PIXELS, PIXELS), np.float32) if each.score_map is None else _small(each.score_map) for each in results]
    scores = np.array([1.0 if each.score is None or each.score_map is None else each.score for each in results], np.float32)
    truth = [_share(each) >= 0.5 if (_share(each) >= 0.5).any() else _share(each) > 0.1 for each in images.truth]
    bad = np.array([each.any() for each in images.truth])
    precision = average_precision(np.stack(maps).ravel(), np.stack(truth).ravel())
    return precision, auroc(scores, bad) or 0.0, caught(scores, bad, 0.05) or 0.0


def report(found: dict[str, Measured]) -> str:
    """AP / image AUROC / caught at 5 %, of every weight and of the one that painted defects choose."""
    lines = [
        f"| product | {' | '.join(f'weight {weight:g}' for weight in WEIGHTS)} | chosen | |",
        f"|---|{'---|' * (len(WEIGHTS) + 2)}",
    ]
    rows, picked = [], []
    for name, each in found.items():
        chosen = zero_shot_weight(each.evidence)
        rows.append([tested(each, weight) for weight in WEIGHTS])
        picked.append(tested(each, chosen))
        lines.append(f"| {name} | {' | '.join(map(_figures, rows[-1]))} | {_figures(picked[-1])} | {chosen:g} |")
    means = np.mean(rows, axis=0)
    lines.append(f"| mean | {' | '.join(map(_figures, means))} | {_figures(np.mean(picked, axis=0))} | |")
    gains = np.array([ours[0] - row[WEIGHTS.index(1.0)][0] for ours, row in zip(picked, rows, strict=True)])
    if len(gains) > 1:
        error = gains.std(ddof=1) / len(gains) ** 0.5
        lines += [
            "",
            f"AP gained over weight 1: {gains.mean():.3f}, standard error {error:.3f}, least {gains.min():.3f}",
        ]
    return "\n".join(lines) + "\n"


def _figures(values: Sequence[float] | NDArray[np.float64]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--head", action="store_true", help="fit products with a head and without, in place of comparing weights")
    parser.add_argument("--data", type=Path, help="sets with good images; generated products without it")
    parser.add_argument("--set")
    parser.add_argument("--shots", type=int, default=12, help="good images to learn")
    parser.add_argument("--painted", type=int, default=1, help="painted copies of each")
    parser.add_argument("--tests", type=int, default=10, help="test images of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="0/1", help="K/N: only every Nth product, from K")
    parser.add_argument("--first", type=int, help="only so many products, from the first")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/fit-rules"))
    options = parser.parse_args()
    if options.head and options.shots < LEAST_IMAGES:
        parser.error(f"--shots is {options.shots}; a head needs {LEAST_IMAGES} good images or more")
    options.out.mkdir(parents=True, exist_ok=True)
    part, parts = (int(each) for each in options.part.split("/"))
    engine = None
    products: Sequence[Images | None] = [None] * len(GENERATED)
    if options.data is not None:
        products = real(options.data, options.set, options.shots, options.tests, options.seed)
    products = products[: options.first]
    found: dict[str, Measured] = {}
    heads: list[dict[str, Any]] = []
    for index, images in enumerate(products):
        name = GENERATED[index][0] if images is None else images.name
        path = options.out / f"{name.replace(' ', '-').replace(',', '').replace('/', '-')}.npz"
        if options.head:
            path = path.with_suffix(".json")
            if not path.is_file():
                if index % parts != part:
                    continue
                images = images or generated(index, options.shots, options.tests)
                row = with_head(images, path.with_suffix(""), options.model, options.threads, options.seed)
                write_whole(path, json.dumps(row))
                print(report_heads([row]), flush=True)
            heads.append(json.loads(path.read_text(encoding="utf-8")))
            continue
        if not path.is_file():
            if index % parts != part:
                continue
            began = time.monotonic()
            engine = engine or open_engine(options.model, None, options.threads)
            images = images or generated(index, options.shots, options.tests)
            stored = measure(engine, images, options.painted, options.seed)
            part_file = path.with_suffix(".part.npz")
            np.savez(part_file, allow_pickle=False, **stored)
            part_file.rename(path)
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
        with np.load(path, allow_pickle=False) as arrays:
            found[name] = measured(dict(arrays))
    if found or heads:
        text = report(found) if found else report_heads(heads)
        (options.out / "table.md").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
