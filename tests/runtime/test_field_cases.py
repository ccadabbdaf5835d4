"""The inputs from the field in ../shared/cases, each by the command that a user would type; skipped where they are not there."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agvas.run import run as app
from agvas_core.contract.command_line import exit_code_of
from agvas_core.evaluation.cli import evaluate

CASES = Path(__file__).parents[3] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="needs the inputs from the field in ../shared/cases")

Judge = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def judge(tiny_bundle: Path, tmp_path: Path) -> Judge:
    """``judge(source, "--bits", 12)``: the lines of results.jsonl."""

    def call(source: object, *options: object) -> list[dict[str, Any]]:
        arguments = [source, "--model", tiny_bundle, "--out", tmp_path / "out", "--save", "jsonl", "--threads", 1, *options]
        exit_code_of(lambda: app, name="agvas-run", arguments=[str(argument) for argument in arguments])
        return [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]

    return call


def sizes(results: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(one["width"], one["height"]) for one in results if one["verdict"] != "NO_VERDICT"]


@pytest.mark.parametrize(
    "name",
    [
        "planar16.tif",
        "rgb_nir_unspecified.tif",
        "tiled_orientation6.tif",
        "exif_long_big_endian.jpg",
        "grey_trns.png",
        "reference.png",
    ],
)
def test_a_whole_picture_has_a_verdict_at_its_size(judge: Judge, name: str) -> None:
    assert sizes(judge(CASES / name)) == [(96, 64)]


def test_each_page_has_a_verdict_or_a_note(judge: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(judge(CASES / "three_pages.tif")) == 1
    assert "3 pages" in capsys.readouterr().out
    assert len(judge(CASES / "three_pages.tif", "--pages", "--overwrite")) == 3


def test_a_compression_is_read_or_named(judge: Judge) -> None:
    (result,) = judge(CASES / "zstd.tif")
    assert result["verdict"] != "NO_VERDICT" or "ZSTD" in result["error"]


@pytest.mark.parametrize("name", ["jpeg_gap_restart.jpg", "jpeg_block_overwritten.jpg", "flip_plate-crack.jpg"])
def test_a_damaged_jpeg_has_no_verdict(judge: Judge, name: str) -> None:
    (result,) = judge(CASES / name)
    assert result["verdict"] == "NO_VERDICT"


def test_twelve_bits_in_sixteen_are_hinted_at(judge: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    judge(CASES / "mono12_in_16.png")
    assert "--bits 12" in capsys.readouterr().out
    judge(CASES / "mono12_in_16.png", "--bits", 12, "--overwrite")
    assert "--bits 12" not in capsys.readouterr().out


def test_videos_have_each_frame_at_its_own_size(judge: Judge) -> None:
    assert sizes(judge(CASES / "size_change.ts")) == [(320, 240)] * 20 + [(640, 480)] * 20
    results = judge(CASES / "editlist.mp4", "--overwrite")
    assert len(results) == len(sizes(results)) == 24
    results = judge(CASES / "av1.mp4", "--overwrite")
    assert len(sizes(results)) == 30 or "codec" in results[-1]["error"]


def test_a_list_with_a_byte_order_mark_names_two_pictures(judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    (tmp_path / "in").mkdir()
    for suffix in ("png", "bmp"):
        cv2.imwrite(str(tmp_path / f"in/a8.{suffix}"), np.full((32, 48, 3), 200, np.uint8))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((CASES / "list_with_bom.txt").read_bytes())))
    assert sizes(judge("-")) == [(48, 32)] * 2


@pytest.mark.parametrize("name", ["jpgmask", "loco"])
def test_masks_of_other_kinds_are_read(name: str, tmp_path: Path, tiny_bundle: Path) -> None:
    maps = ["--predictions", CASES / "jpgmask/pred"] if name == "jpgmask" else ["--model", tiny_bundle]
    arguments = ["--data", CASES / name / "set", *maps, "--out", tmp_path / "out", "--jobs", 1]
    assert exit_code_of(lambda: evaluate, name="agvas", arguments=[str(each) for each in arguments]) == 0
    if name == "jpgmask":
        mean = json.loads((tmp_path / "out/result.json").read_text())["sets"][0]["mean"]
        assert mean["ap"] > 0.999


def test_cameras_give_four_pictures_each() -> None:
    names = [
        "digest_sha256_then_md5",
        "digest_sha256_only",
        "digest_md5sess",
        "redirect_auth",
        "ffmpeg_octet",
        "no_boundary_param",
        "no_ctype",
        "body_without_dashes",
        "text_parts",
        "xml_event_parts",
        "snapshot",
    ]
    said = subprocess.run(
        [sys.executable, str(CASES / "mjpeg_cameras.py"), *names], capture_output=True, text=True, timeout=300, check=True
    ).stdout
    found = {line.split()[0]: re.findall(r"'\((\d+), (\d+)\)': (\d+)", line) for line in said.splitlines()}
    assert set(found) == set(names)
    for name, seen in found.items():
        ((height, width, count),) = seen
        assert (height, width) == ("64", "96") and (int(count) == 4 or (name == "snapshot" and int(count) >= 4)), (name, seen)
