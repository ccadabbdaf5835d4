"""A tiny LLaVA-OneVision with SAM and a small set of each source, made on the spot as the other tests make them; and a small nano."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from agvas_core.model.preset import load_preset

HERE = Path(__file__).parent


def neighbour(name: str) -> ModuleType:
    """The helpers of another folder of tests: their conftest is no module that could be imported by name."""
    spec = importlib.util.spec_from_file_location(f"train_{name}", HERE.parent / name / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SETS, PUBLISHED = neighbour("sets"), neighbour("published")
NAMES = ("ade20k", "paco-lvis", "refcoco", "goodsad", "real-iad", "llava-150k")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_sets(root: Path) -> Path:
    """One or two small sets of each source."""
    for name in NAMES:
        (root / name).mkdir(parents=True)
        SETS.FOLDERS[name](root / name)
    (root / "parts").mkdir()
    SETS.FOLDERS["mvtec"](root / "parts")
    row = {
        "dataset": "parts", "root": "../parts", "image": "bolt/test/scratch/001.png", "mask": "bolt/ground_truth/scratch/001_mask.png",
        "category": "bolt", "kind": "scratch", **SETS.TEXTS, "model": "m", "endpoint": "localhost:1", "prompt": "0" * 64,
    }  # fmt: skip
    SETS.text(root / "instruct/bolts.jsonl", json.dumps(row) + "\n")
    return root


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``sets``, ``lmm``, ``sam.pth``; to be read only."""
    root = tmp_path_factory.mktemp("train")
    make_sets(root / "sets")
    PUBLISHED.make_onevision(root / "lmm")
    torch.save(PUBLISHED.segment_anything_state(), root / "sam.pth")
    return root


@pytest.fixture(scope="session")
def tables(folder: Path) -> dict[str, Any]:
    """The three tables of a run of six small steps on data sets."""
    sets = [{"name": name, "path": str(folder / "sets" / name)} for name in (*NAMES, "instruct")]
    sets.append({"name": "mvtec", "path": str(folder / "sets/parts")})
    return {
        "model": PUBLISHED.table(folder / "lmm", folder / "sam.pth", lora={"rank": 2, "alpha": 4, "dropout": 0.1}),
        "mixture": {"seed": 1, "sets": sets, "held_out": 0.7},
        "train": {
            "steps": 6,
            "batch": 4,
            "micro_batch": 2,
            "warmup_steps": 2,
            "learning_rate": 1e-3,
            "precision": "fp32",
            "workers": 0,
            "log_every": 2,
            "save_every": 2,
            "validation": {"every_steps": 3},
        },
    }


@pytest.fixture(scope="session")
def generated() -> dict[str, Any]:
    """Nano's model, and a run of twelve small steps on generated images: encoders frozen in the first phase, all learns in the second."""
    table = load_preset("nano")
    crop = {"weight": 1.0, "how": "crop"}
    table["train"] |= {
        "images": 24,
        "workers": 0,
        "warmup_steps": 2,
        "precision": "fp32",
        "log_every": 4,
        "save_every": 4,
        "calibration": {"images": 6, "sizes": [[96, 96]], "kept_px": 96},
        "phases": [
            {
                "share": 0.5,
                "batch": 2,
                "frozen": ["pixel_encoder", "semantic_encoder"],
                "rates": {"agmd": 2.0},
                "cuts": [crop | {"canvas": [96, 96], "size": [64, 64]}],
            },
            {"share": 0.5, "batch": 2, "cuts": [crop | {"canvas": [96, 128], "size": [96, 128]}]},
        ],
    }
    return {"model": table["model"], "train": table["train"]}


@pytest.fixture(scope="session")
def as_toml() -> Callable[[dict[str, Any]], str]:
    """Tables as a preset."""

    def write(value: dict[str, Any], prefix: str = "") -> str:
        plain = {key: each for key, each in value.items() if not isinstance(each, dict)}
        lines = [f"{key} = {_toml(each)}" for key, each in plain.items()]
        for key, each in value.items():
            if isinstance(each, dict):
                lines += [f"[{prefix}{key}]", write(each, f"{prefix}{key}.")]
        return "\n".join(lines) + "\n"

    return write


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_toml(each) for each in value)}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)
