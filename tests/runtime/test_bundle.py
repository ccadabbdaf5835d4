"""A bundle that is not whole, not ours or not there is refused before anything in it is opened."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from agvas_core.contract.errors import BundleError, UsageError
from agvas_core.contract.manifest import MANIFEST_NAME, sha256_of
from agvas_runtime.bundle import find_bundle, load_bundle


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def zipped(folder: Path, archive: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.iterdir():
            file.write(path, prefix + path.name)
    return archive


def test_a_whole_bundle_is_known_by_its_manifest(tiny_bundle: Path) -> None:
    bundle = load_bundle(tiny_bundle)
    assert bundle.folder == tiny_bundle
    assert bundle.identity == f"tiny@{sha256_of(tiny_bundle / MANIFEST_NAME)[:12]}"


def test_an_unknown_model_is_a_usage_error_that_tells_what_to_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / MANIFEST_NAME).write_text("{}")
    monkeypatch.setattr("agvas_runtime.bundle.BUNDLED", tmp_path)
    with pytest.raises(UsageError, match=r"'nanno'.*did you mean nano.*bundled are nano.*folder"):
        find_bundle("nanno")
    assert find_bundle("nano") == tmp_path / "nano"


def test_a_file_that_is_no_bundle_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(UsageError, match="agvas-export bundle"):
        find_bundle(tmp_path / "model.onnx")


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="agvas-export bundle"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["vision.onnx", "lmm.onnx", "decoder.onnx", "tokenizer.json"])
def test_a_missing_file_is_refused(bundle_copy: Path, name: str) -> None:
    (bundle_copy / name).unlink()
    with pytest.raises(BundleError, match=f"lacks {name}"):
        load_bundle(bundle_copy)


@pytest.mark.parametrize("name", ["vision.onnx", "tokenizer.json"])
def test_a_changed_file_is_refused(bundle_copy: Path, name: str) -> None:
    with (bundle_copy / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(BundleError, match="sha256"):
        load_bundle(bundle_copy)


def test_a_newer_schema_is_refused_with_the_command_that_mends_it(bundle_copy: Path) -> None:
    rewrite(bundle_copy, schema_version=999)
    with pytest.raises(BundleError, match=r"schema 999.*pip install --upgrade agvas"):
        load_bundle(bundle_copy)


def test_a_bundle_from_before_the_cache_is_refused_with_the_command_that_mends_it(bundle_copy: Path) -> None:
    rewrite(bundle_copy, schema_version=1)
    with pytest.raises(BundleError, match=r"schema 1, .* reads 2 to 4: export the bundle again with agvas-export bundle"):
        load_bundle(bundle_copy)


def test_an_unknown_field_is_refused(bundle_copy: Path) -> None:
    rewrite(bundle_copy, thresold=0.5)
    with pytest.raises(BundleError, match="thresold"):
        load_bundle(bundle_copy)


def test_a_path_out_of_the_bundle_is_refused(bundle_copy: Path) -> None:
    files = json.loads((bundle_copy / MANIFEST_NAME).read_text())["files"]
    rewrite(bundle_copy, files={**files, "../outside": "0" * 64})
    with pytest.raises(BundleError, match="outside the bundle"):
        load_bundle(bundle_copy)


@pytest.mark.parametrize("name", ["C:\\outside", "..\\outside", "a" * 5000])
def test_a_name_that_no_bundle_has_is_refused(bundle_copy: Path, name: str) -> None:
    files = json.loads((bundle_copy / MANIFEST_NAME).read_text())["files"]
    rewrite(bundle_copy, files={**files, name: "0" * 64})
    with pytest.raises(BundleError):
        load_bundle(bundle_copy)


def test_a_file_that_the_manifest_does_not_list_is_refused(bundle_copy: Path) -> None:
    # A graph may keep its weights beside it, where another file of that name would be another model under the same identity.
    (bundle_copy / "weights").mkdir()
    (bundle_copy / "weights/decoder.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"weights/decoder.bin, which its manifest does not list: remove it"):
        load_bundle(bundle_copy)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema_version": ' + "9" * 5000 + "}", '{"schema_version": true}', "\udcff"])
def test_a_manifest_that_is_no_sensible_json_is_refused(bundle_copy: Path, text: str) -> None:
    (bundle_copy / MANIFEST_NAME).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError, match="copy or export the bundle again"):
        load_bundle(bundle_copy)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("pixel_view", "size_px", 10**9),
        ("pixel_view", "multiple_px", 10**9),
        ("semantic_view", "size_px", 10**30),
        ("pixel_view", "max_aspect", float("inf")),
        ("pixel_view", "max_upscale", float("inf")),
        ("semantic_view", "mean", [float("nan")] * 3),
        ("semantic_view", "std", [0.0] * 3),
        ("semantic_view", "std", [float("inf")] * 3),
        ("decision", "operating_points", {"balanced": {"threshold": float("nan")}}),
        ("decision", "alpha", float("nan")),
        ("tiling", "max_downscale", float("inf")),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(bundle_copy: Path, part: str, field: str, value: object) -> None:
    raw = json.loads((bundle_copy / MANIFEST_NAME).read_text())[part]
    rewrite(bundle_copy, **{part: {**raw, field: value}})
    with pytest.raises(BundleError, match=f"{part}.{field}"):
        load_bundle(bundle_copy)


def test_graphs_that_do_not_fit_each_other_are_refused(bundle_copy: Path) -> None:
    decoder = json.loads((bundle_copy / MANIFEST_NAME).read_text())["decoder"]
    decoder["inputs"][1]["name"] = "f_q"
    rewrite(bundle_copy, decoder=decoder)
    with pytest.raises(BundleError, match=r"decoder graph takes f_q.*nothing of that name"):
        load_bundle(bundle_copy)


def test_a_manifest_without_a_joint_is_refused(bundle_copy: Path) -> None:
    lmm = json.loads((bundle_copy / MANIFEST_NAME).read_text())["lmm"]
    lmm["inputs"] = [spec for spec in lmm["inputs"] if spec["name"] != "anchor_positions"]
    rewrite(bundle_copy, lmm=lmm)
    with pytest.raises(BundleError, match="lmm graph lacks anchor_positions"):
        load_bundle(bundle_copy)


@pytest.mark.parametrize("prefix", ["", "tiny/"])
def test_a_zip_is_the_same_bundle(tiny_bundle: Path, tmp_path: Path, prefix: str) -> None:
    assert load_bundle(zipped(tiny_bundle, tmp_path / "tiny.zip", prefix)).identity == load_bundle(tiny_bundle).identity


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "..\\evil", "C:/evil"])
def test_a_zip_that_reaches_outside_is_refused(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    archive = zipped(tiny_bundle, tmp_path / "tiny.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, "x")
    with pytest.raises(BundleError, match="outside the bundle"):
        load_bundle(archive)


def test_a_zip_too_large_or_damaged_is_refused(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(tiny_bundle, tmp_path / "tiny.zip")
    monkeypatch.setattr("agvas_runtime.bundle.MAX_ZIP_BYTES", 1000)
    with pytest.raises(BundleError, match="unpack it yourself"):
        load_bundle(archive)
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(BundleError, match="cannot be unpacked"):
        load_bundle(archive)


@pytest.mark.parametrize("name", ["a" * 300, "vision.onnx/inside"])
def test_a_zip_with_names_that_cannot_be_unpacked_is_refused(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    archive = zipped(tiny_bundle, tmp_path / "tiny.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, "x")
    with pytest.raises(BundleError, match="cannot be unpacked"):
        load_bundle(archive)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_with_damaged_contents_is_refused(tiny_bundle: Path, tmp_path: Path, method: int) -> None:
    archive = tmp_path / "tiny.zip"
    with zipfile.ZipFile(archive, "w", method) as file:
        file.write(tiny_bundle / "vision.onnx", "vision.onnx")
    damaged = bytearray(archive.read_bytes())
    damaged[60:300] = bytes(byte ^ 0x55 for byte in damaged[60:300])
    archive.write_bytes(damaged)
    with pytest.raises(BundleError, match="cannot be unpacked"):
        load_bundle(archive)


def test_a_name_too_long_for_a_path_is_no_model() -> None:
    with pytest.raises(UsageError, match="there is no model"):
        find_bundle("a" * 5000)
