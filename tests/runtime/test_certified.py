"""What a run says of its bundle's certificate: one line, a warning where it says little about this machine."""

import logging
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agvas_core.contract.certificate import PARITY_NAME, BackendParity, Certificate, data_digest, write_certificate
from agvas_core.contract.gpu import Hardware, this_machine
from agvas_core.contract.manifest import MANIFEST_NAME, sha256_of
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
    ("changes", "words"),
    [
        ({"hardware": HERE.model_copy(update={"cpu": "Model B"})}, "elsewhere, on Model B; this is Model A: agvas-export check"),
        ({"hardware": HERE.model_copy(update={"gpus": ("A100",)})}, "elsewhere, on Model A, A100"),
        ({"manifest_sha256": "f" * 64}, "another bundle's"),
        ({"passed": False}, "FAILED on onnx"),
    ],
)
def test_one_that_says_little_about_this_run_is_a_warning(bundle: Bundle, changes: dict[str, Any], words: str) -> None:
    certify(bundle, **changes)
    note = note_on_parity(bundle, now=NOW, here=HERE)
    assert note.level == logging.WARNING and words in note.text and "\n" not in note.text


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
