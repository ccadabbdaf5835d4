"""Bundles in other forms: half precision with norms in float32, a fixed batch, the checkpoint inside; every published pixel encoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto

from agvas_core.contract.certificate import TOLERANCES
from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.errors import BundleError, UsageError
from agvas_core.contract.manifest import read_manifest, sha256_of
from agvas_core.data.synthetic.synthesis import synthesize
from agvas_core.model.agvas import AgVas
from agvas_core.model.config import ModelConfig
from agvas_export.bundle import Form, export_bundle
from agvas_export.cli import app
from agvas_export.graphs import export_stage
from agvas_export.precision import in_precision
from agvas_export.stages import make_stages
from agvas_runtime import Segmenter
from agvas_runtime.bundle import load_bundle

Build = Callable[[dict[str, Any]], tuple[AgVas, ModelConfig]]
HALF = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}

VIEW = {"fit": "letterbox", "size_px": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODERS: dict[str, dict[str, Any]] = {
    "sam": {"image_px": 32, "patch_px": 4, "dim": 16, "depth": 2, "heads": 2, "window": 3, "global_blocks": [1]},
    "dinov2": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "image_size": 28,
        "patch_size": 4,
    },
    "clip": {**TOWER, "image_size": 24, "patch_size": 4},
    "siglip": {**TOWER, "image_size": 24, "patch_size": 4},
}


def of_dtype(model: onnx.ModelProto, kind: int) -> int:
    """Numbers in weights of a dtype."""
    return sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer if tensor.data_type == kind)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_keeps_norms_and_both_ends_in_float32(
    tiny_checkpoint_folder: Path, tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "half"
    arguments = [
        "bundle",
        str(tiny_checkpoint_folder),
        "-o",
        str(out),
        "--precision",
        precision,
        "--lmm",
        "onnx,torch",
        "--max-batch",
        "1",
    ]
    assert exit_code_of(lambda: app, name="agvas-export", arguments=arguments) == 0, capsys.readouterr().err
    manifest = read_manifest(out)
    assert manifest.precision == precision and manifest.max_batch == 1
    for name, spec in manifest.graphs.items():
        model = onnx.load(out / spec.file)
        assert of_dtype(model, HALF[precision]) > of_dtype(model, TensorProto.FLOAT), name
        floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
        norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
        assert norms or name == "lmm"  # which has RMS norms
        assert all(node.input[1] in floats for node in norms)  # a graph's types agree, so the input is float32 as well
        assert {each.dtype for each in (*spec.inputs, *spec.outputs)} <= {"uint8", "int64", "float32"}
        assert all(spec.shape[2 if spec.name == "past_key_values" else 0] == 1 for spec in spec.inputs)
    assert (out / "torch/model.safetensors").is_file() and "torch/model.safetensors" in manifest.files
    if precision == "bf16":
        with pytest.raises(BundleError, match="cannot be opened by onnxruntime"):
            Segmenter.load(out)
        return
    picture = synthesize(3, 0, (96, 128)).image
    cv2.imwrite(str(tmp_path / "part.png"), picture[..., ::-1])
    again = ["check", str(out), "--data", str(tmp_path / "part.png"), "--min-mask-iou", "0.9", "--backend", "onnx"]
    assert exit_code_of(lambda: app, name="agvas-export", arguments=again) == 0, capsys.readouterr().err
    assert load_bundle(out).manifest.precision == "fp16"


@pytest.mark.parametrize("kind", ENCODERS)
def test_every_pixel_encoder_gives_its_own_features(small_model: Build, tmp_path: Path, kind: str) -> None:
    pixel, agmd = {"kind": kind, "channels": 32, "arguments": ENCODERS[kind]}, {"depth": 1, "heads": 4, "mlp_dim": 32}
    model, config = small_model({"pixel": pixel, "pixel_view": VIEW, "scales": [1.0], "agmd": agmd})
    vision = next(joint for joint in make_stages(model, config) if joint.name == "vision")
    spec = export_stage(vision, tmp_path)
    images = [torch.randint(0, 256, (3, *tensor.shape[1:]), dtype=torch.uint8) for tensor in vision.inputs.values()]
    with torch.no_grad():
        seen = model.see(*images)
    session = ort.InferenceSession(str(tmp_path / spec.file), providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in spec.outputs]
    given = {name: image.numpy() for name, image in zip(vision.inputs, images, strict=True)}
    got = dict(zip(names, session.run(names, given), strict=True))
    for name, truth in (("f_s", seen.f_s), ("f_align", seen.f_align), ("f_p", seen.pixel.f_p)):
        error = float(np.abs(got[name] - truth.numpy()).max()) / max(1.0, float(truth.abs().max()))
        assert error < TOLERANCES["fp32"].features, name
    with torch.no_grad():  # the export of it costs more than it shows: the casts are in the module
        half = in_precision(vision, "fp16").module(*vision.inputs.values())
    for value, truth in zip(half, vision.outputs.values(), strict=True):
        assert value.dtype == torch.float32
        assert float((value - truth).abs().max()) <= TOLERANCES["fp16"].features * max(1.0, float(truth.abs().max()))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())  # the model itself is as it was


def test_forms_that_do_not_exist_are_refused_before_any_work(tmp_path: Path) -> None:
    for form, words in ((Form(lmm=("onnx", "gguf")), "'gguf'"), (Form(lmm=()), "is empty")):
        with pytest.raises(UsageError, match=words):
            export_bundle(tmp_path, tmp_path / "out", form=form)


def test_a_bundle_without_an_lmm_graph_says_which_forms_it_has(exported_folder: Path, tmp_path: Path) -> None:
    import shutil

    from agvas_core.contract.manifest import write_manifest

    folder = Path(shutil.copytree(exported_folder, tmp_path / "tiny"))
    manifest = read_manifest(folder)
    (folder / "lmm.onnx").unlink()
    files = {path.name: sha256_of(path) for path in folder.iterdir() if path.name != "manifest.json"}
    write_manifest(folder, manifest.model_copy(update={"lmm": None, "files": files}))
    assert load_bundle(folder).manifest.lmm is None
    with pytest.raises(BundleError, match="no ONNX graph of its language model"):
        Segmenter.load(folder)
