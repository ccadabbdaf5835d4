"""Promises about the files in the repository."""

import re
from pathlib import Path

import pytest

WEIGHTS = {".onnx", ".safetensors"}
MAX_FILE_MB = 2.0
MAX_WEIGHTS_MB = 45.0  # checkpoint and bundle together: what a package of a minute's install can carry
PICKLED = {".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}  # all of them can run code when loaded

# Folders of the machines this was written on, and places packages are fetched from; a reader has others.
MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:work|root|opt|tmp/w|home/\w+|Users/\w+)/")
REGISTRY = re.compile(
    r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|pypi\.nvidia\.com|pypi\.ngc\.nvidia\.com|registry\.npmjs\.org|deb\.debian\.org"
    r"|--(?:extra-)?index-url|--find-links|PIP_(?:EXTRA_)?INDEX_URL"
)


@pytest.fixture(scope="module")
def texts(root: Path, files: list[Path]) -> dict[Path, str]:
    """Every text file but this one, which has to name what it forbids."""
    found = {}
    for path in files:
        content = (root / path).read_bytes()
        if b"\0" not in content and root / path != Path(__file__).resolve():
            found[path] = content.decode("utf-8")
    return found


def _lines_with(pattern: re.Pattern[str], texts: dict[Path, str]) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()[:120]}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_only_weights_are_large(root: Path, files: list[Path]) -> None:
    sizes = {str(path): (root / path).stat().st_size / 1e6 for path in files if path.suffix not in WEIGHTS}
    assert {path: size for path, size in sizes.items() if size > MAX_FILE_MB} == {}


def test_the_weights_fit_into_a_package(root: Path, files: list[Path]) -> None:
    assert sum((root / path).stat().st_size for path in files if path.suffix in WEIGHTS) / 1e6 <= MAX_WEIGHTS_MB


def test_nothing_is_pickled(files: list[Path]) -> None:
    assert [str(path) for path in files if path.suffix in PICKLED] == []


def test_no_file_names_a_folder_of_one_machine(texts: dict[Path, str]) -> None:
    assert _lines_with(MACHINE_PATH, texts) == []


def test_no_file_names_a_registry(texts: dict[Path, str]) -> None:
    assert _lines_with(REGISTRY, texts) == []


def test_the_patterns_see_what_they_forbid() -> None:
    assert MACHINE_PATH.search("open('/home/ann/parts/1.png')")
    assert not MACHINE_PATH.search("see ../shared/work/notes.md, sites/root/page and rtsp://host/work/1")
    assert REGISTRY.search("pip install torch --index-url X")
