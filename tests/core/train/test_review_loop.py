"""Reviewed parts: a folder that one line makes a training source, and nano adapted to it."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from agvas_core.contract.decision import BALANCED, STRICT
from agvas_core.contract.errors import UsageError
from agvas_core.contract.review_folder import IMAGES, MASKS, REVIEW, ReviewLine, add_line, read_lines
from agvas_core.data.datasets.catalog import find_training_sets
from agvas_core.data.datasets.layouts import find_test_sets
from agvas_core.data.mixture.config import MixtureConfig
from agvas_core.data.mixture.mixture import Mixture
from agvas_core.model.weights.checkpoint import load_checkpoint
from agvas_core.train.cli import train


def picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


@pytest.fixture
def reviewed(tmp_path: Path) -> Path:
    """Eight parts, four of them with a bright square, written as a review writes them."""
    root, rng = tmp_path / "reviewed", np.random.default_rng(0)
    (root / IMAGES).mkdir(parents=True)
    for number in range(8):
        pixels = rng.integers(90, 110, (64, 96, 3)).astype(np.uint8)
        mask = np.zeros((64, 96), np.uint8)
        if number % 2:
            mask[20:40, 10 + number * 5 : 30 + number * 5] = 255
            pixels[mask > 0] = 230
            picture(root / MASKS / f"{number}.png", mask)
        picture(root / IMAGES / f"{number}.png", pixels)
        mask_path = f"{MASKS}/{number}.png" if number % 2 else None
        line = ReviewLine(image=f"{IMAGES}/{number}.png", mask=mask_path, good=not number % 2, kind="spot" if number % 2 else "")
        add_line(root, line, score=0.5, bundle="nano")
    return root


def test_one_line_makes_the_folder_a_training_source(reviewed: Path) -> None:
    mixture = Mixture.load(MixtureConfig.model_validate({"sets": [{"name": "review", "path": reviewed}], "shares": {"seg": 1}}))
    seen = {mixture[index].name: mixture[index] for index in range(60)}
    assert set(seen) == {f"{IMAGES}/{number}.png" for number in range(8)}
    assert all(example.anomalous == bool(int(Path(name).stem) % 2) for name, example in seen.items())
    assert seen[f"{IMAGES}/1.png"].mask is None or seen[f"{IMAGES}/1.png"].mask.sum() == 400


def test_pictures_alone_are_read_too(reviewed: Path) -> None:
    (reviewed / REVIEW).unlink()
    (found,) = find_training_sets(reviewed)
    assert [(record.name, record.anomalous) for record in found.records()] == [
        (f"{IMAGES}/{number}.png", bool(number % 2)) for number in range(8)
    ]


def test_the_same_folder_is_scored_on(reviewed: Path) -> None:
    (found,) = find_test_sets(reviewed)
    assert found.layout == "review" and [item.anomalous for item in found.items] == [False, True] * 4
    assert {item.specie for item in found.items} == {"good", "spot"}


def test_who_thinks_again_writes_another_line(reviewed: Path) -> None:
    add_line(reviewed, ReviewLine(image=f"{IMAGES}/1.png", good=True))
    lines = {line.image: line for line in read_lines(reviewed)}
    assert len(lines) == 8 and lines[f"{IMAGES}/1.png"].good and lines[f"{IMAGES}/1.png"].mask is None


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "line 9"),
        ('{"image": "../../etc/passwd", "good": true}', "leads out of the folder"),
        ('{"image": "images/1.png", "good": false}', "has no mask"),
        ('{"image": "images/1.png", "mask": "masks/1.png", "good": true}', "is good and has the mask"),
        ('{"image": "images/1.png"}', "Field required"),
    ],
)
def test_a_line_that_cannot_be_meant_is_named(reviewed: Path, line: str, why: str) -> None:
    with (reviewed / REVIEW).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(UsageError, match=why):
        list(read_lines(reviewed))


@pytest.mark.parametrize("preset", ["nano-decoder", "nano-lora"])
def test_nano_adapts_to_reviewed_parts_and_keeps_the_rest_of_itself(reviewed: Path, tmp_path: Path, preset: str) -> None:
    quick = tmp_path / "quick.toml"
    quick.write_text(
        "[mixture]\nheld_out = 0.5\n[train]\nsteps = 2\nbatch = 2\nmicro_batch = 2\nwarmup_steps = 0\nlog_every = 1\n",
        encoding="utf-8",
    )
    out = tmp_path / "run"
    train(preset=preset, sets=reviewed, out=out, extra=quick)
    adapted, shipped = load_checkpoint(out), load_checkpoint("nano")
    own = dict(shipped.model.named_parameters())
    moved = {name for name, parameter in adapted.model.named_parameters() if not torch.equal(parameter, own[name])}
    assert any(name.startswith("agmd.") for name in moved)
    allowed = (
        ("agmd.", "refiner.")
        if preset == "nano-decoder"
        else ("agmd.", "refiner.", "spam.", "linear_p.", "lmm.language_model.layers.")
    )
    assert all(name.startswith(allowed) for name in moved)
    buffers = dict(shipped.model.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in adapted.model.named_buffers() if "running" in name)
    assert adapted.config.scales == shipped.config.scales
    assert {BALANCED, STRICT} == set(adapted.config.decision.operating_points)
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"] == 2
