"""``agvas data check`` finds what there is, says what is wrong where, and ends with 1 where something is."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from agvas.cli import build
from agvas_core.contract.command_line import exit_code_of
from agvas_core.data.datasets.catalog import find_training_sets
from agvas_core.data.datasets.check import SetReport, check_set

Make = Callable[..., Path]
LAYOUTS = [
    "ade20k", "coco-stuff", "paco-lvis", "partimagenet", "pascal-part", "refclef", "refcoco", "refcoco+", "refcocog", "real-iad",
    "dtd-synthetic", "goodsad", "road", "miad", "gc10", "zju-leaper", "llava-150k", "webad", "mvtec",
]  # fmt: skip


def agvas(*arguments: str | Path) -> int:
    return exit_code_of(build, name="agvas", arguments=["data", "check", *map(str, arguments)])


def checked(root: Path, **options: bool) -> SetReport:
    (found,) = find_training_sets(root)
    return check_set(found, **options)


def faults(report: SetReport) -> list[tuple[str, str]]:
    return [(problem.kind, problem.where) for problem in report.problems if not problem.is_note]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_whole_set_has_nothing_wrong(name: str, make: Make) -> None:
    root = make(name)
    assert faults(checked(root)) == faults(checked(root, quick=True)) == []


def test_counts_are_by_split_and_category(make: Make) -> None:
    rows = checked(make("real-iad")).rows
    assert {key: (row.images, row.normal, row.anomalous, row.masks) for key, row in rows.items()} == {
        ("train", "audiojack"): (1, 1, 0, 0),
        ("test", "audiojack"): (1, 0, 1, 1),
    }
    rows = checked(make("ade20k")).rows
    assert {key: (row.images, row.masks) for key, row in rows.items()} == {
        (split, name): (count, count) for split, count in (("train", 2), ("val", 1)) for name in ("wall", "building")
    }
    report = checked(make("refcoco"))
    assert (report.images, report.records) == (1, 2)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def small(path: Path) -> None:
    assert cv2.imwrite(str(path), np.full((10, 10), 255, np.uint8))


def black(path: Path) -> None:
    assert cv2.imwrite(str(path), np.zeros((24, 32), np.uint8))


@pytest.mark.parametrize(
    ("name", "file", "harm", "expected"),
    [
        ("real-iad", "realiad_1024/audiojack/OK/S0001/a.jpg", Path.unlink, ("image", "audiojack/OK/S0001/a.jpg")),
        ("real-iad", "realiad_1024/audiojack/OK/S0001/a.jpg", cut, ("image", "audiojack/OK/S0001/a.jpg")),
        ("real-iad", "realiad_1024/audiojack/NG/HS/S0002/b.png", Path.unlink, ("mask", "audiojack/NG/HS/S0002/b.jpg")),
        ("real-iad", "realiad_1024/audiojack/NG/HS/S0002/b.png", cut, ("mask", "audiojack/NG/HS/S0002/b.jpg")),
        ("real-iad", "realiad_1024/audiojack/NG/HS/S0002/b.png", small, ("mask", "audiojack/NG/HS/S0002/b.jpg")),
        ("real-iad", "realiad_1024/audiojack/NG/HS/S0002/b.png", black, ("empty", "audiojack/NG/HS/S0002/b.jpg")),
        ("ade20k", "images/training/ADE_train_00000001.jpg", Path.unlink, ("image", "images/training/ADE_train_00000001.jpg")),
        (
            "ade20k",
            "annotations/training/ADE_train_00000001.png",
            Path.unlink,
            ("mask", "images/training/ADE_train_00000001.jpg"),
        ),
        ("ade20k", "annotations/training/ADE_train_00000001.png", small, ("mask", "images/training/ADE_train_00000001.jpg")),
        ("miad", "photovoltaic_module/test/dirty/001.png", Path.unlink, ("image", "photovoltaic_module/test/dirty/001.png")),
        (
            "miad",
            "photovoltaic_module/ground_truth/dirty/001_mask.png",
            Path.unlink,
            ("mask", "photovoltaic_module/test/dirty/001.png"),
        ),
        ("pascal-part", "Annotations_Part/2008_000003.mat", cut, ("mask", "2008_000003.jpg")),
        ("road", "groundTruth/001.mat", Path.unlink, ("mask", "image/001.jpg")),
        ("gc10", "lable/img_01.xml", Path.unlink, ("mask", "1/img_01.png")),
        ("zju-leaper", "Annotations/masks/000002.png", Path.unlink, ("mask", "Images/000002.jpg")),
        ("paco-lvis", "train2017/000000000009.jpg", cut, ("image", "train2017/000000000009.jpg")),
        ("llava-150k", "train2017/000000000009.jpg", Path.unlink, ("image", "000000000009.jpg#0")),
    ],
)
def test_what_is_wrong_is_told_with_its_place(
    name: str, file: str, harm: Callable[[Path], None], expected: tuple[str, str], make: Make
) -> None:
    root = make(name)
    path = root / file
    harm(path if path.exists() else path.with_suffix(".jpg"))
    report = checked(root)
    told = [(kind, where.replace("img_01.jpg", "img_01.png")) for kind, where in faults(report)]
    assert told == [expected]


def test_sets_that_were_downloaded_in_part_are_told(make: Make) -> None:
    root = make("refcocog")
    (root / "images").rename(root / "not-yet")
    report = checked(root)
    assert ("part", "images/mscoco/images/train2014|../coco/train2014|../../coco/train2014|train2014") in faults(report)
    root = make("ade20k")
    (root / "images.zip.crdownload").write_bytes(b"PK")
    assert ("download", "images.zip.crdownload") in faults(checked(root))
    root = make("real-iad")
    (root / "realiad_jsons/realiad_jsons/audiojack.json").write_text('{"meta": {')
    assert [kind for kind, _ in faults(checked(root))] == ["listing"]
    assert any("of the 151,050" in problem.what for problem in checked(make("real-iad")).problems)


def test_the_command_prints_a_table_writes_json_and_ends_with_1(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "all"
    make("goodsad", root / "goods")
    make("ade20k", root / "ade")
    assert agvas(root, "--jobs", "1") == 0
    shown = capsys.readouterr()
    assert "drink_bottle" in shown.out and "building" in shown.out and "nothing is wrong" in shown.err
    (root / "goods/drink_bottle/ground_truth/cap_open/001.png").unlink()
    out = tmp_path / "new/found.json"
    assert agvas(root, "--jobs", "1", "--out", out) == 1
    assert "001.png: is anomalous (cap open) and has no mask" in capsys.readouterr().err
    told = json.loads(out.read_text())
    assert told["faults"] == 1
    assert {one["name"]: one["faults"] for one in told["sets"]} == {"goodsad": 1, "ade20k": 0}
    assert agvas(root, "--set", "ade20k", "--jobs", "1", "--quiet") == 0
    assert capsys.readouterr().out == ""
    assert agvas(root, "--set", "miad") == 2
    assert agvas(root, "--jobs", "1", "--out", root / "goods/drink_bottle/test/good/000.png/x.json") == 3


def test_processes_find_what_one_finds(make: Make) -> None:
    root = make("mvtec")
    for number in range(40):
        black(root / f"bolt/test/good/{number + 10:03d}.png")
    cut(root / "bolt/test/good/020.png")
    (found,) = find_training_sets(root)
    seen: list[int] = []
    alone, together = check_set(found), check_set(found, jobs=2, advance=seen.append)
    assert alone.to_dict() == together.to_dict() and alone.faults == 1
    assert sum(seen) == together.images


REAL = Path(__file__).parents[4] / "shared" / "data"


@pytest.mark.skipif(not REAL.is_dir(), reason="the photographs of ../shared/data are not on this machine")
def test_the_photographs_are_found_and_whole() -> None:
    reports = {one.root.name: check_set(one, quick=True) for one in find_training_sets(REAL, everything=True)}
    assert {name: report.images for name, report in reports.items()} == {
        "magtile": 688, "road": 118, "ksdd1": 150, "neu": 420, "mvtec": 83, "mpdd": 67, "isic": 600,
    }  # fmt: skip
    assert sum(report.faults for report in reports.values()) == 0
