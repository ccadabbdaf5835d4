"""``agvas synth`` writes what the evaluation reads, and never into somebody's folder."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from agvas_core.contract.errors import UsageError
from agvas_core.data.synthetic.captions import describe
from agvas_core.data.synthetic.cli import check_empty, parse_families, parse_size, synth
from agvas_core.data.synthetic.synthesis import DEFAULT_SPEC, HELD_OUT_FAMILIES, synthesize

app = typer.Typer()
app.command()(synth)


def test_the_folder_has_the_mvtec_layout_and_the_same_content_as_python(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "set"), "--count", "8", "--seed", "2", "--size", "160x100", "--start", "3"])
    assert result.exit_code == 0, result.output
    entries = json.loads((tmp_path / "set" / "meta_synthetic.json").read_text())
    assert len(entries) == 8
    for position, entry in enumerate(entries):
        sample = synthesize(2, 3 + position, (100, 160))
        image = cv2.imread(str(tmp_path / "set" / entry["img_path"]))
        assert np.array_equal(image[..., ::-1], sample.image)
        assert entry["category"] == "synthetic" and entry["caption"] == describe(sample.defects)
        assert entry["anomaly"] == int(bool(sample.defects)) == int("mask_path" in entry)
        if sample.defects:
            mask = cv2.imread(str(tmp_path / "set" / entry["mask_path"]), cv2.IMREAD_GRAYSCALE)
            assert np.array_equal(mask > 0, sample.mask) and set(np.unique(mask)) <= {0, 255}
            assert Path(entry["mask_path"]).parent.name == entry["specie"] == Path(entry["img_path"]).parent.name
        else:
            assert entry["specie"] == "good"


def test_a_folder_with_content_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    result = CliRunner().invoke(app, [str(tmp_path), "--count", "1"])
    assert isinstance(result.exception, UsageError)
    assert "holds 1 entries" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UsageError, match="is a file"):
        check_empty(tmp_path / "mine.txt")


@pytest.mark.parametrize("text", ["256", "256x", "x256", "-1x20", "256*256", "2.5x3"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="WIDTHxHEIGHT"):
        parse_size(text)


def test_size_is_width_by_height() -> None:
    assert parse_size("640X480") == (640, 480)


def test_a_size_out_of_bounds_writes_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [str(tmp_path / "set"), "--size", "20x20"])
    assert isinstance(result.exception, UsageError)
    assert not (tmp_path / "set").exists()


def test_families_that_training_never_shows_can_be_drawn_alone(tmp_path: Path) -> None:
    one = CliRunner().invoke(app, [str(tmp_path / "set"), "--count", "2", "--families", "wood", "--quiet"])
    assert one.exit_code == 0, one.output
    spec = DEFAULT_SPEC.model_copy(update={"families": ("wood",)})
    for position, entry in enumerate(json.loads((tmp_path / "set" / "meta_synthetic.json").read_text())):
        image = cv2.imread(str(tmp_path / "set" / entry["img_path"]))[..., ::-1]
        assert np.array_equal(image, synthesize(0, position, (256, 256), spec).image)
    assert parse_families("held-out") == HELD_OUT_FAMILIES


def test_an_unknown_family_is_named_beside_those_that_are_known() -> None:
    with pytest.raises(UsageError, match=r"'wod'.*wood, or held-out"):
        parse_families("wood,wod")
