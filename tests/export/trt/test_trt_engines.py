"""TensorRT engines, as far as a machine without a GPU can tell: plans, shapes, refusals, int8 graphs, and TensorRT-RTX's own word."""

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.engine import (
    ENGINES_NAME,
    EngineSet,
    EngineSpec,
    open_library,
    parse_version,
    read_engines,
    refuse_foreign,
    write_engines,
)
from agvas_core.contract.errors import BundleError, SetupError, UsageError
from agvas_core.contract.manifest import read_manifest, sha256_of
from agvas_core.contract.preprocess import make_view
from agvas_export.cli import app
from agvas_export.trt.plan import make_plan
from agvas_export.trt.precision import graph_precision
from agvas_export.trt.quantise import pixel_encoder_nodes, quantise_pixel_encoder
from agvas_export.trt.recipe import find_recipe, recipe_for_gpu, recipes
from agvas_export.trt.shapes import profile_shapes

NANO = Path(__file__).resolve().parents[3] / "runtime/agvas_runtime/bundles/nano"
RTX = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT-RTX is not installed: make trt-check, or pip install 'agvas[trt-check]'",
)


def agvas_export(*arguments: str) -> int:
    return exit_code_of(lambda: app, name="agvas-export", arguments=["trt", *arguments])


def test_every_recipe_is_valid_and_every_gpu_of_the_card_has_one() -> None:
    assert {"orin", "thor", "a100", "h100", "rtx"} <= {recipe.name for recipe in recipes()}
    for gpu, name in (
        ("NVIDIA H200", "h100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "orin"),
        ("NVIDIA Jetson AGX Thor", "thor"),
        ("NVIDIA GeForce RTX 4090", "rtx"),
    ):
        assert recipe_for_gpu(gpu).name == name
    with pytest.raises(UsageError, match=r"Tesla K80.*--target"):
        recipe_for_gpu("Tesla K80")
    for recipe in recipes():
        assert recipe.precisions[-1] == "fp32", "the safest one comes last, so that --precision auto ends somewhere"


def test_shapes_hold_every_frame_that_the_views_allow() -> None:
    manifest = read_manifest(NANO)
    vision = profile_shapes(manifest, manifest.vision, max_batch=4)
    decoder = profile_shapes(manifest, manifest.decoder, max_batch=4)
    from agvas_core.contract.preprocess import scaled_views, view_size

    least, _, largest = vision["pixel_image"]
    for height, width in ((20, 20), (480, 640), (4000, 300), (300, 4000), (3000, 3000)):
        for view in scaled_views(manifest.pixel_view, manifest.scales, height, width):
            size = view_size(view, height, width)
            assert all(low <= side <= high for low, side, high in zip(least[1:3], size, largest[1:3], strict=True)), (
                height,
                width,
            )
    for name, shapes in decoder.items():
        assert all(low <= usual <= high for shape in zip(*shapes, strict=True) for low, usual, high in [shape]), name


def test_an_axis_that_nobody_knows_is_refused() -> None:
    manifest = read_manifest(NANO)
    graph = manifest.decoder.model_copy(
        update={
            "inputs": tuple(spec.model_copy(update={"shape": ("depth", *spec.shape[1:])}) for spec in manifest.decoder.inputs)
        }
    )
    with pytest.raises(BundleError, match="depth"):
        profile_shapes(manifest, graph, max_batch=1)


def test_a_precision_stands_in_the_graph_or_is_refused() -> None:
    assert graph_precision(NANO / "vision.onnx") == "fp32"
    assert make_plan(NANO, find_recipe("a100"), precision="tf32").precision == "tf32"
    with pytest.raises(UsageError, match=r"strongly typed.*export the bundle in fp16"):
        make_plan(NANO, find_recipe("a100"), precision="fp16")


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "near"), [("int8", 0.4), ("fp8", 0.12)])
def test_only_the_pixel_encoder_is_quantised_and_stays_near_what_it_was(tmp_path: Path, precision: str, near: float) -> None:
    manifest = read_manifest(NANO)
    parts = sorted((NANO.parents[3] / "examples/parts").glob("*.jpg"))
    images = [np.ascontiguousarray(cv2.imread(str(path))[:, :, ::-1]) for path in parts]
    out = tmp_path / "quantised.onnx"
    assert quantise_pixel_encoder(precision, NANO / "vision.onnx", manifest, images, out) > 20
    model = onnx.load(str(NANO / "vision.onnx"))
    assert 0 < len(pixel_encoder_nodes(model)) < len(model.graph.node)
    # As the graph says, without ONNX Runtime's rewriting: that drops the ReLU before a float8 quantiser, which changes the answer.
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    names = ["f_s", "f_p", "f_detail"]
    sessions = [ort.InferenceSession(str(path), options) for path in (NANO / "vision.onnx", out)]
    for image in images[:4]:
        views = manifest.semantic_view, manifest.pixel_view
        given = dict(zip(("semantic_image", "pixel_image"), (make_view(view, image).pixels[None] for view in views), strict=True))
        before, after = (dict(zip(names, session.run(names, given), strict=True)) for session in sessions)
        np.testing.assert_array_equal(before["f_s"], after["f_s"])  # not quantised
        for name in names[1:]:
            off = np.linalg.norm(before[name] - after[name]) / np.linalg.norm(before[name])
            assert 0 < off < near, (name, off)
    with pytest.raises(UsageError, match="8 at least"):
        quantise_pixel_encoder(precision, NANO / "vision.onnx", manifest, images[:3], out)


def test_float8_is_refused_where_a_gpu_has_none() -> None:
    assert make_plan(NANO, find_recipe("h100"), precision="fp8").precision == "fp8"
    for target in ("a100", "orin"):
        with pytest.raises(UsageError, match=r"float8 needs 8\.9: choose int8"):
            make_plan(NANO, find_recipe(target), precision="fp8")


@RTX
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_tensorrt_builds_the_quantised_graph(precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    images = str(NANO.parents[3] / "examples/parts")
    assert agvas_export("nano", "--check", "--precision", precision, "--images", images, "--joint", "vision") == 0
    said = capsys.readouterr()
    assert "engine of" in said.out and ("SM89" in said.out) == (precision == "fp8"), said


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, EngineSet]:
    """A folder of engines as a build leaves it, but for the engine's bytes."""
    (tmp_path / "decoder.engine").write_bytes(b"plan")
    spec = EngineSpec(
        file="decoder.engine",
        sha256=sha256_of(tmp_path / "decoder.engine"),
        graph_sha256=sha256_of(NANO / "decoder.onnx"),
        shapes={"f_p": ((1, 2), (1, 3), (4, 5))},
        build_s=1.0,
    )
    engines = EngineSet(
        bundle="nano",
        gpu="NVIDIA H200",
        compute_capability="9.0",
        flavour="tensorrt",
        version="10.13.0",
        precision="fp32",
        recipe="h100",
        created="2026-01-01T00:00:00+00:00",
        engines={"decoder": spec},
    )
    write_engines(tmp_path, engines)
    return tmp_path, read_engines(tmp_path)


def test_an_engine_is_taken_where_it_was_built_and_refused_elsewhere(built: tuple[Path, EngineSet]) -> None:
    folder, engines = built
    here = {"gpu": "NVIDIA H200", "flavour": "tensorrt", "version": "10.13.0"}
    graph = NANO / "decoder.onnx"
    assert refuse_foreign(folder, engines, "decoder", graph, **here) == folder / "decoder.engine"
    for change, words in (
        ({"gpu": "NVIDIA A100"}, "GPU NVIDIA H200, and this is NVIDIA A100"),
        ({"version": "10.3.0"}, "TensorRT 10.13.0, and this is 10.3.0"),
        ({"flavour": "tensorrt-rtx"}, "flavour"),
    ):
        with pytest.raises(SetupError, match=f"{words}.*agvas-export trt"):
            refuse_foreign(folder, engines, "decoder", graph, **{**here, **change})
    with pytest.raises(SetupError, match=r"graph.*agvas-export trt"):
        refuse_foreign(folder, engines, "decoder", NANO / "lmm.onnx", **here)
    with pytest.raises(SetupError, match="no engine for vision"):
        refuse_foreign(folder, engines, "vision", graph, **here)
    (folder / "decoder.engine").write_bytes(b"plan, changed")
    with pytest.raises(SetupError, match="changed or cut off"):
        refuse_foreign(folder, engines, "decoder", graph, **here)


def test_a_record_of_engines_that_is_missing_broken_or_newer_is_refused(built: tuple[Path, EngineSet], tmp_path: Path) -> None:
    folder, _ = built
    with pytest.raises(SetupError, match="build them with agvas-export trt"):
        read_engines(tmp_path / "nowhere")
    raw = json.loads((folder / ENGINES_NAME).read_text(encoding="utf-8"))
    (folder / ENGINES_NAME).write_text(json.dumps(raw | {"schema_version": 9}), encoding="utf-8")
    with pytest.raises(SetupError, match="pip install --upgrade"):
        read_engines(folder)
    (folder / ENGINES_NAME).write_text("{", encoding="utf-8")
    with pytest.raises(SetupError, match="cannot be read as JSON"):
        read_engines(folder)


def test_versions_are_numbers() -> None:
    assert parse_version("10.3.0.post1") == (10, 3, 0) < parse_version("10.13.2")


def test_a_plan_is_printed_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert agvas_export(str(NANO), "--dry-run", "--target", "orin") == 0
    told = capsys.readouterr().out
    assert "compute capability 8.7" in told and "pixel_image" in told and "vision.onnx" in told


def test_the_target_is_the_gpu_that_nvidia_smi_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!{sys.executable}\nprint('NVIDIA A100-SXM4-80GB, 8.0, 570.10, GPU-a')\n", encoding="utf-8")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert agvas_export(str(NANO), "--dry-run", "--target-from", "nvidia-smi") == 0
    assert "target      a100" in capsys.readouterr().out
    assert agvas_export(str(NANO), "--target", "h100") == 2
    assert "built on its own kind of GPU" in capsys.readouterr().err


def test_of_several_kinds_of_gpu_the_target_is_the_one_that_cuda_puts_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """nvidia-smi lists them by their slots, CUDA by speed."""
    smi = tmp_path / "nvidia-smi"
    rows = "NVIDIA GeForce RTX 3060, 8.6, 570.10, GPU-a", "NVIDIA A100-SXM4-80GB, 8.0, 570.10, GPU-b"
    smi.write_text(f"#!{sys.executable}\nprint({chr(10).join(rows)!r})\n", encoding="utf-8")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("agvas_core.contract.gpu._first_of_cuda", lambda: "GPU-b")
    assert agvas_export(str(NANO), "--dry-run", "--target-from", "nvidia-smi") == 0
    assert "target      a100" in capsys.readouterr().out
    monkeypatch.setattr("agvas_core.contract.gpu._first_of_cuda", lambda: None)  # no cuda-bindings
    assert agvas_export(str(NANO), "--dry-run", "--target-from", "nvidia-smi") == 3
    assert "several kinds of GPU here (NVIDIA GeForce RTX 3060, NVIDIA A100" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nano = str(NANO)
    for arguments, code, words in (
        ([nano], 3, "no NVIDIA GPU here"),
        ([nano, "--dry-run", "--target", "h900"], 2, "it can be a100"),
        ([nano, "--precision", "fp4"], 2, "it can be auto"),
        ([nano, "--precision", "int8"], 2, "--images DIR"),
        ([nano, "--check", "--precision", "fp8"], 2, "--images DIR"),
        ([nano, "--check", "--precision", "auto"], 2, "runs no engine"),
        ([nano, "--parse-only"], 2, "belong to --check"),
        ([nano, "--check", "--dry-run"], 2, "leave one out"),
        ([nano, "--target-from", "guess"], 2, "it takes nvidia-smi"),
        ([nano, "--dry-run", "--target", "orin", "--joint", "eyes"], 2, "vision, lmm, decoder"),
        ([str(tmp_path / "none"), "--dry-run", "--target", "orin"], 2, "there is no bundle"),
    ):
        assert agvas_export(*arguments) == code, arguments
        assert words in capsys.readouterr().err, arguments


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_a_missing_tensorrt_names_its_extra() -> None:
    with pytest.raises(SetupError, match=r"agvas\[trt\]"):
        open_library("tensorrt")


@RTX
def test_tensorrt_takes_every_graph_of_nano(capsys: pytest.CaptureFixture[str]) -> None:
    """Parsed here: vision, lmm, decoder and references; `make trt-check` builds them, and the wide parts of the paper's model."""
    assert agvas_export(str(NANO), "--check", "--parse-only") == 0
    assert capsys.readouterr().out.count("parsed") == 4


@RTX
def test_a_graph_that_tensorrt_cannot_read_is_refused_by_name(tmp_path: Path) -> None:
    from agvas_export.trt.check import check_graph

    graph = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20]> g (string[N] x) => (string[N] y) { y = StringNormalizer(x) }'
    )
    onnx.save(graph, str(tmp_path / "words.onnx"))
    with pytest.raises(BundleError, match=r"words\.onnx.*export the bundle again"):
        check_graph("words", tmp_path / "words.onnx", {}, build=False)


@RTX
@pytest.mark.slow
def test_tensorrt_builds_an_engine_without_a_gpu() -> None:
    from agvas_export.trt.check import check_plan

    plan = make_plan(NANO, find_recipe("a100"), precision=None, stages=("decoder",), max_batch=1)
    (done,) = check_plan(plan)
    assert done.megabytes is not None and done.megabytes > 0.1
