"""The 17 sets of the paper's mixture and its six test sets at small size, each in its published layout, filled by the generator.

Things of the general sets are coloured shapes on generated parts; anomalies are the generator's own.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat

from agvas_core.contract.prompts import ANCHORS
from agvas_core.data.synthetic.captions import describe, normal_look
from agvas_core.data.synthetic.sample import Sample
from agvas_core.data.synthetic.synthesis import SynthesisSpec, synthesize

__all__ = ["MVTEC_CATEGORIES", "make_test_sets", "make_training_sets"]

SIDE_PX = 96
SHAPES = {"disc": (220, 60, 40), "square": (40, 90, 220), "triangle": (50, 190, 70), "ring": (230, 190, 40)}
"""Name -> RGB."""
MVTEC_CATEGORIES = ("bottle", "screw", "tile")
_SPEC = SynthesisSpec(large_fraction=0.9, several_fraction=0.2, repeated_fraction=0.0, max_defects=2)
_GOOD, _BAD = _SPEC.model_copy(update={"normal_fraction": 1.0}), _SPEC.model_copy(update={"normal_fraction": 0.0})

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]


class _Painter:
    """Draws one picture after the other; none comes twice."""

    def __init__(self, seed: int) -> None:
        self.seed, self.drawn = seed, 0
        self.rng = np.random.default_rng(seed)

    def part(self, bad: bool) -> Sample:
        self.drawn += 1
        return synthesize(self.seed, self.drawn, (SIDE_PX, SIDE_PX), _BAD if bad else _GOOD)

    def scene(self) -> tuple[Rgb, dict[str, Mask]]:
        """Two shapes on a good part, and the masks of both by name."""
        image, masks = self.part(bad=False).image.copy(), dict[str, Mask]()
        left, right = self.rng.permutation(list(SHAPES))[:2]
        for name, column in ((str(left), 0.28), (str(right), 0.72)):
            mask = np.zeros(image.shape[:2], np.uint8)
            radius = int(self.rng.integers(SIDE_PX // 8, SIDE_PX // 5))
            x, y = round(column * SIDE_PX), int(self.rng.integers(radius, SIDE_PX - radius))
            if name == "disc":
                cv2.circle(mask, (x, y), radius, 1, -1)
            elif name == "ring":
                cv2.circle(mask, (x, y), radius, 1, max(2, radius // 3))
            elif name == "square":
                cv2.rectangle(mask, (x - radius, y - radius), (x + radius, y + radius), 1, -1)
            else:
                corners = np.array([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)])
                cv2.fillPoly(mask, [corners], 1)
            image[mask > 0] = SHAPES[name]
            masks[name] = mask > 0
        return image, masks


def write(path: Path, pixels: NDArray[Any]) -> Path:
    """A picture: RGB, grey, or a mask, as its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    target = path.with_suffix(".jpg") if path.suffix == ".JPEG" else path
    assert cv2.imwrite(str(target), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    target.rename(path)
    return path


def text(path: Path, content: Any) -> None:
    """JSON, or text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


# General segmentation.


def _label_sets(root: Path, paint: _Painter, count: int) -> None:
    names = list(SHAPES)
    for number in range(1, count + 1):
        image, masks = paint.scene()
        labels = sum(
            (mask * np.uint8(1 + names.index(name)) for name, mask in masks.items()), np.zeros(image.shape[:2], np.uint8)
        )
        stem = f"ADE_train_{number:08d}"
        write(root / f"ade20k/images/training/{stem}.jpg", image)
        write(root / f"ade20k/annotations/training/{stem}.png", labels)
        image, masks = paint.scene()
        stuff = np.full(image.shape[:2], 255, np.uint8)
        for name, mask in masks.items():
            stuff[mask] = names.index(name)
        write(root / f"coco-stuff/images/train2017/{number:012d}.jpg", image)
        write(root / f"coco-stuff/annotations/train2017/{number:012d}.png", stuff)
    rows = [f"{number}\t0.1\t10\t1\t{name}" for number, name in enumerate(names, 1)]
    text(root / "ade20k/objectInfo150.txt", "\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows, ""]))
    text(root / "coco-stuff/labels.txt", "\n".join(f"{number}: {name}" for number, name in enumerate(names, 1)) + "\n")


def _polygons(mask: Mask) -> list[list[int]]:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [outline.flatten().tolist() for outline in outlines]


def _coco(paint: _Painter, count: int, file_name: str, folder: Path, categories: dict[str, str]) -> dict[str, Any]:
    """Tables of ``count`` scenes; ``categories``: shape -> what the set calls it."""
    tables: dict[str, Any] = {"images": [], "annotations": []}
    tables["categories"] = [{"id": number, "name": name} for number, name in enumerate(categories.values())]
    for number in range(count):
        image, masks = paint.scene()
        name = file_name.format(number)
        write(folder / name, image)
        tables["images"].append({"id": number, "file_name": name, "height": SIDE_PX, "width": SIDE_PX})
        for shape, mask in masks.items():
            identity = len(tables["annotations"])
            kind = list(categories).index(shape)
            row = {"id": identity, "image_id": number, "category_id": kind, "segmentation": _polygons(mask)}
            tables["annotations"].append(row)
    return tables


def _coco_sets(root: Path, paint: _Painter, count: int) -> None:
    parts = {shape: f"sign:{shape}" for shape in SHAPES}
    tables = _coco(paint, count, "train2017/{:012d}.jpg", root / "paco", parts)
    text(root / "paco/annotations/paco_lvis_v1_train.json", tables)
    parts = {shape: f"Sign {shape}" for shape in SHAPES}
    tables = _coco(paint, count, "n01440764_{}.JPEG", root / "partimagenet/images/train", parts)
    text(root / "partimagenet/annotations/train/train.json", tables)
    parts = {shape: f"sign:{shape}" for shape in SHAPES}
    tables = _coco(paint, count, "2008_{:06d}.jpg", root / "pascal-part/VOCdevkit/VOC2010/JPEGImages", parts)
    text(root / "pascal-part/train.json", tables)


def _referring_sets(root: Path, paint: _Painter, count: int) -> None:
    for dataset, by in (("refclef", "unc"), ("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        folder = "images/saiapr_tc-12" if dataset == "refclef" else "images/mscoco/images/train2014"
        own = root / f"refer-{dataset.replace('+', '-plus')}"
        tables = _coco(paint, count, "COCO_train2014_{:012d}.jpg", own / folder, {shape: shape for shape in SHAPES})
        refs = []
        for row in tables["annotations"]:
            side = "left" if row["id"] % 2 == 0 else "right"  # the first of each scene lies left
            name = tables["categories"][row["category_id"]]["name"]
            said = [{"sent": f"{side} {name}", "sent_id": 2 * row["id"]}, {"sent": f"the {name}", "sent_id": 2 * row["id"] + 1}]
            key = {"ref_id": row["id"], "ann_id": row["id"], "image_id": row["image_id"], "category_id": row["category_id"]}
            refs.append({**key, "split": "train", "sentences": said})
        text(own / dataset / "instances.json", tables)
        text(own / dataset / f"refs({by}).json", refs)


# Anomalies.


def _mvtec(root: Path, category: str, paint: _Painter, count: int) -> list[tuple[Path, Path, Sample]]:
    """Half of ``count`` good images; the anomalous ones with their masks."""
    found = []
    for number in range(count // 2):
        write(root / category / f"train/good/{number:03d}.png", paint.part(bad=False).image)
        sample = paint.part(bad=True)
        image = write(root / category / f"test/flaw/{number:03d}.png", sample.image)
        mask = write(root / category / f"ground_truth/flaw/{number:03d}_mask.png", sample.mask)
        found.append((image, mask, sample))
    return found


def _real_iad(root: Path, paint: _Painter, count: int) -> list[tuple[Path, Path, Sample]]:
    rows: list[dict[str, Any]] = []
    found = []
    folder = root / "realiad_1024/audiojack"
    for number in range(count // 2):
        name = f"OK/S{number:04d}/audiojack_{number:04d}_OK_C1.jpg"
        write(folder / name, paint.part(bad=False).image)
        rows.append({"category": "audiojack", "anomaly_class": "OK", "image_path": name, "mask_path": None})
        sample, stem = paint.part(bad=True), f"NG/HS/S{count + number:04d}/audiojack_{number:04d}_NG_C1"
        paths = write(folder / f"{stem}.jpg", sample.image), write(folder / f"{stem}.png", sample.mask)
        rows.append({"category": "audiojack", "anomaly_class": "HS", "image_path": f"{stem}.jpg", "mask_path": f"{stem}.png"})
        found.append((*paths, sample))
    table = {"meta": {"normal_class": "OK", "prefix": "audiojack/"}, "train": rows, "test": []}
    text(root / "realiad_jsons/realiad_jsons/audiojack.json", table)
    return found


def _other_anomalies(root: Path, paint: _Painter, count: int) -> None:
    (root / "road/groundTruth").mkdir(parents=True, exist_ok=True)
    (root / "gc10/masks").mkdir(parents=True, exist_ok=True)
    normal, defect = [], []
    for number in range(1, count + 1):
        sample = paint.part(bad=True)
        write(root / f"road/image/{number:03d}.jpg", sample.image)
        truth = {"Segmentation": np.where(sample.mask, 2, 1).astype(np.uint16), "Boundaries": sample.mask.astype(np.uint8)}
        savemat(root / f"road/groundTruth/{number:03d}.mat", {"groundTruth": truth})
        sample = paint.part(bad=True)
        write(root / f"gc10/{1 + number % 10}/img_{number:02d}.jpg", sample.image)
        write(root / f"gc10/masks/img_{number:02d}.png", sample.mask)
        bad = number % 2 == 0
        sample = paint.part(bad)
        write(root / f"zju-leaper/Images/{number:06d}.jpg", sample.image)
        if bad:
            write(root / f"zju-leaper/Annotations/masks/{number:06d}.png", sample.mask)
        (defect if bad else normal).append(f"{number:06d}")
    halves = {"normal": {"train": normal, "test": []}, "defect": {"train": defect, "test": []}}
    text(root / "zju-leaper/ImageSets/Patterns/pattern1.json", halves)


def _instruct(root: Path, samples: Iterator[tuple[str, Path, Path, Path, Sample]]) -> None:
    """``samples``: name and folder of a set, an image of it, its mask, and what it shows."""
    lines = []
    for dataset, folder, image, mask, sample in samples:
        what = describe(sample.defects)
        row = {
            "dataset": dataset,
            "root": f"../{folder.name}",
            "image": image.relative_to(folder).as_posix(),
            "mask": mask.relative_to(folder).as_posix(),
            "category": "part",
            "kind": sample.defects[0].kind if sample.defects else "flaw",
            "expectation": normal_look(sample),
            "observation": f"There is {what}.",
            "diagnosis": "It does not belong there.",
            "summary": f"The anomaly is {what}, as indicated by {ANCHORS}.",
            "explanation": f"A good part has an even surface; here it is broken by {what}.",
        }
        lines.append(json.dumps(row | {"model": "generator", "endpoint": "none", "prompt": "0" * 64}))
    text(root / "instruct/instruct.jsonl", "\n".join(lines) + "\n")


def _conversations(root: Path, paint: _Painter, count: int) -> None:
    for path, folder in (("llava/llava_instruct_150k.json", "train2017"), ("webad/webad_processed.json", "images")):
        rows = []
        for number in range(count):
            image, masks = paint.scene()
            name = f"{number:012d}.jpg"
            write(root / Path(path).parent / folder / name, image)
            asked = "<image>\nWhat is in this image?"
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": f"A {' and a '.join(masks)}."}]
            rows.append({"id": str(number), "image": name, "conversations": turns})
        text(root / path, rows)


def make_training_sets(root: Path, seed: int, count: int) -> Path:
    """The 17 sets of table 5, and GoodsAD, which the instruct texts are also about; ``count`` images of each, 2 at least."""
    paint = _Painter(seed)
    _label_sets(root, paint, count)
    _coco_sets(root, paint, count)
    _referring_sets(root, paint, count)
    goods = _mvtec(root / "goodsad", "drink_bottle", paint, count)
    textures = _mvtec(root / "dtd-synthetic", "Woven_001", paint, count)
    _mvtec(root / "miad", "photovoltaic_module", paint, count)
    parts = _real_iad(root / "real-iad", paint, count)
    _other_anomalies(root, paint, count)
    described = (("goodsad", goods), ("dtd-synthetic", textures), ("real-iad", parts))
    _instruct(root, ((name, root / name, *one) for name, found in described for one in found))
    _conversations(root, paint, count)
    return root


def make_test_sets(root: Path, seed: int, count: int) -> Path:
    """The paper's six, as lists of the authors; MVTec-AD in three categories. Up to ``count`` anomalous images of each category, and half as
    many good ones where the paper has some."""
    paint = _Painter(seed)
    good = {"mvtec": max(1, count // 2), "KSDD2": count, "RSDD": count}
    categories = {"mvtec": MVTEC_CATEGORIES, "KSDD2": ("Metal",), "RSDD": ("Metal15",), "ISIC": ("skin",)}
    for name, listed in (categories | {"ColonDB": ("colon",), "ClinicDB": ("colon",)}).items():
        table: dict[str, list[dict[str, Any]]] = {}
        for category in listed:
            table[category] = list(_entries(root, name, category, good.get(name, 0), count, paint.part))
        text(root / f"meta_{name}.json", {"train": {}, "test": table})
    return root


def _entries(
    root: Path, name: str, category: str, good: int, bad: int, part: Callable[[bool], Sample]
) -> Iterator[dict[str, Any]]:
    for number in range(good + bad):
        anomalous = number >= good
        sample = part(anomalous)
        folder, stem = f"{name}/{category}/test/{'flaw' if anomalous else 'good'}", f"{name}_{category}_{number:04d}"
        write(root / folder / f"{stem}.png", sample.image)
        mask = f"{name}/{category}/ground_truth/flaw/{stem}.png" if anomalous else ""
        if mask:
            write(root / mask, sample.mask)
        yield {
            "img_path": f"{folder}/{stem}.png",
            "mask_path": mask,
            "cls_name": category,
            "specie_name": "flaw" if anomalous else "good",
            "anomaly": int(anomalous),
        }
