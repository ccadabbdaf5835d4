"""The certificate: what is the model is certified, what is not is refused, and the first wrong stage has a name."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from agvas.fitting.fit import fit
from agvas_core.contract.certificate import PARITY_NAME, Certificate, read_certificate
from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import ParityError, SetupError, UsageError
from agvas_core.contract.manifest import MANIFEST_NAME, read_manifest, sha256_of, write_manifest
from agvas_core.data.synthetic.products import SyntheticProduct
from agvas_core.data.synthetic.synthesis import synthesize
from agvas_export import check as check_module
from agvas_export.check import NOT_FINITE, Limits, check_bundle, images_in, mask_iou, open_backends, refuse_failed
from agvas_export.cli import app
from agvas_runtime.bundle import load_bundle
from agvas_runtime.pipeline.predictors import backend_names, open_backend, open_comparison

Open = Callable[[Path, str], Any]


@pytest.fixture(autouse=True)
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points of this checkout, whatever version is installed."""
    offered = {"open": open_backend, "names": backend_names, "references": open_comparison}
    found = [SimpleNamespace(name=name, load=lambda function=function: function) for name, function in offered.items()]
    monkeypatch.setattr(check_module, "entry_points", lambda group: found)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three generated parts, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), synthesize(3, index, (96, 128)).image[..., ::-1])
    (folder / "note.png").write_text("not a picture")
    (folder / "ground_truth").mkdir()
    cv2.imwrite(str(folder / "ground_truth/0.png"), np.zeros((8, 8), np.uint8))
    return folder


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def changed(folder: Path, graph: str, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A graph of the bundle changed, and its manifest made to vouch for it: a broken export, not a damaged file."""
    path = folder / f"{graph}.onnx"
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    manifest = read_manifest(folder)
    write_manifest(folder, manifest.model_copy(update={"files": manifest.files | {path.name: sha256_of(path)}}))
    return folder


def one_weight(model: onnx.ModelProto) -> None:
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(weight).copy()
    values[np.unravel_index(np.abs(values).argmax(), values.shape)] *= 1.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def run(*arguments: object) -> int:
    return exit_code_of(lambda: app, name="agvas-export", arguments=["check", *map(str, arguments)])


def test_a_faithful_bundle_is_certified_and_stays_the_same_bundle(
    exported_folder: Path, tiny_checkpoint_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(exported_folder, tmp_path / "tiny")
    before = load_bundle(folder).identity
    assert run(folder, "--data", pictures, "--checkpoint", tiny_checkpoint_folder, "--backend", "onnx") == 0
    certificate = read_certificate(folder / PARITY_NAME)
    assert certificate is not None and certificate.passed and certificate.images == 3 and certificate.unused == 1
    assert certificate.manifest_sha256 == sha256_of(folder / MANIFEST_NAME)
    assert certificate.data == tuple(sorted(sha256_of(path) for path in pictures.glob("[0-9].png")))
    (engine,) = certificate.backends
    assert [joint.joint for joint in engine.joints] == ["vision"] * 6 + ["lmm"] * 2 + ["decoder", "whole"] + ["references"] * 3
    assert all(joint.holds for joint in engine.joints) and not engine.flips and engine.min_mask_iou == 1.0
    assert load_bundle(folder).identity == before
    said = capsys.readouterr().out
    assert "0 of 3 verdicts flipped" in said and "anchor_states" in said


@pytest.mark.parametrize("graph", ["vision", "lmm", "decoder", "references"])
def test_one_changed_weight_is_caught_at_its_joint(
    exported_folder: Path, tiny_checkpoint_folder: Path, pictures: Path, tmp_path: Path, graph: str
) -> None:
    folder = changed(copied(exported_folder, tmp_path / "tiny"), graph, one_weight)
    done = check_bundle(folder, pictures / "0.png", checkpoint=tiny_checkpoint_folder, backends=["onnx"])
    (engine,) = done.certificate.backends
    assert not done.certificate.passed and str(engine.first_wrong).startswith(f"{graph}: ")
    wrong = {joint.joint for joint in engine.joints if not joint.holds}
    assert wrong <= {graph, "whole"}  # the stages after it were given the model's own tensors
    with pytest.raises(ParityError, match=f"first wrong stage is {graph}"):
        refuse_failed(done.certificate, read_manifest(folder))


@pytest.fixture(scope="module")
def headed(exported_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product of the tiny bundle with a fitted head, whatever it gains; read it only."""
    product = SyntheticProduct(3, "object", (128, 128))
    images = [product.good(index).image for index in range(8)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agvas.fitting.head.is_better", lambda gain, areas: True)
        patch.setattr("agvas.fitting.head.STEPS", 3)
        patch.setattr("agvas.fitting.fit.PAINTED_IMAGES", 4)
        out = tmp_path_factory.mktemp("products") / "plate"
        return fit(images, out, model=exported_folder, head=True, size_px=128, threads=1).bundle.folder


def test_a_products_references_and_head_are_certified(headed: Path, tiny_checkpoint_folder: Path, pictures: Path) -> None:
    (engine,) = check_bundle(
        headed, pictures / "0.png", checkpoint=tiny_checkpoint_folder, backends=["onnx"]
    ).certificate.backends
    assert [joint.tensor for joint in engine.joints[-4:]] == ["embedding", "deep", "joint", "logit"]
    assert engine.passed and engine.joints[-1].joint == "head"


def test_one_changed_weight_of_a_products_head_is_caught(
    headed: Path, tiny_checkpoint_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch takes the weights of the product's own graph, so here the engine's is another."""

    def last_bias(model: onnx.ModelProto) -> None:
        (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "logit.bias")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.5), bias.name))

    folder = changed(copied(headed, tmp_path / "plate"), "head", last_bias)
    opened = {"torch": open_comparison(headed, "torch"), "onnx": open_comparison(folder, "onnx")}
    monkeypatch.setattr(check_module, "open_comparisons", lambda *_: opened)
    done = check_bundle(folder, pictures / "0.png", checkpoint=tiny_checkpoint_folder, backends=["onnx"])
    assert done.certificate.backends[0].first_wrong == "head: logit" and not done.certificate.passed


def test_a_norm_that_overflows_in_half_precision_is_caught(
    exported_folder: Path, tiny_checkpoint_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first layer norm of the vision graph, computed in float16 on activations that are large, as SAM's are."""

    def in_half(model: onnx.ModelProto) -> None:
        norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
        at = list(model.graph.node).index(norm)
        cast = [
            onnx.helper.make_node("Mul", [norm.input[0], "many"], ["large"]),
            onnx.helper.make_node("Cast", ["large"], ["half"], to=onnx.TensorProto.FLOAT16),
            onnx.helper.make_node("Cast", ["half"], ["back"], to=onnx.TensorProto.FLOAT),
        ]
        model.graph.initializer.append(numpy_helper.from_array(np.array(1e6, np.float32), "many"))
        for offset, node in enumerate(cast):
            model.graph.node.insert(at + offset, node)
        norm.input[0] = "back"

    folder = changed(copied(exported_folder, tmp_path / "tiny"), "vision", in_half)
    code = run(
        folder, "--data", pictures / "0.png", "--checkpoint", tiny_checkpoint_folder, "--backend", "onnx",
        "--report", tmp_path / "page",
    )  # fmt: skip
    assert code == 4
    error = capsys.readouterr().err
    assert "1 verdicts flipped, 0 allowed" in error and "first wrong stage is vision: f_s" in error
    certificate = read_certificate(folder / PARITY_NAME)
    assert certificate is not None and not certificate.passed
    assert certificate.backends[0].joints[0].error == NOT_FINITE and certificate.backends[0].flips[0].verdict == "NO_VERDICT"
    page = (tmp_path / "page/index.html").read_text()
    assert "became NO_VERDICT" in page and not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page)


def test_limits_decide_and_joints_within_tolerance_do_not_excuse_a_mask(
    exported_folder: Path, tiny_checkpoint_folder: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_module, "mask_iou", lambda one, other: 0.985)
    for limits, passed in ((Limits(), False), (Limits(min_mask_iou=0.98), True)):
        done = check_bundle(
            exported_folder, pictures / "1.png", checkpoint=tiny_checkpoint_folder, backends=["onnx"], limits=limits
        )
        assert done.certificate.passed is passed
    assert done.differing == 1


def test_a_checkpoint_that_the_bundle_did_not_come_from_is_refused(
    exported_folder: Path, tiny_checkpoint_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    other = copied(tiny_checkpoint_folder, tmp_path / "other")
    with (other / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UsageError, match=r"came from weights with .*--checkpoint"):
        check_bundle(exported_folder, pictures, checkpoint=other)
    with pytest.raises(UsageError, match=r"no torch form.*--checkpoint DIR"):
        check_bundle(exported_folder, pictures)


def test_what_cannot_be_meant_is_refused_before_any_work(
    exported_folder: Path, tiny_checkpoint_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="no backend 'onxx'"):
        check_bundle(exported_folder, pictures, checkpoint=tiny_checkpoint_folder, backends=["onxx"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no pictures"):
        images_in(tmp_path / "empty")
    assert len(images_in(pictures)) == 4 and len(images_in(pictures, limit=2)) == 2
    old = copied(exported_folder, tmp_path / "old")
    (old / PARITY_NAME).write_text("{}")
    manifest = read_manifest(old)
    write_manifest(old, manifest.model_copy(update={"files": manifest.files | {PARITY_NAME: sha256_of(old / PARITY_NAME)}}))
    assert run(old, "--data", pictures) == 2
    assert "lists parity.json" in capsys.readouterr().err
    assert run(old, "--data", pictures, "--out", tmp_path / "no/where.json") == 3


def test_a_check_of_fewer_images_does_not_replace_a_certificate_of_more(
    exported_folder: Path, tiny_checkpoint_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(exported_folder, tmp_path / "tiny")
    asked = (folder, "--data", pictures, "--checkpoint", tiny_checkpoint_folder, "--backend", "onnx")
    assert run(*asked, "--limit", "2") == 0
    smaller = (folder / PARITY_NAME).read_bytes()
    assert run(*asked) == 0  # more images may take the place of fewer
    larger = (folder / PARITY_NAME).read_bytes()
    certificate = read_certificate(folder / PARITY_NAME)
    assert certificate is not None and certificate.images == 3 and larger != smaller
    capsys.readouterr()
    assert run(*asked, "--limit", "2") == 2
    assert "3 images" in capsys.readouterr().err and (folder / PARITY_NAME).read_bytes() == larger
    assert run(*asked, "--limit", "2", "--out", tmp_path / "small.json") == 0
    found = read_certificate(tmp_path / "small.json")
    assert found is not None and found.images < 3 and (folder / PARITY_NAME).read_bytes() == larger


def test_no_engine_at_all_is_said(exported_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_module, "entry_points", lambda group: [])
    with pytest.raises(SetupError, match=r"agvas\.stages"):
        check_module.open_backends(exported_folder)


def test_masks_are_compared_as_sets() -> None:
    empty = np.zeros((4, 4), bool)
    half: NDArray[np.bool_] = np.arange(16).reshape(4, 4) < 8
    assert mask_iou(empty, empty) == 1.0 and mask_iou(half, ~half) == 0.0 and mask_iou(half, half | (np.eye(4) > 0)) == 0.8


def test_a_certificate_reads_back_as_it_was_written(exported_folder: Path, tmp_path: Path) -> None:
    assert read_certificate(tmp_path / "none.json") is None
    (tmp_path / "old.json").write_text(json.dumps({"comparisons": []}))
    assert read_certificate(tmp_path / "old.json") is None
    assert set(Certificate.model_fields) >= {"hardware", "data_sha256", "versions", "manifest_sha256"}


def test_engines_whose_packages_are_missing_are_passed_over(exported_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "agvas_runtime.stages.vllm.local", raising=False)
    found, skipped = open_backends(exported_folder)
    assert "onnx" in found and "vllm" not in found
    assert "vllm" in skipped["vllm"]
