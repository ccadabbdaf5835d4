"""Each exported graph gives the model's own tensors, at any size and batch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.export import Dim

from agvas_core.contract.certificate import TOLERANCES
from agvas_core.contract.manifest import Manifest, read_manifest
from agvas_core.contract.preprocess import make_view
from agvas_core.data.synthetic.synthesis import synthesize
from agvas_core.model.build import build_model
from agvas_core.model.config import ModelConfig, load_preset, parse_config
from agvas_core.model.weights.checkpoint import Checkpoint
from agvas_export.graphs import eager_attention, export_stage
from agvas_export.parity import Graphs, answer_of, run_step
from agvas_export.reference import Frames, Words, reference, words
from agvas_export.stages import Axis, Stage, VisionStage, make_stages

FP32 = TOLERANCES["fp32"]
SIZES = [(64, 64), (96, 320), (320, 320), (416, 224)]


@pytest.fixture(scope="module")
def manifest(exported_folder: Path) -> Manifest:
    return read_manifest(exported_folder)


@pytest.fixture(scope="module")
def graphs(exported_folder: Path, manifest: Manifest) -> Graphs:
    return Graphs(exported_folder, manifest)


@pytest.fixture(scope="module")
def said(tiny_checkpoint: Checkpoint, manifest: Manifest) -> Words:
    return words(tiny_checkpoint.tokenizer, manifest.prompt, manifest.anchor_ids)


def frames_of(config: ModelConfig, batch: int, size: tuple[int, int], noise: bool) -> Frames:
    if noise:
        images = list(np.random.default_rng(3).integers(0, 256, (batch, *size, 3), np.uint8))
    else:
        images = [synthesize(5, index, (416, 416)).image[: size[0], : size[1]] for index in range(batch)]
    semantic = np.stack([make_view(config.semantic_view, image).pixels for image in images])
    return Frames(torch.from_numpy(semantic), torch.from_numpy(np.stack(images)))


def given_to(graphs: Graphs, frames: Frames, said: Words) -> dict[str, Tensor]:
    batch = len(frames.pixel)
    return {"semantic_image": frames.semantic, "pixel_image": frames.pixel} | said.inputs(batch) | graphs.no_past(batch)


def assert_near(value: Tensor, truth: Tensor, tolerance: float) -> None:
    assert value.shape == truth.shape
    torch.testing.assert_close(value, truth, rtol=0, atol=tolerance * max(1.0, float(truth.abs().max())))


@pytest.mark.parametrize("noise", [False, True], ids=["synthetic", "noise"])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_joint_gives_the_models_own_tensors(
    graphs: Graphs, said: Words, tiny_checkpoint: Checkpoint, size: tuple[int, int], batch: int, noise: bool
) -> None:
    frames = frames_of(tiny_checkpoint.config, batch, size, noise)
    truth = reference(tiny_checkpoint.model, frames, said)
    given = given_to(graphs, frames, said) | truth
    seen = graphs.run("vision", given)
    assert seen.keys() == {"f_s", "f_align", "f_p", "f_detail", "trunk_8", "trunk_16"}
    for name, value in seen.items():
        assert_near(value, truth[name], FP32.features)
    spoken = graphs.run("lmm", given)
    assert_near(spoken["anchor_states"], truth["anchor_states"], FP32.anchor_states)
    for name in ("text_logits", "present_key_values"):
        assert_near(spoken[name], truth[name], FP32.text)
    for name, value in run_step(graphs, truth, said).items():
        assert_near(value, truth[name], FP32.text)
    assert_near(graphs.run("decoder", given)["logits"], truth["logits"], FP32.logits)


def test_a_batch_gives_what_its_images_give_alone(graphs: Graphs, said: Words, tiny_checkpoint: Checkpoint) -> None:
    frames = frames_of(tiny_checkpoint.config, 3, (96, 160), noise=False)
    together = answer_of(graphs, given_to(graphs, frames, said))["logits"]
    for row in range(3):
        alone = Frames(*(view[row : row + 1] for view in frames))
        assert_near(together[row : row + 1], answer_of(graphs, given_to(graphs, alone, said))["logits"], FP32.logits)


def test_the_number_of_words_is_open(graphs: Graphs, said: Words, tiny_checkpoint: Checkpoint) -> None:
    frames = frames_of(tiny_checkpoint.config, 1, (64, 64), noise=False)
    longer = Words(said.before, torch.cat([torch.arange(20, 60)[None], said.after], 1), said.positions + 40, said.asked + 40)
    truth = reference(tiny_checkpoint.model, frames, longer)
    states = graphs.run("lmm", given_to(graphs, frames, longer) | truth)["anchor_states"]
    assert_near(states, truth["anchor_states"], FP32.anchor_states)


def test_folding_linear_p_into_spam_changes_nothing_and_leaves_the_model_alone(tiny_checkpoint: Checkpoint) -> None:
    model = tiny_checkpoint.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frames = frames_of(tiny_checkpoint.config, 2, (64, 96), noise=False)
    with torch.no_grad():
        assert_near(VisionStage(model)(*frames)[1], model.see(*frames).f_align, 1e-6)
    assert model.spam is not None and model.linear_p is not None
    assert model.spam.to_k.in_features == model.linear_p.linear.out_features
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_models_attention_is_what_it_was_after_export(tiny_checkpoint: Checkpoint) -> None:
    config: Any = tiny_checkpoint.model.lmm.language_model.config
    assert config._attn_implementation == "sdpa"
    with eager_attention(tiny_checkpoint.model):
        assert config._attn_implementation == "eager"
    assert config._attn_implementation == "sdpa"


class TinyConstants(nn.Module):
    """log of what may be zero, as the prior has it."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 1e-12).log() + (x.square() + 1e-8).sqrt()


def test_a_constant_below_1e_8_survives_the_export(tmp_path: Path) -> None:
    x, module = torch.tensor([[0.0, 1e-5, 1.0]]), TinyConstants().eval()
    stage = Stage("constants", module, {"x": x}, {"y": module(x)}, {"x": {0: Axis("batch", Dim("batch"))}, "y": {}})
    export_stage(stage, tmp_path)
    session = ort.InferenceSession(str(tmp_path / "constants.onnx"), providers=["CPUExecutionProvider"])
    assert_near(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), module(x), 1e-6)


def test_weights_too_large_for_a_graph_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agvas_export.graphs.MAX_EMBEDDED_BYTES", 1000)
    x, module = torch.randn(2, 64), nn.Linear(64, 64).eval().requires_grad_(False)
    stage = Stage("linear", module, {"x": x}, {"y": module(x)}, {"x": {0: Axis("batch", Dim("batch"))}, "y": {}})
    export_stage(stage, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear.onnx", "linear.onnx.data"]
    session = ort.InferenceSession(str(tmp_path / "linear.onnx"), providers=["CPUExecutionProvider"])
    assert_near(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), module(x), 1e-5)


def test_the_graphs_name_nothing_of_this_machine(exported_folder: Path) -> None:
    for path in exported_folder.glob("*.onnx"):
        content = path.read_bytes()
        assert b"site-packages" not in content and b".py" not in content, path.name


def test_each_weight_is_in_the_bundle_once(exported_folder: Path, tiny_checkpoint: Checkpoint) -> None:
    paths = [path for path in exported_folder.glob("*.onnx") if path.name != "references.onnx"]  # has the encoder's own weights
    graphs = sum(path.stat().st_size for path in paths)
    initializers = sum(numpy_helper.to_array(tensor).nbytes for path in paths for tensor in onnx.load(path).graph.initializer)
    weights = sum(parameter.nbytes for parameter in tiny_checkpoint.model.parameters())
    assert initializers < 1.1 * weights + 40_000  # the prior's filters and the attention masks are constants, not weights
    assert graphs < initializers + 400_000


def test_batch_norms_are_folded(exported_folder: Path) -> None:
    kinds = {node.op_type for node in onnx.load(exported_folder / "vision.onnx").graph.node}
    assert "Conv" in kinds and "BatchNormalization" not in kinds


def test_an_encoder_of_one_size_has_closed_axes_and_no_detail(tmp_path: Path, tiny_checkpoint: Checkpoint) -> None:
    table = tiny_checkpoint.config.model_dump(mode="json")
    table["pixel_view"] |= {"fit": "letterbox", "size_px": 64}
    table["scales"] = [1.0]
    arguments = {"image_px": 64, "dim": 16, "depth": 2, "heads": 2, "window": 3, "global_blocks": [1]}
    table["pixel"] = {"kind": "sam", "channels": 32, "arguments": arguments}
    table["agmd"] |= {"mask_dim": None, "detail": False}
    config = parse_config(table)
    torch.manual_seed(1)
    model = build_model(config).eval()
    stages = {stage.name: stage for stage in make_stages(model, config)}
    vision = export_stage(stages["vision"], tmp_path)
    assert {spec.name: spec.shape for spec in vision.outputs} == {
        "f_s": ("batch", 16, 32),
        "f_align": ("batch", 16, 32),
        "f_p": ("batch", 32, 4, 4),
    }
    decoder = export_stage(stages["decoder"], tmp_path)
    assert [spec.name for spec in decoder.inputs] == ["anchor_states", "f_p"]
    assert decoder.outputs[0].shape == ("batch", 3, 16, 16)


def test_nano_and_tiny_have_the_same_parts(tiny_checkpoint: Checkpoint) -> None:
    """What is tested on the tiny model holds for nano only as long as one is the other made small."""
    nano = build_model(parse_config(load_preset("nano")["model"]), device="meta")
    kinds = [{type(part).__name__ for part in model.modules()} for model in (nano, tiny_checkpoint.model)]
    assert kinds[0] == kinds[1]
