"""A product is whole or not there, and one that is not whole is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agvas.fitting import write
from agvas.fitting.fit import Fitted
from agvas_core.contract.errors import BundleError, OutputError, UsageError
from agvas_core.contract.manifest import read_manifest, sha256_of, write_manifest
from agvas_core.contract.product import FORMAT
from agvas_runtime import Segmenter
from agvas_runtime.bundle import load_bundle

QuickFit = Callable[..., Fitted]


@pytest.fixture
def copy(fitted: Fitted, tmp_path: Path) -> Path:
    """A product to spoil."""
    return Path(shutil.copytree(fitted.bundle.folder, tmp_path / "copy"))


def left(folder: Path) -> list[str]:
    """Names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["bank.npy", "product.json", "report.html", "references.onnx"])
def test_a_missing_or_changed_file_is_refused(copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(copy)
    (copy / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=name):
        load_bundle(copy)


def rewrite(folder: Path, **changes: object) -> None:
    """Changes product.json, and its hash with it."""
    raw = json.loads((folder / "product.json").read_text()) | changes
    (folder / "product.json").write_text(json.dumps(raw))
    manifest = read_manifest(folder)
    files = manifest.files | {"product.json": sha256_of(folder / "product.json")}
    write_manifest(folder, manifest.model_copy(update={"files": files}))


def test_a_product_of_another_version_is_refused(copy: Path) -> None:
    rewrite(copy, format=FORMAT + 1)
    with pytest.raises(BundleError, match="upgrade"):
        load_bundle(copy)
    rewrite(copy, format=1, unknown=3)
    with pytest.raises(BundleError, match="unknown"):
        load_bundle(copy)


def test_an_older_agvas_refuses_it_in_words(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    assert manifest["schema_version"] > 2  # which f8d8526 answers with: pip install --upgrade agvas


def test_a_bank_of_another_shape_is_refused(copy: Path) -> None:
    np.save(copy / "bank.npy", np.zeros((3, 6), np.float32))
    manifest = read_manifest(copy)
    files = manifest.files | {"bank.npy": sha256_of(copy / "bank.npy")}
    write_manifest(copy, manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleError, match=r"bank\.npy"):
        Segmenter.load(copy)


def test_a_zipped_product_opens(copy: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "product"), "zip", copy)
    assert load_bundle(archive).product is not None


def test_a_full_disk_leaves_the_earlier_product(
    quick_fit: QuickFit, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = quick_fit(good, tmp_path / "p").bundle.identity

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.np, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        quick_fit(good, tmp_path / "p", max_images=3)
    assert load_bundle(tmp_path / "p").identity == before and left(tmp_path) == ["p"]


@pytest.mark.parametrize("step", ["good images", "painting", "writing"])
def test_an_interrupted_fit_leaves_the_earlier_product(quick_fit: QuickFit, good: Path, tmp_path: Path, step: str) -> None:
    before = quick_fit(good, tmp_path / "p").bundle.identity

    def interrupt(name: str, done: int, total: int) -> None:
        if name == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick_fit(good, tmp_path / "p", progress=interrupt)
    assert load_bundle(tmp_path / "p").identity == before and left(tmp_path) == ["p"]


def test_an_interrupt_between_the_renames_puts_the_earlier_one_back(
    quick_fit: QuickFit, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = quick_fit(good, tmp_path / "p").bundle.identity
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name.endswith(".part"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick_fit(good, tmp_path / "p", max_images=3)
    assert load_bundle(tmp_path / "p").identity == before and left(tmp_path) == ["p"]


def test_other_folders_are_not_replaced(quick_fit: QuickFit, good: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for out in (tmp_path / "full", good, base):
        with pytest.raises(UsageError):
            quick_fit(good, out)
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="--add"):
        quick_fit(good, tmp_path / "new", add=True)
    with pytest.raises(BundleError):
        quick_fit(good, tmp_path / "full", add=True)


def test_a_bundle_without_the_graph_says_so(quick_fit: QuickFit, good: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="references"):
        quick_fit(good, tmp_path / "p", model=tiny_bundle)


PROGRAM = "from agvas.fitting.cli import fit; from agvas_core.contract.command_line import run_command; run_command(lambda: fit, name='agvas fit')"


def command(*arguments: object) -> list[str]:
    """The command line of ``agvas fit``."""
    return [sys.executable, "-c", PROGRAM, *map(str, arguments)]


def test_the_command(good: Path, base: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(good, "-o", tmp_path / "p", "--model", base, "-v", "--threads", 1), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "12 good parts" in done.stdout and "painting" in done.stdout and str(tmp_path / "p" / "report.html") in done.stdout
    asked = command(good, "-o", tmp_path / "q", "--model", base, "--max-false-reject", 0.01, "--threads", 1, "-q")
    short = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    assert short.returncode == 4 and "287 more" in short.stderr and short.stdout == ""
    assert load_bundle(tmp_path / "q").product is not None
    wrong = subprocess.run(
        command(tmp_path / "none", "-o", tmp_path / "r", "--model", base), capture_output=True, text=True, timeout=60
    )
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr


def test_ctrl_c_ends_the_command(good: Path, base: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(good, "-o", tmp_path / "p", "--model", base, "--threads", 1), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("painting"):
            os.kill(process.pid, signal.SIGINT)
            break
    assert process.wait(60) == 130
    process.stderr.close()
    assert left(tmp_path) == []
