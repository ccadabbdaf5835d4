"""A bundle appears whole and verified, or not at all."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import BundleError, OutputError, ParityError, SetupError, UsageError
from agvas_core.contract.manifest import MANIFEST_NAME, read_manifest, sha256_of, verify_files
from agvas_core.contract.prompts import FIXED_ANSWER, QWEN_CHAT
from agvas_core.model.weights.checkpoint import Checkpoint, load_checkpoint
from agvas_export.bundle import (
    check_tokenizer,
    export_bundle,
    prompt_of,
    refuse_if_taken,
    written_whole,
)
from agvas_export.cli import app
from agvas_export.parity import compare
from agvas_export.source import read_checkpoint
from agvas_runtime.bundle import load_bundle


class Stop(Exception):
    """Somebody pulls the plug."""


def stop_at(step: str) -> None:
    raise Stop(step)


def test_the_runtime_accepts_what_export_wrote(exported_folder: Path) -> None:
    bundle = load_bundle(exported_folder)
    assert bundle.manifest.prompt.answer == FIXED_ANSWER and bundle.manifest.prompt.chat == QWEN_CHAT
    assert bundle.manifest.files.keys() == {path.name for path in exported_folder.iterdir()} - {MANIFEST_NAME}


def test_the_manifest_says_what_may_vary(exported_folder: Path) -> None:
    manifest = read_manifest(exported_folder)
    shapes = {spec.name: spec.shape for graph in manifest.graphs.values() for spec in graph.inputs}
    assert shapes == {
        "semantic_image": ("batch", 64, 64, 3),
        "pixel_image": ("batch", "height", "width", 3),
        "f_s": ("batch", "semantic", 32),
        "f_align": ("batch", "aligned", 32),
        "ids_before": ("batch", "before"),
        "ids_after": ("batch", "after"),
        "anchor_positions": ("batch", 3),
        "logit_positions": ("batch", "asked"),
        "past_key_values": (2, 2, "batch", 2, "past", 8),
        "anchor_states": ("batch", 3, 32),
        "f_p": ("batch", 32, "height/8", "width/8"),
        "f_detail": ("batch", 8, "height/2", "width/2"),
    }
    assert manifest.decoder.outputs[0].shape == ("batch", 3, "height/2", "width/2")


def test_provenance_leads_back_to_the_weights(exported_folder: Path, tiny_checkpoint_folder: Path) -> None:
    provenance = read_manifest(exported_folder).provenance
    assert provenance["checkpoint"] == {"name": "tiny", "sha256": sha256_of(tiny_checkpoint_folder / "model.safetensors")}
    assert provenance["training"]["images"] == 240 and provenance["training"]["seed"] == 7
    assert {"agvas", "torch", "transformers", "onnx", "onnxscript", "onnxruntime"} <= provenance["versions"].keys()
    assert provenance["licence"] == {"software": "Apache-2.0", "weights": "Apache-2.0"}
    assert str(tiny_checkpoint_folder.parent) not in (exported_folder / MANIFEST_NAME).read_text()


def test_every_graph_says_what_it_is_part_of(exported_folder: Path) -> None:
    manifest = read_manifest(exported_folder)
    for path in exported_folder.glob("*.onnx"):
        facts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert facts["model"] == manifest.name and facts["graph"] == path.stem
        assert json.loads(facts["decision"]) == manifest.decision.model_dump(mode="json")
        assert json.loads(facts["pixel_view"])["size_px"] == manifest.pixel_view.size_px
        assert json.loads(facts["classes"]) == ["anomaly"] and json.loads(facts["licence"])["weights"] == "Apache-2.0"


def test_the_provenance_says_what_was_compared(exported_folder: Path) -> None:
    parity = read_manifest(exported_folder).provenance["comparison"]
    compared = {each["tensor"] for each in parity["comparisons"]}
    vision = {"f_s", "f_align", "f_p", "f_detail", "trunk_8", "trunk_16"}
    words = {"anchor_states", "text_logits", "present_key_values", "accept"}
    assert compared == vision | words | {"last_state", "last_text_logits", "logits", "probability"}
    assert all(0 <= each["error"] <= each["tolerance"] for each in parity["comparisons"])
    assert parity["frames"] >= 4 and parity["mask_pixels"] > 10_000


@pytest.mark.parametrize("name", ["vision.onnx", "lmm.onnx", "decoder.onnx", "tokenizer.json"])
def test_one_changed_byte_is_refused_at_load(exported_folder: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(exported_folder, tmp_path / "changed")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        load_bundle(folder)


@pytest.mark.parametrize("graph", ["vision", "lmm", "decoder"])
def test_one_perturbed_weight_is_a_parity_error(
    exported_folder: Path, tiny_checkpoint: Checkpoint, tmp_path: Path, graph: str
) -> None:
    folder = shutil.copytree(exported_folder, tmp_path / "perturbed")
    model = onnx.load(folder / f"{graph}.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(weight).copy()
    values[np.unravel_index(np.abs(values).argmax(), values.shape)] *= 1.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, folder / f"{graph}.onnx")
    with pytest.raises(ParityError, match=rf"{graph}\.onnx: .* is off by"):
        compare(folder, read_manifest(folder), tiny_checkpoint)


def test_a_parity_error_ends_the_command_with_4() -> None:
    assert ParityError.exit_code == 4


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = exit_code_of(lambda: app, name="agvas-export", arguments=["bundle", str(tmp_path), "-o", str(tmp_path / "out")])
    assert code == 2
    assert re.search(r"lacks config\.json.*not a checkpoint", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_refused(tiny_checkpoint_folder: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(tiny_checkpoint_folder, tmp_path / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SetupError, match="damaged"):
        export_bundle(damaged, tmp_path / "out")


def test_the_bundled_checkpoint_is_exported_by_its_name_and_the_bundled_bundle_came_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source, sha256 = read_checkpoint("nano")
    assert source.config.name == "nano"
    assert load_bundle("nano").manifest.provenance["checkpoint"] == {"name": "nano", "sha256": sha256}


def test_weights_that_change_while_they_are_read_are_refused(
    tiny_checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training writes its checkpoint every few minutes; the digest in the manifest must be of the weights in the graphs."""
    folder = shutil.copytree(tiny_checkpoint_folder, tmp_path / "training")

    def load_then_save(path: Path, merged: bool = True) -> Checkpoint:
        checkpoint = load_checkpoint(path, merged=merged)
        (path / "model.safetensors").write_bytes(b"the next ones")
        return checkpoint

    monkeypatch.setattr("agvas_export.source.load_checkpoint", load_then_save)
    with pytest.raises(SetupError, match="changed while it was read"):
        export_bundle(folder, tmp_path / "out")


def test_a_tokenizer_with_other_anchors_is_refused(tiny_checkpoint_folder: Path, tmp_path: Path) -> None:
    foreign = shutil.copytree(tiny_checkpoint_folder, tmp_path / "foreign")
    config = json.loads((foreign / "config.json").read_text())
    config["lmm"]["anchor_ids"] = [5, 4, 6]
    (foreign / "config.json").write_text(json.dumps(config))
    with pytest.raises(SetupError, match=r"\[NOR\]"):
        export_bundle(foreign, tmp_path / "out")


def test_a_name_that_could_leave_the_folder_is_refused(tiny_checkpoint_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.\./nano"):
        export_bundle(tiny_checkpoint_folder, tmp_path / "out", name="../nano")


def test_a_bundle_of_any_age_may_be_overwritten_and_nothing_else(exported_folder: Path, tmp_path: Path) -> None:
    table = json.loads((exported_folder / MANIFEST_NAME).read_text())
    for change in ({}, {"schema_version": 1}, {"schema_version": 999}):
        (tmp_path / MANIFEST_NAME).write_text(json.dumps(table | change))
        refuse_if_taken(tmp_path, overwrite=True)
    for others in ('{"schema_version": 1}', '{"schema_version": 2, "files": {}}', "[]"):
        (tmp_path / MANIFEST_NAME).write_text(others)
        with pytest.raises(UsageError, match="holds no bundle"):
            refuse_if_taken(tmp_path, overwrite=True)


def test_an_answer_that_begins_like_the_refusal_is_refused(tiny_checkpoint: Checkpoint) -> None:
    prompt = prompt_of(tiny_checkpoint.config)
    check_tokenizer(tiny_checkpoint, prompt)
    with pytest.raises(SetupError, match="with the same token"):
        check_tokenizer(tiny_checkpoint, prompt.model_copy(update={"refusal": "Sure, there is none."}))


def test_a_folder_with_something_in_it_is_not_touched(tiny_checkpoint_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match="--overwrite"):
        export_bundle(tiny_checkpoint_folder, tmp_path)
    with pytest.raises(UsageError, match="holds no bundle"):
        export_bundle(tiny_checkpoint_folder, tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_an_interrupted_export_leaves_nothing(tiny_checkpoint_folder: Path, tmp_path: Path) -> None:
    def progress(step: str) -> None:
        if "vision" in step:
            stop_at(step)

    with pytest.raises(Stop):
        export_bundle(tiny_checkpoint_folder, tmp_path / "out", progress=progress)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_overwrite_keeps_the_old_bundle(exported_folder: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(exported_folder, tmp_path / "out"))
    with pytest.raises(Stop), written_whole(out, overwrite=True) as folder:
        (folder / "half").write_bytes(b"written")
        stop_at("half way")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    verify_files(out, read_manifest(out))


def test_overwriting_replaces_the_whole_bundle(exported_folder: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(exported_folder, tmp_path / "out"))
    with written_whole(out, overwrite=True) as folder:
        (folder / "new").write_bytes(b"whole")
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_fills_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError), written_whole(out, overwrite=False):
        out.mkdir()
        (out / "theirs").write_bytes(b"")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_and_a_new_one_are_fine(tmp_path: Path) -> None:
    refuse_if_taken(tmp_path, overwrite=False)
    refuse_if_taken(tmp_path / "new", overwrite=False)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="not a folder"):
        refuse_if_taken(tmp_path / "file", overwrite=True)


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"), written_whole(tmp_path / "file" / "out", overwrite=False):
        pass
