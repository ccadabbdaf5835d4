"""benchmarks/peers.py: what its table is made of, and a worker of ours from good images to scores."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers_benchmark", ROOT / "benchmarks/peers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def facts(ms: list[list[float]], **others: Any) -> dict[str, Any]:
    return {"ms": ms, "run_mb": 100.0, **others}


def test_ratios_are_those_of_one_turn(peers: ModuleType) -> None:
    """The machine was slow for the second image: that is no difference between the two."""
    base, other = peers.METHODS[0], peers.METHODS[2]
    methods = {base.name: facts([[10.0, 100.0, 10.0]], seconds=2.0, ap=0.5), other.name: facts([[20.0, 200.0, 20.0]], ap=0.25)}
    row = peers.summary({"one": {"methods": methods}}, other)
    assert row["times"] == 2.0 and row["p50_ms"] == 20.0 and row["ap"] == 0.25 and row["fit_s"] is None


def test_a_method_that_failed_or_is_random_shows_no_accuracy(peers: ModuleType) -> None:
    base, failed = peers.METHODS[0], peers.METHODS[3]
    random = next(method for method in peers.METHODS if method.weights == "random")
    found = {base.name: facts([[10.0]], ap=0.5), failed.name: {"error": "no"}, random.name: facts([[5.0]], step=0.25)}
    lines = peers.table({"one": {"methods": found}}, [base, failed, random]).splitlines()
    (failure,) = (line for line in lines if line.startswith(f"| {failed.name} |") and "failed" in line)
    (speed,) = (line for line in lines if line.startswith(f"| {random.name} |"))
    assert "0.25 a step" in speed and speed.count("| - ") >= 3 and failure.count("|") == speed.count("|")


def test_accuracy_is_that_of_images_and_pixels(peers: ModuleType, tmp_path: Path) -> None:
    truths = [np.zeros((8, 8), bool), np.zeros((8, 8), bool)]
    truths[1][2:4, 2:4] = True
    maps = [tmp_path / "0.npy", tmp_path / "1.npy"]
    np.save(maps[0], np.zeros((8, 8), np.float32))
    np.save(maps[1], truths[1].astype(np.float32))
    found = peers.accuracy(np.array([0.1, 0.9], np.float32), np.array([False, True]), maps, truths)
    assert found == {"image_auroc": 1.0, "ap": 1.0, "caught_5": 1.0}


def test_a_worker_judges_an_image(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/peers.py"), "--worker", "zero-shot", "agvas", "--threads", "1"]
    image = str(ROOT / "examples/parts/plate-crack.jpg")
    tasks = [
        {"do": "open", "folder": str(tmp_path)},
        {"do": "judge", "image": image, "map": str(tmp_path / "map.npy")},
        {"do": "peak"},
    ]
    done = subprocess.run(command, input="\n".join(map(json.dumps, tasks)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, judged, peak = map(json.loads, done.stdout.splitlines())
    assert judged["ms"] > 0 and not judged["refused"] and peak["peak_mb"] > 50
    assert np.load(tmp_path / "map.npy").max() >= judged["score"] - 1e-6
