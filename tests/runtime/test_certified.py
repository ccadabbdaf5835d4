"""What a run says of its bundle's certificate: one line, a warning where it says little about this machine."""

import logging
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from agvas.run import run
from agvas_core.contract.certificate import PARITY_NAME, BackendParity, Certificate, data_digest, write_certificate
from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.gpu import Hardware, this_machine
from agvas_core.contract.manifest import MANIFEST_NAME, sha256_of, write_manifest
from agvas_runtime.bundle import Bundle, load_bundle, note_on_parity

NOW = datetime(2026, 6, 10, tzinfo=UTC)
HERE = Hardware(system="Linux x86_64", cpu="Model A")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    return load_bundle(shutil.copytree(tiny_bundle, tmp_path / "tiny"))


def certify(bundle: Bundle, **changes: Any) -> None:
    engine = BackendParity(
        backend="onnx",
        device="CPU",
        versions={},
        joints=(),
        first_wrong=None,
        min_mask_iou=1.0,
        mean_mask_iou=1.0,
        flips=(),
        seconds=1.0,
        passed=changes.get("passed", True),
    )
    facts: dict[str, Any] = {
        "created": NOW - timedelta(days=3),
        "bundle": "tiny",
        "manifest_sha256": sha256_of(bundle.folder / MANIFEST_NAME),
        "precision": "fp32",
        "reference": "torch",
        "hardware": HERE,
        "versions": {},
        "instruction": "Please segment the anomalies in this image.",
        "images": 12,
        "data": ("0" * 64,),
        "data_sha256": data_digest(["0" * 64]),
        "max_verdict_flips": 0,
        "min_mask_iou": 0.99,
        "backends": (engine,),
        "passed": True,
    }
    write_certificate(bundle.folder / PARITY_NAME, Certificate(**facts | changes))


def test_one_made_here_is_told_with_its_age_and_changes_no_identity(bundle: Bundle) -> None:
    certify(bundle)
    note = note_on_parity(bundle, now=NOW, here=HERE)
    assert note.level == logging.INFO and "\n" not in note.text
    assert "0 of 12 verdicts flipped, made 3 days ago, on this machine (Model A)" in note.text
    assert load_bundle(bundle.folder).identity == bundle.identity


@pytest.mark.parametrize(
    ("changes", "words", "level"),
    [
        # What every user of a shipped bundle has is no warning.
        (
            {"hardware": HERE.model_copy(update={"cpu": "Model B"})},
            "on Model B; this is Model A: agvas-export check",
            logging.INFO,
        ),
        ({"hardware": HERE.model_copy(update={"gpus": ("A100",)})}, "elsewhere, on Model A, A100", logging.INFO),
        ({"manifest_sha256": "f" * 64}, "another bundle's", logging.WARNING),
        ({"passed": False}, "FAILED on onnx", logging.WARNING),
    ],
)
def test_one_that_does_not_hold_is_a_warning(bundle: Bundle, changes: dict[str, Any], words: str, level: int) -> None:
    certify(bundle, **changes)
    note = note_on_parity(bundle, now=NOW, here=HERE)
    assert note.level == level and words in note.text and "\n" not in note.text


@pytest.mark.parametrize("options", [(), ("-v",), ("--quiet",)])
@pytest.mark.parametrize("passed", [True, False])
def test_a_run_tells_of_it_if_something_is_wrong_or_with_verbose(
    bundle: Bundle, passed: bool, options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certify(bundle, passed=passed)
    cv2.imwrite(str(tmp_path / "part.png"), np.full((32, 32, 3), 128, np.uint8))
    arguments = [str(tmp_path / "part.png"), "--model", str(bundle.folder), "--save", "none", "--threads", "1", *options]
    assert exit_code_of(lambda: run, name="agvas run", arguments=arguments) == 0
    told = "agvas run: parity of tiny" in capsys.readouterr().err
    assert told == ("--quiet" not in options and ("-v" in options or not passed))


@pytest.mark.parametrize("follows_words", [True, False])
@pytest.mark.parametrize("mode", ["direct", "describe"])
def test_a_run_says_so_where_words_do_not_fit_the_picture(
    bundle: Bundle, mode: str, follows_words: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = bundle.manifest.prompt.model_copy(update={"follows_words": follows_words})
    write_manifest(bundle.folder, bundle.manifest.model_copy(update={"prompt": prompt}))
    cv2.imwrite(str(tmp_path / "part.png"), np.full((32, 32, 3), 128, np.uint8))
    arguments = [str(tmp_path / "part.png"), "--model", str(bundle.folder), "--save", "none", "--threads", "1", "--mode", mode]
    assert exit_code_of(lambda: run, name="agvas run", arguments=arguments) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "do not fit the picture" in line]
    assert len(told) == (mode == "describe" and not follows_words)
    assert all("--mode describe" in line and "docs/training.md" in line for line in told)


def test_a_missing_or_damaged_one_is_a_warning(bundle: Bundle) -> None:
    assert "no parity certificate" in note_on_parity(bundle).text
    (bundle.folder / PARITY_NAME).write_text("{")
    note = note_on_parity(bundle)
    assert note.level == logging.WARNING and "cannot be read" in note.text


def test_the_machine_is_read_without_a_driver(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some  CPU @ 2 GHz\n")
    card = tmp_path / "gpus/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t NVIDIA H100\nIRQ: 1\n")
    machine = this_machine(tmp_path / "cpuinfo", tmp_path / "gpus")
    assert (machine.cpu, machine.gpus) == ("Some CPU @ 2 GHz", ("NVIDIA H100",))
    assert this_machine(tmp_path / "none", tmp_path / "none").cpu
