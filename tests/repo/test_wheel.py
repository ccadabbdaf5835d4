"""The wheel, in a clean environment without torch, does the main job with the bundled model.

These build from a copy of what git holds, so that a file left out of a commit is missed here and not by the first user.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest

from agvas_core import __version__
from agvas_core.contract.manifest import MANIFEST_NAME

pytestmark = pytest.mark.slow

PACKAGES = {
    "agvas_core": "agvas_core",
    "export/agvas_export": "agvas_export",
    "runtime/agvas_runtime": "agvas_runtime",
    "runtime/agvas": "agvas",
}
"""Folder in the repository -> folder in the wheel."""
NANO = PurePosixPath("agvas_runtime/bundles/nano")
RECIPES = PurePosixPath("agvas_export/trt_engines")
NOT_SHIPPED = {"csrc"}
IMPORT_ALL = """
import importlib, pkgutil, sys
from agvas_core.contract.command_line import EXTRA_OF_PACKAGE
for top in ("agvas_runtime", "agvas_core.contract"):
    for found in pkgutil.walk_packages(importlib.import_module(top).__path__, top + "."):
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in EXTRA_OF_PACKAGE:
                raise
"""


def _run(command: Sequence[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs outside the checkout and blind to it, so that only what was installed can be imported."""
    surroundings = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    return subprocess.run([str(part) for part in command], cwd=folder, env=surroundings, capture_output=True, text=True)


def _succeed(command: Sequence[str | Path], folder: Path) -> str:
    done = _run(command, folder)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(root: Path, files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the repository's files."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in files:
        (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, folder / "source" / path)
    _succeed([sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", folder / "source"], folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def members(wheel: Path) -> set[PurePosixPath]:
    """Names in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {PurePosixPath(name) for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of a clean environment that holds the wheel and its dependencies, nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    _succeed([sys.executable, "-m", "venv", folder / "venv"], folder)
    found = folder / "venv" / "bin"
    _succeed([found / "pip", "install", "--quiet", "--disable-pip-version-check", wheel], folder)
    return found


def test_the_wheel_bears_the_version_of_the_package(wheel: Path) -> None:
    assert wheel.name.split("-")[:2] == ["agvas", __version__]


def test_the_wheel_holds_the_packages_and_nothing_else(files: list[Path], members: set[PurePosixPath]) -> None:
    expected = {
        inside / path.relative_to(folder)
        for folder, inside in ((Path(key), PurePosixPath(value)) for key, value in PACKAGES.items())
        for path in files
        if path.is_relative_to(folder) and not NOT_SHIPPED & set(path.parts)
    }
    expected |= {RECIPES / path.name for path in files if path.parent == Path("trt_engines") and path.suffix == ".toml"}
    ours = {name for name in members if not name.parts[0].endswith(".dist-info") and not _is_native(name)}
    assert ours == expected


def test_the_wheel_holds_the_native_core(members: set[PurePosixPath]) -> None:
    assert len([name for name in members if _is_native(name)]) == 1


def _is_native(name: PurePosixPath) -> bool:
    return name.parent == PurePosixPath("agvas_runtime") and name.name.startswith("_native.") and name.suffix in {".so", ".dylib"}


def test_the_wheel_carries_what_is_not_python(members: set[PurePosixPath]) -> None:
    assert {PurePosixPath(package) / "py.typed" for package in PACKAGES.values()} <= members
    assert {NANO / MANIFEST_NAME, NANO / "tokenizer.json"} <= members
    assert any(name.parent == NANO and name.suffix == ".onnx" for name in members)
    assert any(name.parts[0] == "agvas_runtime" and ".html" in name.suffixes for name in members), "the report's template"
    assert any(name.name == "LICENSE" for name in members)


def test_the_recipes_of_engines_are_found_there(binaries: Path, tmp_path: Path) -> None:
    told = _succeed(
        [binaries / "python", "-c", "from agvas_export.trt.recipe import find_recipe; print(find_recipe('orin').gpus)"], tmp_path
    )
    assert "orin" in told


MAX_BASE_MB = 480


def test_the_base_install_stays_small(binaries: Path) -> None:
    """As `benchmarks/measure_install.sh` measures it, the empty environment included."""
    disk = subprocess.check_output(["du", "-sm", binaries.parent], text=True)
    assert int(disk.split()[0]) < MAX_BASE_MB


def test_the_wheel_s_description_and_fields_are_what_an_index_takes(wheel: Path) -> None:
    twine = pytest.importorskip("twine")
    assert twine is not None
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_base_install_leaves_torch_out(binaries: Path, tmp_path: Path) -> None:
    names = {entry["name"].lower() for entry in json.loads(_succeed([binaries / "pip", "list", "--format=json"], tmp_path))}
    assert "agvas" in names
    assert names.isdisjoint({"torch", "transformers", "accelerate", "peft", "onnx", "onnxscript", "safetensors", "matplotlib"})


def test_every_module_of_the_runtime_imports_there(binaries: Path, tmp_path: Path) -> None:
    _succeed([binaries / "python", "-W", "error", "-c", IMPORT_ALL], tmp_path)


def test_the_native_core_is_in_use_there(binaries: Path, tmp_path: Path) -> None:
    program = "from agvas_runtime import native; print(native.describe())"
    assert "not built" not in _succeed([binaries / "python", "-c", program], tmp_path)


def test_the_bundled_model_runs_there(root: Path, binaries: Path, tmp_path: Path) -> None:
    pictures = sorted((root / "examples/parts").iterdir())
    assert pictures, "examples/parts has no pictures"
    shutil.copytree(root / "examples/parts", tmp_path / "parts")
    _succeed([binaries / "agvas-run", "parts", "--out", "demo", "--save", "mask,overlay,jsonl,report"], tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "demo/results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(Path(line["name"]).name for line in lines) == [picture.name for picture in pictures]
    assert {line["verdict"] for line in lines} <= {"PASS", "FAIL"}, "every example can be judged"
    assert "<html" in (tmp_path / "demo/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["agvas", "train", "--preset", "nano"], "train"),
        (["agvas-export", "bundle", "checkpoint.safetensors", "-o", "bundle"], "export"),
    ],
)
def test_what_needs_torch_names_the_extra(binaries: Path, tmp_path: Path, command: list[str], extra: str) -> None:
    done = _run([binaries / command[0], *command[1:]], tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (3, []), done.stderr
    assert f"pip install 'agvas[{extra}]'" in done.stderr


def test_the_lowest_versions_of_every_dependency_run_the_demo(root: Path, wheel: Path, tmp_path: Path) -> None:
    listed = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    lowest = [line.replace(">=", "==") for line in listed]
    assert all(line.count("==") == 1 for line in lowest), lowest
    _succeed([sys.executable, "-m", "venv", tmp_path / "venv"], tmp_path)
    found = tmp_path / "venv" / "bin"
    _succeed([found / "pip", "install", "--quiet", "--disable-pip-version-check", wheel, *lowest], tmp_path)
    _succeed([found / "agvas-run", root / "examples" / "parts", "--out", tmp_path / "out"], tmp_path)
    lines = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["verdict"] for line in lines} == {"PASS", "FAIL"}
    _succeed([found / "agvas", "--help"], tmp_path)
