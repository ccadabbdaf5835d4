"""A checkpoint in torch and its bundle give one answer in every mode; refusals are empty masks and are counted."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import UsageError
from agvas_core.contract.prompts import ANCHORS_SHOWN, Mode
from agvas_core.evaluation.checkpoint import CheckpointPredictor, open_predictor
from agvas_core.evaluation.cli import evaluate
from agvas_core.evaluation.predictor import find_opener

LOOK = "A grey plate with an even surface"


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey plate with a dark scratch."""
    chance = np.random.default_rng(1)
    image = chance.integers(150, 170, (200, 240, 3), dtype=np.uint8)
    cv2.line(image, (40, 60), (180, 120), (30, 30, 30), 4)
    path = tmp_path_factory.mktemp("picture") / "plate.png"
    assert cv2.imwrite(str(path), image)
    return path


def both(**options: Any) -> tuple[CheckpointPredictor, Any]:
    return open_predictor("nano", **options), find_opener("bundle")("nano", **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": 0.3},
        {"operating_point": "strict"},
        {"alpha": 1.0},
        {"alpha": 0.0},
        {"prompt": "Segment the scratch."},
        {"generate": True},
        *({"mode": str(mode)} for mode in Mode if mode is not Mode.DIRECT),
    ],
    ids=str,
)
def test_a_checkpoint_answers_as_its_bundle_does(options: dict[str, Any], picture: Path) -> None:
    ours, theirs = both(**options)
    look = {"normal_look": LOOK} if options.get("mode") == Mode.DESCRIBE_PLUS else {}
    mine, its = ours.predict(picture, **look), theirs.predict(picture, **look)
    assert np.abs(mine[0] - its[0]).max() < 5e-3
    assert (mine[1] != its[1]).mean() < 1e-3 and mine[2] == its[2]
    assert mine[4] == its[4]
    speaks = options.get("generate") or options.get("mode") is not None
    assert (mine[4] is not None) == bool(speaks)
    if speaks:  # without anchors in the answer there is no mask
        assert mine[4] is not None and (ANCHORS_SHOWN in mine[4] or not mine[1].any())


def test_alpha_decides_which_map_counts(picture: Path) -> None:
    maps = [open_predictor("nano", alpha=alpha).predict(picture)[0] for alpha in (0.0, 0.5, 1.0)]
    assert np.abs(maps[0] - maps[2]).max() > 1e-3
    assert np.allclose(maps[1], (maps[0] + maps[2]) / 2, atol=1e-5)


def test_bf16_is_near_and_named_in_what_is_cached(picture: Path) -> None:
    exact, half = open_predictor("nano", precision="fp32"), open_predictor("nano", precision="bf16")
    assert exact.identity != half.identity
    assert np.abs(exact.predict(picture)[0] - half.predict(picture)[0]).mean() < 0.05


def test_a_refusal_has_no_mask_and_says_no_anchors(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = open_predictor("nano", generate=True)
    refusal = predictor.tokenizer.encode("There are no anomalies in this image.").ids
    monkeypatch.setattr("agvas_core.evaluation.checkpoint.greedy_generate", lambda *_: refusal)
    score_map, mask, verdict, _, answer = predictor.predict(picture)
    assert not mask.any() and verdict == "PASS" and score_map.max() < 1e-6
    assert answer is not None and "no anomalies" in answer and ANCHORS_SHOWN not in answer


def test_words_are_not_needed_where_there_are_none_and_are_where_there_are(picture: Path) -> None:
    image = cv2.imread(str(picture))
    assert image is not None
    with pytest.raises(UsageError, match="needs a sentence on how a good part looks"):
        open_predictor("nano").reply(image, mode="describe-plus")
    with pytest.raises(UsageError, match="says nothing"):
        open_predictor("nano").reply(image, "[SEG]")


def test_16_bit_images_are_read_as_the_option_says(tmp_path: Path) -> None:
    deep = np.full((40, 40), 1000, np.uint16)
    deep[10:20, 10:20] = 3000
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep)
    twelve, sixteen = (open_predictor("nano", bits=bits).predict(tmp_path / "deep.png")[0] for bits in (12, 16))
    assert np.abs(twelve - sixteen).max() > 1e-4


def test_every_option_of_the_command_reaches_a_checkpoint(tmp_path: Path, picture: Path) -> None:
    for kind in ("good", "scratch"):
        (tmp_path / "sets/parts/plate/test" / kind).mkdir(parents=True)
        (tmp_path / "sets/parts/plate/test" / kind / "0.png").write_bytes(picture.read_bytes())
    mask = np.zeros((200, 240), np.uint8)
    cv2.line(mask, (40, 60), (180, 120), 255, 4)
    (tmp_path / "sets/parts/plate/ground_truth/scratch").mkdir(parents=True)
    assert cv2.imwrite(str(tmp_path / "sets/parts/plate/ground_truth/scratch/0_mask.png"), mask)
    (tmp_path / "looks.json").write_text(json.dumps({"plate": LOOK}))
    out = tmp_path / "out"
    base = ["--predictor", "checkpoint", "--model", "nano", "--data", tmp_path / "sets", "--out", out, "--quiet"]
    torch.set_num_threads(1)
    for options in (
        ["--threshold", "0.3", "--alpha", "0.7", "--precision", "bf16", "--bits", "12", "--prompt", "Segment the scratch."],
        ["--strict"],
        ["--mode", "describe-plus", "--normal-looks", tmp_path / "looks.json"],
        ["--generate"],
    ):
        words = [str(word) for word in (*base, *options)]
        assert exit_code_of(lambda: evaluate, name="agvas eval", arguments=words) == 0, options
    result = json.loads((out / "result.json").read_text())
    (category,) = result["sets"][0]["categories"]
    assert 0 <= category["answers_with_anchors"] <= 1 and all(one["answer"] for one in category["per_image"])
    assert any("generated answers have anchors" in note for note in result["notes"]) and result["answers"] == "generated"
