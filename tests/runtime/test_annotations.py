"""Results as other tools have them: tables, COCO, YOLO, a drawn picture; and in one line."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from agvas.run import run as app
from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import ImageError, OutputError, UsageError
from agvas_runtime.masks.annotations import coco_dataset, region_mask, table_csv, table_rows
from agvas_runtime.masks.regions import find_regions
from agvas_runtime.masks.result import Result, Verdict
from agvas_runtime.pipeline.segmenter import Segmenter

# pycocotools against NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")

Part = Callable[..., NDArray[np.uint8]]


def a_result(mask: NDArray[np.bool_], name: str = "part.png") -> Result:
    scores = np.where(mask, np.float32(0.9), np.float32(0.1))
    regions = find_regions(mask, scores)
    image = np.full((*mask.shape, 3), 200, np.uint8)
    verdict = Verdict.FAIL if regions else Verdict.PASS
    return Result(
        name, 0, verdict, 0.9, "balanced", 0.5, 0.5, "find", "tiny@0", regions, image, scores, mask, timing={"total": 41.4}
    )


def without_verdict(name: str = "cut.png") -> Result:
    return Result(name, 1, Verdict.NO_VERDICT, None, "balanced", 0.5, 0.5, "find", "tiny@0", error="cut short")


def tangled() -> NDArray[np.bool_]:
    """A ring, a smaller square inside it, a single pixel, and a spiral whose box holds another region."""
    mask = np.zeros((60, 90), np.bool_)
    mask[5:35, 5:35] = True
    mask[9:31, 9:31] = False
    mask[15:25, 15:25] = True
    mask[50, 80] = True
    mask[40:55, 40:42] = True
    mask[53:55, 40:70] = True
    mask[42:48, 50:60] = True
    return mask


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- regions and COCO


def test_the_masks_of_the_regions_are_the_mask() -> None:
    result = a_result(tangled())
    together = np.zeros_like(tangled(), np.int32)
    for region in result.regions:
        x, y, width, height = region.box
        inside = region_mask(result, region)
        assert inside.sum() == region.area_px
        together[y : y + height, x : x + width] += inside
    assert len(result.regions) == 5 and np.array_equal(together, tangled())


@pytest.mark.parametrize("seed", range(5))
def test_pycocotools_reads_the_mask_to_the_pixel(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(seed).random((40, 70)) > (0.55 + 0.08 * seed)
    results = [
        a_result(noise, "a.png"),
        without_verdict(),
        a_result(np.zeros((8, 8), np.bool_), "b.png"),
        a_result(tangled(), "c.png"),
    ]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco_dataset(results)))
    coco = COCO(str(path))
    names = {image["file_name"]: image["id"] for image in coco.loadImgs(coco.getImgIds())}
    assert names.keys() == {"a.png", "b.png", "c.png"}, "a picture without a verdict would read as a good one"
    for result in (results[0], results[2], results[3]):
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[names[result.name]]))
        assert len(annotations) == len(result.regions)
        masks = [coco.annToMask(each) for each in annotations]
        assert result.mask is not None and np.array_equal(sum(masks, np.zeros(result.mask.shape, np.uint8)), result.mask)
        for annotation, mask in zip(annotations, masks, strict=True):
            assert annotation["area"] == mask.sum() and annotation["bbox"] == list(cv2.boundingRect(mask))
    scored = coco.loadRes([each for each in coco.dataset["annotations"]])
    assert len(scored.anns) == len(coco.anns)


# --- YOLO


def test_yolo_polygons_cover_the_regions() -> None:
    result = a_result(tangled())
    lines = result.to_yolo().splitlines()
    assert len(lines) == len(result.regions)
    for line, region in zip(lines, result.regions, strict=True):
        kind, *numbers = line.split()
        points = np.array(numbers, float).reshape(-1, 2)
        assert kind == "0" and len(points) >= 3 and points.min() >= 0 and points.max() <= 1
        low, high = points.min(axis=0) * (90, 60), points.max(axis=0) * (90, 60)
        x, y, width, height = region.box
        assert np.abs(low - (x, y)).max() <= 1 and np.abs(high - (x + width, y + height)).max() <= 1


def test_a_good_picture_has_an_empty_label_file_and_one_without_a_verdict_none() -> None:
    assert a_result(np.zeros((8, 8), np.bool_)).to_yolo() == ""
    with pytest.raises(ImageError, match="cut short"):
        without_verdict().to_yolo()


# --- tables


def test_a_table_has_a_row_for_each_region_and_for_a_picture_without() -> None:
    pandas = pytest.importorskip("pandas")
    results = [a_result(tangled()), a_result(np.zeros((8, 8), np.bool_), "good.png"), without_verdict()]
    table = pandas.concat([result.to_df() for result in results], ignore_index=True)
    assert len(table) == 5 + 1 + 1
    assert table["area_px"].sum() == tangled().sum()
    assert list(table["verdict"])[-2:] == ["PASS", "NO_VERDICT"]
    first = table[(table["region"] == 1) | table["region"].isna()]
    assert len(first) == 3, "one row for each picture"


@pytest.mark.parametrize("name", ["=1+1.png", "+cmd.png", "-2.png", "@x.png", " =2.png", "\t=3.png", "\r=4.png"])
def test_no_cell_of_a_csv_is_a_formula(name: str) -> None:
    text = table_csv(table_rows(a_result(tangled(), name)))
    for row in csv.reader(io.StringIO(text)):
        assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for cell in row), row
    assert next(csv.DictReader(io.StringIO(text)))["name"] == f"'{name}"


def test_names_with_commas_quotes_and_lines_stay_one_cell() -> None:
    name = 'a,"b"\nc.png'
    assert next(csv.DictReader(io.StringIO(table_csv(table_rows(a_result(tangled(), name))))))["name"] == name


# --- for the eye


def test_a_result_is_one_line_and_its_repr_is_short() -> None:
    result = a_result(tangled())
    assert "\n" not in str(result)
    for fact in ("part.png", "FAIL", "0.900", "5 regions", "41 ms"):
        assert fact in str(result)
    assert "part.png" in repr(result) and len(repr(result)) < 80
    assert len(repr(result.regions[0])) < 200
    assert "NO_VERDICT" in str(without_verdict()) and "cut short" in str(without_verdict())


def test_the_plot_has_the_size_of_the_picture_and_differs_at_the_outline() -> None:
    result = a_result(tangled())
    drawn = result.plot()
    assert result.image is not None and drawn.shape == result.image.shape
    assert (drawn != result.image).any(axis=2)[5, 5:35].all() and not (drawn != result.image).any(axis=2)[:2].any()
    assert max(result.plot(max_side_px=30).shape) == 30


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_a_result_is_saved_as_a_picture(suffix: str, tmp_path: Path) -> None:
    result = a_result(tangled())
    path = result.save(tmp_path / f"found{suffix}")
    with Image.open(path) as image:
        assert image.size == (90, 60)
        if suffix == ".png":
            assert np.array_equal(np.array(image), result.plot())
    assert files(tmp_path) == {path.name}


def test_what_cannot_be_saved_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.doc"):
        a_result(tangled()).save(tmp_path / "found.doc")
    with pytest.raises(OutputError, match="none"):
        a_result(tangled()).save(tmp_path / "none/found.png")
    with pytest.raises(ImageError, match="cut short"):
        without_verdict().save(tmp_path / "found.png")
    assert files(tmp_path) == set()


def test_show_opens_a_viewer_with_the_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Image.Image] = []
    monkeypatch.setattr(Image.Image, "show", lambda image, **_: shown.append(image))
    result = a_result(tangled())
    result.show()
    assert np.array_equal(np.array(shown[0]), result.plot())


# --- a run


def test_a_run_saves_csv_coco_and_yolo(
    tiny_bundle: Path, tmp_path: Path, make_part: Part, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    cv2.imwrite("parts/=bad.png", make_part(spots=[(40, 40, 12), (90, 60, 9)]))
    cv2.imwrite("parts/good.png", make_part())
    (tmp_path / "parts/text.png").write_text("hello")
    arguments = ["parts", "--model", str(tiny_bundle), "--save", "mask,csv,coco,yolo", "--out", "out", "--quiet"]
    assert exit_code_of(lambda: app, name="agvas-run", arguments=arguments) == 0
    out = tmp_path / "out"
    assert files(out) == {
        "run.json", "results.csv", "coco.json", "classes.txt", "masks/=bad.png", "masks/good.png", "labels/=bad.txt", "labels/good.txt",
    }  # fmt: skip
    rows = list(csv.DictReader((out / "results.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert [row["verdict"] for row in rows] == ["FAIL", "FAIL", "PASS", "NO_VERDICT"]
    assert (out / "labels/good.txt").read_text() == "" and len((out / "labels/=bad.txt").read_text().splitlines()) == 2
    assert (out / "classes.txt").read_text().split() == ["anomaly"]
    coco = COCO(str(out / "coco.json"))
    bad = next(image for image in coco.dataset["images"] if "bad" in image["file_name"])
    masks: list[Any] = [coco.annToMask(each) for each in coco.imgToAnns[bad["id"]]]
    stored = cv2.imread(str(out / "masks/=bad.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(sum(masks, np.zeros_like(stored)), stored > 0)
    # A later run in the same folder leaves none of these behind.
    again = ["parts/good.png", "--model", str(tiny_bundle), "--save", "jsonl", "--out", "out", "--overwrite", "--quiet"]
    assert exit_code_of(lambda: app, name="agvas-run", arguments=again) == 0
    assert files(out) == {"run.json", "results.jsonl"}


def test_an_interrupted_run_keeps_the_files_of_what_was_done(tiny_bundle: Path, tmp_path: Path, make_part: Part) -> None:
    cv2.imwrite(str(tmp_path / "bad.png"), make_part(spots=[(40, 40, 12)]))
    script = """
import os, signal, sys
from agvas_runtime.masks import annotations
add = annotations.CocoWriter.add
def and_interrupt(self, result):
    add(self, result)
    os.kill(os.getpid(), signal.SIGINT)
annotations.CocoWriter.add = and_interrupt
from agvas.cli import agvas_run
agvas_run()
"""
    command = [
        sys.executable,
        "-c",
        script,
        "bad.png",
        "bad.png",
        "--model",
        str(tiny_bundle),
        "--save",
        "coco,csv",
        "--out",
        "out",
    ]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert len(json.loads((tmp_path / "out/coco.json").read_text())["annotations"]) == 1
    assert (tmp_path / "out/results.csv").exists()


def test_the_segmenter_s_own_results_have_all_forms(tiny_bundle: Path, make_part: Part) -> None:
    (result,) = Segmenter.load(tiny_bundle).predict(make_part(spots=[(40, 40, 12)]))
    (annotation,) = result.to_coco()["annotations"]
    assert annotation["area"] == result.regions[0].area_px and result.to_yolo().startswith("0 ")
    assert "FAIL" in str(result)
