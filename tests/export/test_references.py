"""The references graph gives the module's answer at every size, and a bundle says what it needs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from agvas_core.contract.errors import BundleError
from agvas_core.contract.manifest import MANIFEST_NAME, read_manifest, sha256_of
from agvas_core.model.encoders.efficientnet_lite import TRUNK, load_trunk
from agvas_core.model.references import EncoderCells, ReferenceDistance
from agvas_export.graphs import export_stage
from agvas_export.references import _with_encoder, export_references, shares_trunk
from agvas_export.stages import make_stages
from agvas_runtime.bundle import load_bundle
from agvas_runtime.stages.open import open_references

SizedImage = tuple[int, int, int]


@pytest.mark.parametrize(("size", "rows"), [((1, 64, 64), 1), ((1, 384, 384), 300), ((3, 128, 96), 40), ((2, 64, 416), 7)])
def test_the_graph_gives_the_answer_of_torch(size: SizedImage, rows: int) -> None:
    """That with an encoder of its own, which old bundles, half-precision bundles and products of another size have."""
    batch, height, width = size
    generator = torch.Generator().manual_seed(height)
    image = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator)
    model = ReferenceDistance(EncoderCells(load_trunk())).eval()
    bank = 0.1 * torch.randn(rows, model.channels, generator=generator)
    with torch.no_grad():
        expected = model(image, bank, 0.7)
    session = ort.InferenceSession(_with_encoder(TRUNK, sha256_of(TRUNK))[0], providers=["CPUExecutionProvider"])
    given = {"reference_image": image.numpy(), "bank": bank.numpy(), "colour_weight": np.array(0.7, np.float32)}
    for name, value in zip(expected._fields, session.run(list(expected._fields), given), strict=True):
        np.testing.assert_allclose(value, getattr(expected, name).numpy(), atol=2e-5, err_msg=name)


def test_the_manifest_says_what_the_graph_takes(exported_folder: Path) -> None:
    spec = read_manifest(exported_folder).references
    assert spec is not None and spec.view is None
    assert spec.channels == 155 and spec.stride == 8 and spec.colour_channels == 3
    assert {tensor.name: tensor.shape for tensor in spec.inputs} == {
        "pixel_image": ("batch", "height", "width", 3),
        "trunk_8": ("batch", 40, "height/8", "width/8"),
        "trunk_16": ("batch", 112, "height/16", "width/16"),
        "bank": ("rows", 155),
        "colour_weight": (),
    }
    assert {tensor.name: tensor.shape for tensor in spec.outputs} == {
        "embedding": ("batch", "height/8", "width/8", 155),
        "deep": ("batch", "height/8", "width/8"),
        "joint": ("batch", "height/8", "width/8"),
    }


def test_a_model_with_another_encoder_measures_its_own_features(
    small_model: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    model, config = small_model({})
    config = config.model_copy(update={"pixel": config.pixel.model_copy(update={"kind": "sam"})})
    (vision, *_) = make_stages(model, config)
    done = export_references(config, vision, tmp_path)
    assert done.spec.view is None and done.spec.stride == 8 and done.spec.channels == 32 + 3
    assert {tensor.name for tensor in done.spec.inputs} == {"pixel_image", "f_p", "bank", "colour_weight"}
    assert done.provenance["error"] < 1e-4


def changed(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_bundle_without_the_graph_loads_and_says_so_when_it_is_asked_for(exported_folder: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(exported_folder, tmp_path / "old"))
    (old / "references.onnx").unlink()
    raw = json.loads((old / MANIFEST_NAME).read_text())
    del raw["references"], raw["files"]["references.onnx"]
    (old / MANIFEST_NAME).write_text(json.dumps(raw | {"schema_version": 2}))
    bundle = load_bundle(old)
    assert bundle.manifest.references is None
    with pytest.raises(BundleError, match=r"no references graph.*agvas-export bundle"):
        open_references(bundle)


def test_a_references_graph_that_does_not_fit_is_refused(exported_folder: Path, tmp_path: Path) -> None:
    spec = json.loads((exported_folder / MANIFEST_NAME).read_text())["references"]
    no_bank = spec | {"inputs": [one for one in spec["inputs"] if one["name"] != "bank"]}
    wide = json.loads(json.dumps(spec))
    wide["outputs"][0]["shape"][-1] = 7
    for number, broken in enumerate((no_bank, wide)):
        copy = Path(shutil.copytree(exported_folder, tmp_path / str(number)))
        changed(copy, references=broken)
        with pytest.raises(BundleError, match=r"references graph.*export the bundle again"):
            load_bundle(copy)
    copy = Path(shutil.copytree(exported_folder, tmp_path / "unlisted"))
    raw = json.loads((copy / MANIFEST_NAME).read_text())
    changed(copy, files={name: digest for name, digest in raw["files"].items() if name != "references.onnx"})
    with pytest.raises(BundleError, match=r"references\.onnx"):
        load_bundle(copy)


def lite_model(small_model: Callable[[dict[str, Any]], Any]) -> Any:
    """A tiny model whose pixel encoder has the trunk that ships, and its configuration."""
    pixel = {"kind": "lite", "channels": 32, "arguments": {"widths": [4, 8, 8, 12], "detail_dim": 8}}
    return small_model({"pixel": pixel})


def test_a_model_with_the_shipped_trunk_gives_its_features_to_the_references(
    small_model: Callable[[dict[str, Any]], Any], tmp_path: Path
) -> None:
    model, config = lite_model(small_model)
    assert shares_trunk(model)
    other = lite_model(small_model)[0]
    with torch.no_grad():
        next(other.pixel_encoder.backbone.trunk.parameters()).add_(1e-3)
    assert not shares_trunk(other)  # a trunk that was trained further gives other distances
    vision = make_stages(model, config, trunk=True)[0]
    done = export_references(config, vision, tmp_path)
    assert done.spec.view is None and done.spec.channels == 155
    assert done.spec.features == ("trunk_8", "trunk_16")
    seen = export_stage(vision, tmp_path)
    shapes = {tensor.name: tensor.shape for tensor in seen.outputs}
    assert shapes["trunk_8"] == ("batch", 40, "height/8", "width/8")
    assert shapes["trunk_16"] == ("batch", 112, "height/16", "width/16")

    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8, generator=generator)
    semantic = torch.zeros(2, config.semantic_view.size_px, config.semantic_view.size_px, 3, dtype=torch.uint8)
    sessions = [ort.InferenceSession(tmp_path / each.file, providers=["CPUExecutionProvider"]) for each in (seen, done.spec)]
    names = list(done.spec.features)
    made = sessions[0].run(names, {"semantic_image": semantic.numpy(), "pixel_image": image.numpy()})
    # The same cells as of an encoder of its own with the padding that the model has.
    front = EncoderCells(load_trunk(), pad_px=0)
    own = ReferenceDistance(front).eval()
    encoder = model.pixel_encoder
    with torch.no_grad():
        pixels = encoder.backbone.padded(encoder.normalize(image))
        features = encoder.backbone.trunk.features(pixels, (4, 10))
        features = [encoder.backbone.cut(each, 16 // stride) for each, stride in zip(features, (8, 16), strict=True)]
        deep = front.join(features)
        embedding = torch.cat([deep.permute(0, 2, 3, 1), own.colour(image)], 3)
        bank = 0.1 * torch.randn(9, 155, generator=generator)
        expected = embedding, *own.distances(embedding, bank, 0.7)
    given = {"pixel_image": image.numpy(), **dict(zip(names, made, strict=True)), "bank": bank.numpy()}
    found = sessions[1].run(["embedding", "deep", "joint"], given | {"colour_weight": np.array(0.7, np.float32)})
    for value, truth in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, truth.numpy(), atol=1e-4)


def test_a_trunk_that_was_trained_further_is_not_shared(small_model: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    model, config = lite_model(small_model)
    with torch.no_grad():
        model.pixel_encoder.backbone.trunk.blocks[3].depthwise[0].bias[2] += 1e-4
    assert not shares_trunk(model)
    vision = make_stages(model, config)[0]
    assert "trunk_8" not in vision.outputs
    done = export_references(config, vision, tmp_path)
    assert done.spec.view is not None and done.spec.features == ()
