"""The examples that take a run to Label Studio and FiftyOne: what they make of a run's own lines."""

import importlib.util
import json
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from agvas.run import run as app
from agvas_core.contract.command_line import exit_code_of

ROOT = Path(__file__).resolve().parents[2]
Part = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def run(tiny_bundle: Path, tmp_path: Path, make_part: Part, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run over a good part, a bad one and a file that is no picture."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    cv2.imwrite("parts/bad.png", make_part(spots=[(40, 40, 12)]))
    cv2.imwrite("parts/good.png", make_part())
    (tmp_path / "parts/text.png").write_text("hello")
    arguments = ["parts", "--model", str(tiny_bundle), "--save", "mask,score,jsonl", "--out", "out", "--quiet"]
    assert exit_code_of(lambda: app, name="agvas-run", arguments=arguments) == 0
    return tmp_path / "out"


def test_label_studio_gets_tasks_that_fit_its_setup(run: Path) -> None:
    script = [sys.executable, str(ROOT / "examples/to_label_studio.py"), str(run)]
    tasks: list[dict[str, Any]] = json.loads(subprocess.check_output([*script, "--prefix", "/data/local-files/?d="]))
    setup = ElementTree.fromstring(subprocess.check_output([*script, "--setup"]))
    controls = {each.get("name"): each for each in setup.iter() if each.get("toName")}
    shown = {each.get("name"): each.get("value", "").removeprefix("$") for each in setup.iter("Image")}
    bad, good, text = tasks
    assert [task["data"]["image"].rpartition("=")[2] for task in tasks] == ["parts/bad.png", "parts/good.png", "parts/text.png"]
    assert "predictions" not in text, "a prediction would call it good or bad"
    assert [len(task["predictions"][0]["result"]) for task in (bad, good)] == [2, 1]
    for task in (bad, good):
        (prediction,) = task["predictions"]
        assert 0 <= prediction["score"] <= 1 and prediction["model_version"].startswith("tiny@")
        assert len({each["id"] for each in prediction["result"]}) == len(prediction["result"])
        for each in prediction["result"]:
            control = controls[each["from_name"]]
            assert control.tag.lower() == each["type"] and control.get("toName") == each["to_name"]
            assert shown[each["to_name"]] in task["data"]
            assert (each["original_width"], each["original_height"], each["image_rotation"]) == (128, 96, 0)
            allowed = {choice.get("value") for choice in control}
            assert set(each["value"][each["type"]]) <= allowed
    (polygon,) = [each for each in bad["predictions"][0]["result"] if each["type"] == "polygonlabels"]
    points = np.array(polygon["value"]["points"]) / 100 * (128, 96)
    assert np.abs(points.mean(axis=0) - 40).max() < 3 and len(points) >= 3


def test_fiftyone_gets_a_sample_for_each_picture(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with the constructors of FiftyOne 1.x, which brings a database and is not installed for tests."""
    fiftyone: Any = types.ModuleType("fiftyone")
    fields = {
        "Classification": {"label", "confidence"},
        "Polyline": {"label", "points", "closed", "filled", "confidence"},
        "Polylines": {"polylines"},
        "Segmentation": {"mask_path"},
        "Heatmap": {"map_path"},
    }

    def label(kind: str) -> Callable[..., dict[str, Any]]:
        def made(**given: Any) -> dict[str, Any]:
            assert given.keys() <= fields[kind]
            return given

        return made

    for kind in fields:
        setattr(fiftyone, kind, label(kind))
    fiftyone.Dataset = object
    fiftyone.Sample = lambda filepath: {"filepath": filepath}
    monkeypatch.setitem(sys.modules, "fiftyone", fiftyone)
    spec = importlib.util.spec_from_file_location("to_fiftyone", ROOT / "examples/to_fiftyone.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    samples = [module.sample(line, run) for line in lines]
    assert [sample["verdict"]["label"] for sample in samples] == ["FAIL", "PASS", "NO_VERDICT"]
    assert [len(sample["anomalies"]["polylines"]) for sample in samples] == [1, 0, 0]
    for sample in samples[:2]:
        assert Path(sample["filepath"]).is_file()
        assert Path(sample["mask"]["mask_path"]).is_file() and Path(sample["score_map"]["map_path"]).is_file()
    points = np.array(samples[0]["anomalies"]["polylines"][0]["points"][0])
    assert np.abs(points.mean(axis=0) * (128, 96) - 40).max() < 3
