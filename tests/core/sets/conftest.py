"""Small folders in the published layouts of the training sets; ``make("ade20k")`` makes one that is whole."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.io import savemat

SHAPE = (24, 32)
SQUARE = (slice(4, 12), slice(6, 18))  # 96 px
PIXELS = 96
POLYGON = [6, 4, 18, 4, 18, 12, 6, 12]
TEXTS = {
    "expectation": "A good bottle has a smooth, closed rim.",
    "observation": "There is a chip on the left of the rim.",
    "diagnosis": "The rim is no longer closed, so it leaks.",
    "summary": "The anomaly is a chip on the left of the rim, as indicated by [NOR][ANO][SEG].",
    "explanation": "The rim should be closed; a piece of it has broken away.",
}


def square(value: int = 255, dtype: type = np.uint8) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype)
    mask[SQUARE] = value
    return mask


def picture(path: Path, pixels: np.ndarray | None = None, seed: int = 0) -> Path:
    """Writes ``pixels``, or a photograph of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.random.default_rng(seed).integers(0, 255, (*SHAPE, 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)
    return path


def text(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def ade20k(root: Path) -> None:
    labels = square(2)
    labels[0, :] = 1
    for split, name in (
        ("training", "ADE_train_00000001"),
        ("training", "ADE_train_00000002"),
        ("validation", "ADE_val_00000001"),
    ):
        picture(root / "images" / split / f"{name}.jpg")
        picture(root / "annotations" / split / f"{name}.png", labels)
    text(
        root / "objectInfo150.txt",
        "Idx\tRatio\tTrain\tVal\tName\n1\t0.15\t11664\t1172\twall\n2\t0.1\t6046\t612\tbuilding, edifice\n",
    )


def coco_stuff(root: Path) -> None:
    labels = np.full(SHAPE, 255, np.uint8)
    labels[SQUARE] = 0  # person: 1 in labels.txt
    labels[-1, :] = 105  # floor-marble, hyphenated
    picture(root / "images/train2017/000000000009.jpg")
    picture(root / "annotations/train2017/000000000009.png", labels)
    text(root / "labels.txt", "0: unlabeled\n1: person\n106: floor-marble\n")


def coco_tables(file_name: str, categories: dict[int, str], segmentation: Any = None) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": file_name, "height": SHAPE[0], "width": SHAPE[1]}],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
        "annotations": [
            {"id": 10 + number, "image_id": 7, "category_id": number, "segmentation": segmentation or [POLYGON]}
            for number in categories
        ],
    }


def paco(root: Path) -> None:
    tables = coco_tables("train2017/000000000009.jpg", {3: "trash_can", 4: "trash_can:lid_(top)"})
    text(root / "annotations/paco_lvis_v1_train.json", tables)
    picture(root / "train2017/000000000009.jpg")


def part_image_net(root: Path) -> None:
    text(root / "annotations/train/train.json", coco_tables("n01440764_1.JPEG", {0: "Quadruped Head"}))
    picture(root / "images/train/n01440764_1.jpg").rename(root / "images/train/n01440764_1.JPEG")


def pascal_part(root: Path) -> None:
    picture(root / "VOCdevkit/VOC2010/JPEGImages/2008_000003.jpg")
    picture(root / "VOCdevkit/VOC2010/JPEGImages/2008_000004.jpg")
    text(root / "VOCdevkit/VOC2010/ImageSets/Main/val.txt", "2008_000004\n")
    part = np.zeros((1, 1), [("part_name", "O"), ("mask", "O")])
    part[0, 0] = ("lfleg_1", square(1))
    thing = np.zeros((1, 1), [("class", "O"), ("class_ind", "O"), ("mask", "O"), ("parts", "O")])
    thing[0, 0] = ("dog", 12, square(1), part)
    bare = np.zeros((1, 1), thing.dtype)
    bare[0, 0] = ("tvmonitor", 20, square(1), np.zeros((1, 0), part.dtype))
    (root / "Annotations_Part").mkdir()
    for stem, things in (("2008_000003", thing), ("2008_000004", bare)):
        savemat(root / f"Annotations_Part/{stem}.mat", {"anno": {"imname": stem, "objects": things}})


def pascal_part_json(root: Path) -> None:
    text(root / "train.json", coco_tables("2008_000003.jpg", {1: "aeroplane:left_wing"}))
    picture(root / "VOCdevkit/VOC2010/JPEGImages/2008_000003.jpg")


def references() -> list[dict[str, Any]]:
    sentences = [{"sent": "Left  man", "sent_id": 1, "tokens": ["left", "man"]}, {"sent": "left man", "sent_id": 2}]
    row = {"ref_id": 5, "ann_id": 11, "image_id": 7, "category_id": 1, "split": "train", "sentences": sentences}
    return [row, {**row, "ref_id": 6, "split": "testA"}]


def refer(dataset: str, split_by: str, folder: str, segmentation: Any = None) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        picture(root / folder / "COCO_train2014_000000000009.jpg")
        text(root / dataset / "instances.json", coco_tables("COCO_train2014_000000000009.jpg", {1: "person"}, segmentation))
        (root / dataset / f"refs({split_by}).p").write_bytes(pickle.dumps(references(), protocol=0))

    return make


RUNS = {"size": list(SHAPE), "counts": [6 * 24 + 4, 8, *[16, 8] * 11, 24 * 32 - 17 * 24 - 12]}  # column by column


def mvtec_like(category: str, kind: str, suffix: str = "_mask") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for half in ("train", "test"):
            picture(root / category / half / "good/000.png", seed=1)
        picture(root / category / "test" / kind / "001.png", seed=2)
        picture(root / category / "ground_truth" / kind / f"001{suffix}.png", square())

    return make


def real_iad(root: Path) -> None:
    good = {"category": "audiojack", "anomaly_class": "OK", "image_path": "OK/S0001/a.jpg", "mask_path": None}
    bad = {"category": "audiojack", "anomaly_class": "HS", "image_path": "NG/HS/S0002/b.jpg", "mask_path": "NG/HS/S0002/b.png"}
    meta = {"normal_class": "OK", "prefix": "audiojack/"}
    text(root / "realiad_jsons/realiad_jsons/audiojack.json", {"meta": meta, "train": [good], "test": [bad]})
    text(root / "realiad_jsons/realiad_jsons_sv/audiojack.json", {"meta": meta, "train": [], "test": []})
    picture(root / "realiad_1024/audiojack/OK/S0001/a.jpg")
    picture(root / "realiad_1024/audiojack/NG/HS/S0002/b.jpg", seed=3)
    picture(root / "realiad_1024/audiojack/NG/HS/S0002/b.png", square())


def crack_forest(root: Path) -> None:
    picture(root / "image/001.jpg")
    (root / "groundTruth").mkdir()
    segmentation = np.where(square() > 0, 2, 1).astype(np.uint16)
    savemat(root / "groundTruth/001.mat", {"groundTruth": {"Segmentation": segmentation, "Boundaries": square(1)}})


def gc10(root: Path) -> None:
    for number in range(1, 11):
        picture(root / str(number) / f"img_{number:02d}.jpg", seed=number)
        box = "<bndbox><xmin>6</xmin><ymin>4</ymin><xmax>17</xmax><ymax>11</ymax></bndbox>"
        text(root / f"lable/img_{number:02d}.xml", f"<annotation><object><name>{number}_x</name>{box}</object></annotation>")
    for number in (1, 2):  # whose annotation is it?
        picture(root / str(number) / "img_99.jpg", seed=number)


def zju_leaper(root: Path) -> None:
    ids = {"normal": {"train": ["000001"], "test": []}, "defect": {"train": [2], "test": []}}
    text(root / "ImageSets/Patterns/pattern1.json", ids)
    picture(root / "Images/000001.jpg")
    picture(root / "Images/000002.jpg", seed=4)
    picture(root / "Annotations/masks/000002.png", square())


def conversations(image: str) -> list[dict[str, Any]]:
    turns = [
        ("human", "<image>\nWhat is this?"),
        ("gpt", "A bottle.\n\n- green\n- open"),
        ("human", "Is it [SEG] whole?"),
        ("gpt", "Yes."),
    ]
    rows = [{"from": who, "value": value} for who, value in turns]
    return [{"id": "1", "image": image, "conversations": rows}, {"id": "2", "conversations": rows}]


def llava(root: Path) -> None:
    text(root / "llava_instruct_150k.json", conversations("000000000009.jpg"))
    picture(root / "train2017/000000000009.jpg")


def web_ad(root: Path) -> None:
    text(root / "WebAD_train.json", conversations("bottle/1.jpg"))
    picture(root / "images/bottle/1.jpg")


FOLDERS: dict[str, Callable[[Path], None]] = {
    "ade20k": ade20k,
    "coco-stuff": coco_stuff,
    "paco-lvis": paco,
    "partimagenet": part_image_net,
    "pascal-part": pascal_part,
    "pascal-part-json": pascal_part_json,
    "refclef": refer("refclef", "unc", "images/saiapr_tc-12", [RUNS]),
    "refcoco": refer("refcoco", "unc", "images/mscoco/images/train2014"),
    "refcoco+": refer("refcoco+", "unc", "images/mscoco/images/train2014", RUNS),
    "refcocog": refer("refcocog", "umd", "images/mscoco/images/train2014"),
    "real-iad": real_iad,
    "dtd-synthetic": mvtec_like("Woven_001", "bad"),
    "goodsad": mvtec_like("drink_bottle", "cap_open", suffix=""),
    "road": crack_forest,
    "miad": mvtec_like("photovoltaic_module", "dirty"),
    "gc10": gc10,
    "zju-leaper": zju_leaper,
    "llava-150k": llava,
    "webad": web_ad,
    "mvtec": mvtec_like("bolt", "scratch"),
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """``make("gc10")`` -> its folder; ``make("gc10", folder)`` makes it there."""

    def folder(name: str, root: Path | None = None) -> Path:
        root = root or tmp_path / name
        root.mkdir(parents=True, exist_ok=True)
        FOLDERS[name](root)
        return root

    return folder


@pytest.fixture
def instruct_folder(tmp_path: Path) -> Path:
    """A folder as ``agvas data instruct`` leaves it: lines about the defective images of a set beside it."""
    FOLDERS["mvtec"](tmp_path / "parts")
    row = {
        "dataset": "parts", "root": "../parts", "image": "bolt/test/scratch/001.png", "mask": "bolt/ground_truth/scratch/001_mask.png",
        "category": "bolt", "kind": "scratch", **TEXTS, "model": "m", "endpoint": "localhost:1", "prompt": "0" * 64,
    }  # fmt: skip
    return text(tmp_path / "instruct/bolts.jsonl", json.dumps(row) + "\n").parent
