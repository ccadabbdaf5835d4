"""Training takes no test set: by the names of folders, categories and files, and by content; and says what it takes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from agvas.cli import build
from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import UsageError
from agvas_core.data.datasets.catalog import find_training_sets
from agvas_core.data.datasets.check import check_set
from agvas_core.data.datasets.contamination import TEST_SETS
from agvas_core.data.mixture.config import MixtureConfig, Source
from agvas_core.data.mixture.mixture import Mixture

Make = Callable[..., Path]


def part(root: Path, category: str, kind: str = "anomaly", stem: str = "000", seed: int = 0) -> Path:
    """A category in MVTec's layout with one good and one anomalous image."""
    mask = np.zeros((24, 32), np.uint8)
    mask[4:12, 6:18] = 255
    rng = np.random.default_rng(seed)
    for name, pixels in (
        (f"train/good/{stem}.png", rng.integers(0, 255, (24, 32, 3), np.uint8)),
        (f"test/{kind}/{stem}.png", rng.integers(0, 255, (24, 32, 3), np.uint8)),
        (f"ground_truth/{kind}/{stem}.png", mask),
    ):
        path = root / category / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), pixels)
    return root


def agvas(*arguments: str | Path) -> int:
    return exit_code_of(build, name="agvas", arguments=list(map(str, arguments)))


def seg(*sets: dict[str, Any], **more: Any) -> Mixture:
    return Mixture.load(MixtureConfig(sets=sets, shares={"seg": 1}, **more))


@pytest.mark.parametrize(
    ("folder", "category", "stem", "name"),
    [
        ("parts", "bottle", "000", "MVTec-AD"),
        ("mvtec_anomaly_detection", "renamed", "000", "MVTec-AD"),
        ("parts", "renamed", "mvtec_broken_large_000209", "MVTec-AD"),
        ("KSDD2", "surface", "000", "KSDD2"),
        ("parts", "steel", "KSDD2-metal-defect-002781_0000000298", "KSDD2"),
        ("parts", "rail", "RSDD_I-metal-null-000526_0000000756", "RSDD"),
        ("parts", "Metal15", "000", "RSDD"),
        ("parts", "lesion", "ISIC_defect_ISIC_0000003_000000", "ISIC"),
        ("parts", "polyp", "ColonDB_defect_9_000369", "ColonDB"),
        ("parts", "polyp", "ClinicDB_defect_5_000444", "ClinicDB"),
        ("parts", "pcb1", "000", "VisA"),
    ],
)
def test_a_test_set_is_refused_by_its_names_unless_it_is_allowed(
    folder: str, category: str, stem: str, name: str, tmp_path: Path
) -> None:
    root = part(tmp_path / folder, category, stem=stem)
    with pytest.raises(UsageError, match=f"2 of the 2 records of mvtec are of {name}.*allow_test_sets"):
        seg({"name": "mvtec", "path": root})
    allowed = seg({"name": "mvtec", "path": root}, allow_test_sets=(name,))
    assert len(allowed.pools[Source.SEG]) == 2 and name in allowed.table().splitlines()[-1]


def test_parts_of_one_s_own_are_taken_and_real_iad_keeps_its_toothbrush(tmp_path: Path, make: Make) -> None:
    assert len(seg({"name": "mvtec", "path": part(tmp_path / "parts", "bolt")}).pools[Source.SEG]) == 2
    root = make("real-iad")
    path = root / "realiad_jsons/realiad_jsons/audiojack.json"
    path.rename(path.with_name("toothbrush.json"))
    assert len(seg({"name": "real-iad", "path": root}).pools[Source.SEG]) == 2


def test_a_test_image_is_refused_under_any_name(tmp_path: Path) -> None:
    test = part(tmp_path / "tests/parts", "bolt", seed=7)
    mine = part(tmp_path / "mine", "nut", seed=8)
    assert seg({"name": "mvtec", "path": mine}, test_data=(tmp_path / "tests",))
    shutil.copy(test / "bolt/test/anomaly/000.png", mine / "nut/train/good/other.png")
    known = tmp_path / "known.json"
    assert agvas("data", "hashes", tmp_path / "tests", "-o", known) == 0
    for tests in (tmp_path / "tests", known):
        with pytest.raises(
            UsageError, match=r"1 images of mvtec are test images of .*other.png is parts/bolt/test/anomaly/000.png"
        ):
            seg({"name": "mvtec", "path": mine}, test_data=(tests,))
    known.write_text(known.read_text()[:40])
    with pytest.raises(UsageError, match=r"known.json is no file of agvas data hashes"):
        seg({"name": "mvtec", "path": mine}, test_data=(known,))


def test_of_a_list_without_its_images_the_file_names_are_known(tmp_path: Path) -> None:
    """As the authors publish them; numbers, which every set has for names, are not compared."""
    root = authors_order(tmp_path / "lists")
    shutil.rmtree(root / "KSDD2")
    for other in ("mvtec", "DTD", "ZJU"):
        (root / f"meta_{other}.json").unlink()
        shutil.rmtree(root / other)
    known = tmp_path / "known.json"
    assert agvas("data", "hashes", root, "-o", known) == 0
    assert json.loads(known.read_text())["test_images"] == [
        ["KSDD2/KSDD2/Metal/test/anomaly/KSDD2-metal-defect-000001_0000000000.png", None, None]
    ]
    mine = part(tmp_path / "mine", "nut")
    assert seg({"name": "mvtec", "path": mine}, test_data=(known,))
    stem = "KSDD2-metal-defect-000001_0000000000"
    part(tmp_path / "mine", "nut", stem=stem)
    with pytest.raises(UsageError, match="2 images of mvtec are test images of"):
        seg({"name": "mvtec", "path": mine}, test_data=(known,), allow_test_sets=("KSDD2",))


def authors_order(root: Path) -> Path:
    """my_dataset/anomaly_seg as the authors order it: each set standardised to MVTec's layout, and a list of it beside the folder."""
    for name, category, stem in (
        ("mvtec", "bottle", "mvtec_broken_large_000209"),
        ("KSDD2", "Metal", "KSDD2-metal-defect-000001_0000000000"),
        ("DTD", "woven1", "dtd_000001"),
        ("ZJU", "pattern1", "zju_000001"),
    ):
        part(root / name, category, stem=stem)
        entry = {"cls_name": category, "dataset_name": name}
        good = {
            **entry,
            "img_path": f"{name}/{category}/train/good/{stem}.png",
            "mask_path": "",
            "specie_name": "good",
            "anomaly": 0,
        }
        bad = {
            **entry,
            "img_path": f"{name}/{category}/test/anomaly/{stem}.png",
            "mask_path": f"{name}/{category}/ground_truth/anomaly/{stem}.png",
            "specie_name": "anomaly",
            "anomaly": 1,
        }
        listed = {"train": {category: [good]}, "test": {category: [bad]}}
        (root / f"meta_{name}.json").write_text(json.dumps(listed))
    return root


def test_the_authors_order_trains_on_its_training_lists_alone(tmp_path: Path) -> None:
    root = authors_order(tmp_path / "my_dataset/anomaly_seg")
    found = find_training_sets(tmp_path / "my_dataset")
    assert {(one.adapter.name, one.root) for one in found} == {
        ("dtd-synthetic", root / "meta_DTD.json"),
        ("zju-leaper", root / "meta_ZJU.json"),
    }
    reports = [check_set(one, quick=True) for one in found]
    assert [(report.images, report.faults) for report in reports] == [(2, 0), (2, 0)]
    mixture = seg(*({"name": one.adapter.name, "path": one.root} for one in found))
    assert mixture.pools[Source.SEG].counts() == {False: 2, True: 2}
    assert all(mixture[index].dataset in ("dtd-synthetic", "zju-leaper") for index in range(8))
    with pytest.raises(UsageError, match="are of KSDD2"):
        seg({"name": "list", "path": root / "meta_KSDD2.json"})
    rows = [line.split() for line in mixture.table().splitlines()]
    assert rows[1][:7] == ["seg", "1.00", "dtd-synthetic", "2", "1", "1", "test:1"]


def test_folders_that_test_sets_look_like_are_taken_only_where_they_are_named(tmp_path: Path, make: Make) -> None:
    make("road", tmp_path / "data/road")
    part(tmp_path / "data/parts", "bolt")
    (tmp_path / "data/cvc/images").mkdir(parents=True)
    (tmp_path / "data/cvc/masks").mkdir()
    assert [one.adapter.name for one in find_training_sets(tmp_path / "data")] == ["road"]
    assert len(find_training_sets(tmp_path / "data", everything=True)) == 3
    assert [one.adapter.name for one in find_training_sets(tmp_path / "data/parts")] == ["mvtec"]
    assert [one.adapter.name for one in find_training_sets(tmp_path / "data/cvc")] == ["review"]


def test_every_test_set_has_a_name_of_its_own() -> None:
    assert len({one.name for one in TEST_SETS}) == len(TEST_SETS)
    assert len({folder for one in TEST_SETS for folder in one.folders}) == sum(len(one.folders) for one in TEST_SETS)
