"""Each published layout, made on the spot, gives its records: the right words, masks, kinds and splits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from agvas_core.contract.errors import ImageError, UsageError
from agvas_core.data.datasets.catalog import ADAPTERS, find_training_sets, named_set, set_names
from agvas_core.data.datasets.general import pascal_words
from agvas_core.data.datasets.record import Family, Record

SHAPE = (24, 32)
SQUARE = 96
Make = Callable[..., Path]

# Set -> what each record says: split, category, anomalous, kind, {words: px} of its targets, px of its mask.
EXPECTED: dict[str, list[tuple[Any, ...]]] = {
    "ade20k": [(split, "", None, "", {"wall": 32, "building": SQUARE}, None) for split in ("train", "train", "val")],
    "coco-stuff": [("train", "", None, "", {"person": SQUARE}, None)],
    "paco-lvis": [
        ("train", "", None, "", {"trash can": SQUARE, "trash can lid": SQUARE, "the lid of the trash can": SQUARE}, None),
    ],
    "partimagenet": [("train", "", None, "", {"quadruped head": SQUARE, "the head of the quadruped": SQUARE}, None)],
    "pascal-part": [
        ("train", "", None, "", {"dog": SQUARE, "dog left front leg": SQUARE, "the left front leg of the dog": SQUARE}, None),
        ("val", "", None, "", {"monitor": SQUARE}, None),
    ],
    **{
        name: [(split, "person", None, "", {"left man": SQUARE}, None) for split in ("train", "testA")]
        for name in ("refclef", "refcoco", "refcoco+", "refcocog")
    },
    "real-iad": [("train", "audiojack", False, "", {}, None), ("test", "audiojack", True, "scratch", {}, SQUARE)],
    "dtd-synthetic": [
        ("train", "Woven_001", False, "", {}, None),
        ("test", "Woven_001", True, "", {}, SQUARE),
        ("test", "Woven_001", False, "", {}, None),
    ],
    "goodsad": [
        ("train", "drink_bottle", False, "", {}, None),
        ("test", "drink_bottle", True, "cap open", {}, SQUARE),
        ("test", "drink_bottle", False, "", {}, None),
    ],
    "road": [("train", "road", True, "crack", {}, SQUARE)],
    "miad": [
        ("train", "photovoltaic_module", False, "", {}, None),
        ("test", "photovoltaic_module", True, "dirty", {}, SQUARE),
        ("test", "photovoltaic_module", False, "", {}, None),
    ],
    "gc10": [
        ("train", "steel strip", True, kind, {}, SQUARE)
        for kind in (
            "punching hole", "weld line", "crescent gap", "water spot", "oil spot", "silk spot", "inclusion", "rolled pit", "crease",
            "waist folding",
        )
    ],
    "zju-leaper": [("train", "pattern1", False, "", {}, None), ("train", "pattern1", True, "", {}, SQUARE)],
    "llava-150k": [("train", "", None, "", {}, None)],
    "webad": [("train", "", None, "", {}, None)],
    "mvtec": [
        ("train", "bolt", False, "", {}, None),
        ("test", "bolt", False, "", {}, None),
        ("test", "bolt", True, "scratch", {}, SQUARE),
    ],
}  # fmt: skip


def told(record: Record) -> tuple[Any, ...]:
    words = {name: int(target.mask.read(SHAPE).sum()) for target in record.all_targets(SHAPE) for name in target.names}
    mask = None if record.mask is None else int(record.mask.read(SHAPE).sum())
    return record.split, record.category, record.anomalous, record.kind, words, mask


def the_records(root: Path, name: str) -> list[Record]:
    found = find_training_sets(root)
    assert [one.adapter.name for one in found] == [name]
    return list(found[0].records())


@pytest.mark.parametrize("name", list(EXPECTED))
def test_a_published_layout_gives_its_records(name: str, make: Make) -> None:
    records = the_records(make(name), name)
    assert [told(record) for record in records] == EXPECTED[name]
    assert all(record.image.is_file() and record.dataset == name for record in records)
    assert len({record.name for record in records}) == len(records)


def test_every_adapter_is_tested() -> None:
    assert {adapter.name for adapter in ADAPTERS} == {
        *EXPECTED,
        "instruct",
        "review",
        "list",  # and this one, with the lists of other sets: test_contamination.py
    }  # these two: ../instruct, ../fit/test_review_loop.py


@pytest.mark.parametrize("name", ["llava-150k", "webad"])
def test_conversations_keep_their_lines_and_lose_what_would_be_read_as_control(name: str, make: Make) -> None:
    (record,) = the_records(make(name), name)  # the second entry has no image
    assert record.family is Family.CONVERSATION
    assert [(turn.instruction, turn.answer) for turn in record.turns] == [
        ("What is this?", "A bottle.\n\n- green\n- open"),
        ("Is it whole?", "Yes."),
    ]


def test_instruct_lines_carry_their_five_texts(instruct_folder: Path) -> None:
    (record,) = the_records(instruct_folder, "instruct")
    assert told(record)[1:] == ("bolt", True, "scratch", {}, SQUARE)
    assert record.texts is not None and record.texts.observation.startswith("There is a chip")
    path = instruct_folder / "bolts.jsonl"
    path.write_text(path.read_text().replace("[NOR][ANO][SEG]", "[SEG]"))
    with pytest.raises(UsageError, match="summary"):
        the_records(instruct_folder, "instruct")


def test_the_order_of_folders_that_lisa_wants_is_found_whole(make: Make, tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    make("ade20k", root / "ade20k")
    make("paco-lvis", root / "vlpart/paco")
    (root / "coco").mkdir()
    (root / "vlpart/paco/train2017").rename(root / "coco/train2017")
    make("refcoco", root / "refer_seg")
    make("refcoco+", root / "refer_seg")
    make("llava-150k", root / "llava_dataset")
    (root / "llava_dataset/train2017/000000000009.jpg").unlink()
    (root / "llava_dataset/train2017").rmdir()
    make("coco-stuff", root / "cocostuff")
    (root / "cocostuff/images/train2017/000000000009.jpg").unlink()
    (root / "cocostuff/annotations/train2017").rename(root / "cocostuff/train2017")
    for empty in ("cocostuff/images/train2017", "cocostuff/images", "cocostuff/annotations"):
        (root / empty).rmdir()
    found = find_training_sets(root)
    names = ["ade20k", "coco-stuff", "llava-150k", "paco-lvis", "refcoco", "refcoco+"]
    assert sorted(one.adapter.name for one in found) == names
    assert all(record.image.is_file() for one in found for record in one.records())


def test_the_order_of_folders_of_the_papers_authors_is_found_too(make: Make, tmp_path: Path) -> None:
    root = tmp_path / "my_dataset"
    make("llava-150k", root / "vqa_dataset/llava_dataset")
    (root / "coco").mkdir()
    (root / "vqa_dataset/llava_dataset/train2017").rename(root / "coco/train2017")
    make("webad", root / "vqa_dataset/anomalyov_dataset")
    anomaly_ov = root / "vqa_dataset/anomalyov_dataset"
    (anomaly_ov / "WebAD_train.json").rename(anomaly_ov / "webad_processed.json")
    found = find_training_sets(root)
    assert sorted(one.adapter.name for one in found) == ["llava-150k", "webad"]
    assert all(record.image.is_file() for one in found for record in one.records())


def test_ok_is_a_good_part_as_in_btad(make: Make, tmp_path: Path) -> None:
    root = tmp_path / "parts"
    make("mvtec", root)
    (root / "bolt/test/good").rename(root / "bolt/test/ok")
    (found,) = find_training_sets(root)
    assert [(record.kind, record.anomalous) for record in found.records() if record.split == "test"] == [
        ("", False),
        ("scratch", True),
    ]


def test_other_layouts_of_the_same_sets_are_read_alike(make: Make) -> None:
    root = make("partimagenet")  # VLPart's order
    (root / "train").mkdir()
    (root / "images/train").rename(root / "train/n01440764")
    (root / "annotations/train/train.json").rename(root / "train.json")
    assert [told(record) for record in the_records(root, "partimagenet")] == EXPECTED["partimagenet"]
    root = make("coco-stuff")  # as the archive unpacks
    (root / "annotations").rename(root / "stuffthingmaps_trainval2017")
    assert [told(record) for record in the_records(root, "coco-stuff")] == EXPECTED["coco-stuff"]
    root = make("road")  # with the ground truth as pictures, as most write it
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:12, 6:18] = 255
    (root / "groundTruthPng").mkdir()
    assert cv2.imwrite(str(root / "groundTruthPng/001.png"), mask)
    assert [told(record) for record in the_records(root, "road")] == EXPECTED["road"]


def test_pascal_part_as_vlpart_converts_it(make: Make) -> None:
    (record,) = the_records(make("pascal-part-json"), "pascal-part")
    assert told(record)[4] == {"aeroplane left wing": SQUARE, "the left wing of the aeroplane": SQUARE}


@pytest.mark.parametrize(
    ("thing", "part", "words"),
    [
        ("person", "rear", "right ear"),
        ("person", "llleg", "left lower leg"),
        ("cow", "rfuleg", "right front upper leg"),
        ("horse", "lbho", "left back hoof"),
        ("bird", "lfoot", "left foot"),
        ("bus", "bliplate", "back license plate"),
        ("train", "cfrontside_3", "coach front side"),
        ("car", "wheel_2", "wheel"),
        ("dog", "muzzle", "muzzle"),
    ],
)
def test_short_names_of_parts_become_words(thing: str, part: str, words: str) -> None:
    assert pascal_words(thing, part) == (f"{thing} {words}", f"the {words} of the {thing}")


def test_several_annotations_of_one_name_are_meant_together(make: Make) -> None:
    root = make("paco-lvis")
    path = root / "annotations/paco_lvis_v1_train.json"
    tables = json.loads(path.read_text())
    second = {"id": 99, "image_id": 7, "category_id": 3, "segmentation": [[20, 16, 30, 16, 30, 20, 20, 20]]}
    crowd = {"id": 98, "image_id": 7, "category_id": 3, "segmentation": [[0, 0, 32, 0, 32, 24, 0, 24]], "iscrowd": 1}
    path.write_text(json.dumps({**tables, "annotations": [*tables["annotations"], second, crowd]}))
    assert told(the_records(root, "paco-lvis")[0])[4]["trash can"] == SQUARE + 40


def test_polygons_and_run_lengths_of_one_shape_are_one_mask(make: Make) -> None:
    masks = [the_records(make(name), name)[0].targets[0].mask.read(SHAPE) for name in ("refclef", "refcoco", "refcoco+")]
    assert masks[0][4:12, 6:18].all()
    assert all(np.array_equal(masks[0], mask) for mask in masks[1:])


def test_a_mask_of_another_size_is_refused(make: Make) -> None:
    for name in ("refcoco", "real-iad", "road", "ade20k"):
        record = the_records(make(name), name)[-1]
        with pytest.raises(ImageError, match=r"24.*its image 16x12 px|its image 16x12"):
            record.mask.read((12, 16)) if record.mask else [target.mask.read((12, 16)) for target in record.all_targets((12, 16))]


def test_gc10_says_that_its_boxes_are_coarse_and_takes_masks_where_there_are_some(make: Make) -> None:
    root = make("gc10")
    assert all(record.mask is not None and record.mask.coarse for record in the_records(root, "gc10"))
    mask = np.zeros(SHAPE, np.uint8)
    mask[0, 0] = 255
    (root / "masks").mkdir()
    assert cv2.imwrite(str(root / "masks/img_01.png"), mask)
    first = the_records(root, "gc10")[0]
    assert first.mask is not None and not first.mask.coarse and first.mask.read(SHAPE).sum() == 1


def test_references_as_json_come_before_the_pickle(make: Make) -> None:
    root = make("refcoco")
    refs = [{"ann_id": 11, "image_id": 7, "split": "val", "sentences": [{"sent": "from json"}]}]
    (root / "refcoco/refs(unc).json").write_text(json.dumps(refs))
    assert [list(told(record)[4]) for record in the_records(root, "refcoco")] == [["from json"]]


@pytest.mark.parametrize(
    ("name", "file", "content", "said"),
    [
        ("paco-lvis", "annotations/paco_lvis_v1_train.json", '{"images": [', "no whole JSON file.*download it again"),
        ("paco-lvis", "annotations/paco_lvis_v1_train.json", '{"images": []}', "lacks 'annotations'"),
        ("refcoco", "refcoco/refs(unc).p", "(lp0\n(dp1\nS'ref", "no whole pickle of plain data.*download it again"),
        ("refcoco", "refcoco/refs(unc).p", "cos\nsystem\n(S'true'\ntR.", "would do more than hold data"),
        ("real-iad", "realiad_jsons/realiad_jsons/audiojack.json", "[]", "is list, not an object"),
        (
            "llava-150k",
            "llava_instruct_150k.json",
            '[{"conversations": [{"from": "gpt", "value": "a"}], "image": "a.jpg"}]',
            "pairs",
        ),
        ("gc10", "lable/img_01.xml", "<annotation><object>", "img_01.xml is no whole annotation"),
        ("ade20k", "objectInfo150.txt", "nothing", "lists no class"),
        ("zju-leaper", "ImageSets/Patterns/pattern1.json", '{"normal": {"train": []}, "defect": {}}', "lacks 'test'"),
    ],
)
def test_a_broken_listing_names_its_file_and_what_to_do(name: str, file: str, content: str, said: str, make: Make) -> None:
    root = make(name)
    (root / file).write_text(content)
    with pytest.raises(UsageError, match=said) as caught:
        list(named_set(root, name).records())
    assert Path(file).name in str(caught.value)


def test_annotations_without_their_images_say_where_those_belong(make: Make) -> None:
    root = make("coco-stuff")
    (root / "images").rename(root / "elsewhere")
    with pytest.raises(
        UsageError, match="annotations of COCO-Stuff train2017 and not its images: put them into images/train2017"
    ):
        list(named_set(root, "coco-stuff").records())


def test_a_folder_without_a_set_says_what_it_has_and_what_a_set_needs(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    with pytest.raises(UsageError, match=r"none of the sets.*it has holiday"):
        find_training_sets(tmp_path)
    with pytest.raises(UsageError, match=r"does not look like zju-leaper: it needs Images/000001.jpg.*it has holiday"):
        find_training_sets(tmp_path, "zju-leaper")
    with pytest.raises(UsageError, match="--set is 'zju'; it can be ade20k"):
        find_training_sets(tmp_path, "zju")
    with pytest.raises(UsageError, match="is not there"):
        find_training_sets(tmp_path / "no")
    assert len(set_names()) == len(set(set_names()))
