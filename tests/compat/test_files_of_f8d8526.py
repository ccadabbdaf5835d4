"""Files that an earlier version wrote are read as they were meant: bundle, recipes, ledger and review folder of commit f8d8526.

The commands are called by the names that users type, so that these tests hold however the code is arranged.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

OLD = Path(__file__).parents[1] / "data" / "f8d8526"
PARTS = 6

Call = Callable[..., str]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """``call("agvas ledger verify", "line")`` runs a command on a copy of the files and returns what it printed."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")

    def run(command: str, *arguments: str) -> str:
        program, *verb = command.split()
        (entry,) = entry_points(group="console_scripts", name=program)
        monkeypatch.setattr(sys, "argv", [program, *verb, *arguments])
        before = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                entry.load()()
        finally:
            signal.signal(signal.SIGTERM, before)
        said = capsys.readouterr()
        assert ended.value.code == 0, said.err
        return said.out

    return run


def test_a_ledger_is_counted_and_shown(call: Call) -> None:
    counted = call("agvas ledger verify", "line", "--images", "--delivered")
    assert "verified" in counted and "FAIL 3" in counted and "PASS 1" in counted and "NO_VERDICT 2" in counted
    assert len(call("agvas ledger show", "line").splitlines()) == PARTS
    assert "bracket@324993ae1091" in call("agvas ledger show", "line", "--events")


def test_a_ledger_is_exported_as_it_was(call: Call) -> None:
    assert lines(call("agvas ledger export", "line")) == lines((OLD / "ledger.jsonl").read_text())
    assert len(call("agvas ledger export", "line", "--format", "csv").splitlines()) == PARTS + 1


def test_a_line_goes_on_in_an_old_ledger_with_the_old_store_and_bundle(call: Call) -> None:
    Path("parts").mkdir()
    for picture in sorted(Path("line/images/000000").glob("*.png")):
        shutil.copy(picture, "parts")
    call("agvas-run", "parts", "--recipe", "recipe-store", "--state", "line", "--station", "press-1", "--sink", "jsonl:verdicts.jsonl",
         "--threads", "1", "--log", "json")  # fmt: skip
    told = lines(Path("verdicts.jsonl").read_text())
    assert [row["seq"] for row in told] == list(range(1, PARTS + 6))
    first, again = told[:5], told[PARTS:]
    assert (
        [row["verdict"] for row in again] == [row["verdict"] for row in first] == ["PASS", "FAIL", "FAIL", "FAIL", "NO_VERDICT"]
    )
    for kept in ("findings", "broken", "image_sha256", "bundle", "recipe", "product"):
        assert [row[kept] for row in again] == [row[kept] for row in first], kept
    assert told[0].keys() <= told[-1].keys()
    assert "verified" in call("agvas ledger verify", "line", "--images", "--delivered")


def test_old_parts_are_judged_again_with_the_same_verdicts(call: Call) -> None:
    again, before = lines(call("agvas replay", "line", "--json")), lines((OLD / "replay.jsonl").read_text())
    assert [(row["seq"], row["before"], row["now"]) for row in again] == [
        (row["seq"], row["before"], row["now"]) for row in before
    ]
    for now, then in zip(again, before, strict=True):
        if then["score"] != 0:  # 0 stood for every score below the seed threshold; scores are raw now
            assert now["score"] == pytest.approx(then["score"], abs=1e-5)
    by_another = lines(call("agvas replay", "line", "--recipe", "recipes/plain.yaml", "--threads", "1", "--json"))
    assert [row["now"] for row in by_another][:4] == ["PASS", "FAIL", "FAIL", "FAIL"]


@pytest.mark.parametrize("name", ["new", "bracket", "plain", "calibrated"])
def test_a_recipe_is_valid(call: Call, name: str) -> None:
    call("agvas recipe lint", f"recipes/{name}.yaml")


def test_a_recipe_store_knows_its_history_and_goes_back(call: Call) -> None:
    listed = call("agvas recipe list", "--store", "recipe-store")
    assert "44efb83948ce" in listed and "324993ae1091" in listed
    call("agvas recipe rollback", "--store", "recipe-store")
    history = json.loads(Path("recipe-store/active.json").read_text())["history"]
    assert history[-1]["sha256"].startswith("44efb83948ce") and history[-1]["why"] == "rollback"


def test_a_review_folder_is_training_data(call: Call) -> None:
    call("agvas data check", "review", "--jobs", "1", "--out", "check.json")
    (found,) = json.loads(Path("check.json").read_text())["sets"]
    (row,) = found["rows"]
    assert (found["faults"], row["category"], row["normal"], row["anomalous"], row["masks"]) == (0, "bracket", 1, 3, 3)
    call("agvas review", "line", "--out", "review", "--coco", "coco.json")
    table = json.loads(Path("coco.json").read_text())
    assert len(table["images"]) == 4 and {one["name"] for one in table["categories"]} >= {"spot", "scratch"}


def test_a_review_folder_is_scored_by_eval(call: Call) -> None:
    call("agvas eval", "--data", "review", "--model", "./bundle", "--jobs", "1", "--out", "eval", "--quiet")
    (found,) = json.loads(Path("eval/result.json").read_text())["sets"]
    assert (found["layout"], found["categories"][0]["images"], found["categories"][0]["anomalous"]) == ("review", 4, 3)
    assert found["mean"]["iou_ano"] == pytest.approx(0.654247, abs=1e-4)


def test_a_review_goes_on_where_it_was(call: Call) -> None:
    program = Path(sys.executable).with_name("agvas")
    page = subprocess.Popen(
        [program, "review", "line", "--out", "review"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert page.stdout is not None
    try:
        address = page.stdout.readline().split()[0].rstrip("/")
        with urllib.request.urlopen(f"{address}/v1/review", timeout=60) as answer:
            said = {seq: word for seq, _, word in json.load(answer)["parts"]}
    finally:
        page.send_signal(signal.SIGINT)
        page.communicate(timeout=60)
    assert said == {1: "escape", 2: "agree", 3: "false-reject", 4: "agree", 5: None}


def test_a_bundle_finds_what_it_found(call: Call) -> None:
    call(
        "agvas-run", "review/images", "--model", "./bundle", "--threads", "1", "--save", "mask,jsonl", "--out", "found", "--quiet"
    )
    results = lines(Path("found/results.jsonl").read_text())
    assert [row["verdict"] for row in results] == ["PASS", "FAIL", "FAIL", "FAIL"]
    assert {row["bundle"] for row in results} == {"tiny@fb39e98929e9"}
    mask = cv2.imread(str(Path("found") / results[1]["files"]["mask"]), cv2.IMREAD_GRAYSCALE)
    assert mask[40, 60] == 255 and np.count_nonzero(mask) == pytest.approx(432, rel=0.1)
