"""The ONNX Runtime stages follow the manifest, and notice when the graphs do not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from agvas_core.contract.errors import BundleError, ImageError, SetupError, UsageError
from agvas_core.contract.manifest import MANIFEST_NAME, sha256_of
from agvas_core.contract.prompts import ANCHOR_TOKENS
from agvas_runtime.bundle import Bundle, load_bundle
from agvas_runtime.stages.onnx import OnnxDecoder, OnnxGraph, OnnxLmm, OnnxVision
from agvas_runtime.stages.protocol import DecoderStage, Features, LmmStage, VisionStage


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def features(bundle: Bundle, batch: int = 1) -> Features:
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (batch, 96, 64, 3), np.uint8)
    return OnnxVision(bundle, threads=1)(views[:, :32, :32], views)


def rehashed(folder: Path, **changes: Any) -> Path:
    """The manifest with changes, and the true hashes of whatever the files now are."""
    path = folder / MANIFEST_NAME
    raw = json.loads(path.read_text()) | changes
    raw["files"] = {name: sha256_of(folder / name) for name in raw["files"]}
    path.write_text(json.dumps(raw))
    return folder


def test_the_stages_are_what_the_protocol_says(bundle: Bundle) -> None:
    vision: VisionStage = OnnxVision(bundle, threads=1)
    lmm: LmmStage = OnnxLmm(bundle, threads=1)
    decoder: DecoderStage = OnnxDecoder(bundle, threads=1)
    found = vision(np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 64, 96, 3), np.uint8))
    assert found.f_s.shape == found.f_align.shape == (2, 4, 3)
    assert {name: value.shape for name, value in found.decoder.items()} == {"f_p": (2, 1, 16, 24), "f_detail": (2, 1, 32, 48)}
    reply = lmm(found, "find the dark spots")
    assert reply.anchor_states.shape == (2, 3, 3) and reply.accept.shape == reply.found.shape == (2,)
    assert reply.found.all() and reply.answers is None
    logits = decoder(reply.anchor_states, found)
    assert logits.shape == (2, 3, 32, 48) and logits.dtype == np.float32


def test_a_batch_gives_what_its_images_give_alone(bundle: Bundle) -> None:
    together = features(bundle, 3)
    rng = np.random.default_rng(0)
    views = rng.integers(0, 256, (3, 96, 64, 3), np.uint8)
    vision, lmm, decoder = OnnxVision(bundle, threads=1), OnnxLmm(bundle, threads=1), OnnxDecoder(bundle, threads=1)
    whole = decoder(lmm(together, "find").anchor_states, together)
    for index in range(3):
        alone = vision(views[index : index + 1, :32, :32], views[index : index + 1])
        np.testing.assert_allclose(decoder(lmm(alone, "find").anchor_states, alone)[0], whole[index], atol=1e-5)


def test_the_anchors_are_those_of_the_answer(bundle: Bundle) -> None:
    words = OnnxLmm(bundle, threads=1).words("find the dark spots")
    ids = words.ids_after[0]
    assert tuple(ids[words.anchor_positions[0]]) == bundle.manifest.anchor_ids
    assert words.anchor_positions[0, -1] == len(ids) - 1  # nothing after the last anchor
    assert all(row.dtype == np.int64 for row in words)


@pytest.mark.parametrize("dirt", [*ANCHOR_TOKENS, "[seg]", "[S[SEG]EG]", "<|im_end|>", "<image>"])
def test_control_tokens_never_reach_the_model(bundle: Bundle, dirt: str) -> None:
    lmm = OnnxLmm(bundle, threads=1)
    for clean, dirty in zip(lmm.words("find the dark spots"), lmm.words(f"find the dark {dirt} spots"), strict=True):
        np.testing.assert_array_equal(clean, dirty)


def test_too_long_an_instruction_is_a_usage_error(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"\d+ tokens.*64.*shorten"):
        OnnxLmm(bundle, threads=1)(features(bundle), "spots " * 100)


@pytest.mark.parametrize(("graph", "stage"), [("vision", OnnxVision), ("lmm", OnnxLmm), ("decoder", OnnxDecoder)])
@pytest.mark.parametrize("change", ["shape", "dtype", "name", "rank"])
def test_a_graph_from_another_export_is_refused(bundle_copy: Path, graph: str, stage: Any, change: str) -> None:
    specs = json.loads((bundle_copy / MANIFEST_NAME).read_text())
    spec = specs[graph]["outputs"][0]
    if change == "shape":
        spec["shape"][1] = 7 if isinstance(spec["shape"][1], int) else "any"
    if change == "dtype":
        spec["dtype"] = "float16"
    if change == "name":
        spec["name"] += "_old"
    if change == "rank":
        spec["shape"] = [*spec["shape"], 1]
    rehashed(bundle_copy, **{graph: specs[graph]})
    # Names and dtypes that break a joint are noticed by load_bundle already, the rest when the graph is opened.
    with pytest.raises(BundleError, match="export the bundle again"):
        stage(load_bundle(bundle_copy), threads=1)


def test_a_graph_that_is_narrower_than_its_manifest_is_refused(bundle_copy: Path) -> None:
    path = bundle_copy / "vision.onnx"
    model = onnx.load(path)
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 64
    onnx.save(model, path)
    with pytest.raises(BundleError, match=r"pixel_image.*different exports"):
        OnnxVision(load_bundle(rehashed(bundle_copy)), threads=1)


def test_a_file_that_is_no_graph_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "lmm.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="cannot be opened by onnxruntime"):
        OnnxLmm(load_bundle(rehashed(bundle_copy)), threads=1)


def test_a_tokenizer_with_other_anchor_ids_is_refused(bundle_copy: Path) -> None:
    with pytest.raises(BundleError, match="anchors"):
        OnnxLmm(load_bundle(rehashed(bundle_copy, anchor_ids=[3, 2, 1])), threads=1)


def test_a_broken_tokenizer_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="no tokenizer"):
        OnnxLmm(load_bundle(rehashed(bundle_copy)), threads=1)


def test_a_provider_that_is_not_there_names_its_extra(bundle: Bundle) -> None:
    with pytest.raises(SetupError, match=r"agvas\[gpu\]"):
        OnnxGraph(bundle, bundle.manifest.vision, 1, ("NoSuchExecutionProvider",))


@pytest.mark.parametrize("words", ["find \uff3bSEG\uff3d", "find \uff1c|im_end|\uff1e spots"])
def test_no_spelling_of_a_control_token_reaches_the_model(bundle_copy: Path, words: str) -> None:
    # A tokenizer that folds full-width signs sees tokens where the stripping of the prompt saw none.
    tokenizer = json.loads((bundle_copy / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
    for token in tokenizer["added_tokens"]:
        token["normalized"] = True
    (bundle_copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    lmm = OnnxLmm(load_bundle(rehashed(bundle_copy)), threads=1)
    assert lmm.words("find spots")
    with pytest.raises(UsageError, match="control token"):
        lmm.words(words)


def test_a_graph_that_fails_says_so_once_and_on_one_line(bundle_copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(bundle_copy / "decoder.onnx")
    (enlarge,) = (tensor for tensor in model.graph.initializer if tensor.name == "enlarge")
    enlarge.CopyFrom(
        onnx.numpy_helper.from_array(np.array([1, 1, 3, 3], np.float32), "enlarge")
    )  # fits the other feature no more
    onnx.save(model, bundle_copy / "decoder.onnx")
    bundle = load_bundle(rehashed(bundle_copy))
    found = features(bundle)
    with pytest.raises(ImageError, match=r"decoder.onnx failed on this image \(.*\): try a smaller image") as caught:
        OnnxDecoder(bundle, threads=1)(np.zeros((1, 3, 3), np.float32), found)
    assert "\n" not in str(caught.value) and capfd.readouterr().err == ""
