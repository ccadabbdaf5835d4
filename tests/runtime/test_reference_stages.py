"""The reference stage: one answer from every engine, and errors that say what to do."""

from pathlib import Path

import numpy as np
import pytest

from agvas_core.contract.errors import BundleError, UsageError
from agvas_core.contract.preprocess import make_view
from agvas_runtime.bundle import load_bundle
from agvas_runtime.stages.open import StageSettings, open_references, open_stages
from agvas_runtime.stages.protocol import Features, ReferenceDistances

ONE_THREAD = StageSettings(threads=1)


def views(batch: int = 2) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).integers(0, 256, (batch, 64, 48, 3), np.uint8)


def features_of(folder: Path, images: np.ndarray) -> Features:  # type: ignore[type-arg]
    return open_stages(load_bundle(folder), settings=ONE_THREAD).vision(images[:, :32, :32], images)


def test_distances_of_the_vision_stages_features(tiny_references: Path) -> None:
    stage = open_references(load_bundle(tiny_references), settings=ONE_THREAD)
    images = views()
    features = features_of(tiny_references, images)
    cells = stage.embed(images, features)
    assert cells.shape == (2, 16, 12, 4) and cells.dtype == np.float32
    bank = cells[0].reshape(-1, 4)[:5]
    found = stage(images, bank, features, colour_weight=0.25)
    squares = (cells[..., None, :] - bank) ** 2
    np.testing.assert_array_equal(found.embedding, cells)
    np.testing.assert_allclose(found.deep, np.sqrt(squares[..., 0].min(3)), atol=1e-6)
    whole = squares[..., 0] + 0.25 * squares[..., 1:].sum(4)
    np.testing.assert_allclose(found.joint, np.sqrt(whole.min(3)), atol=1e-6)


def test_torch_gives_the_answer_of_onnx_runtime() -> None:
    pytest.importorskip("torch")
    bundle = load_bundle("nano")
    spec = bundle.manifest.references
    assert spec is not None and spec.view is None
    frames = np.random.default_rng(1).integers(0, 256, (2, 300, 400, 3), np.uint8)
    frames[:, 100:200, 100:260] = 90
    semantic, images = (
        np.stack([make_view(view, frame).pixels for frame in frames])
        for view in (bundle.manifest.semantic_view, bundle.manifest.pixel_view)
    )
    features = open_stages(bundle, settings=ONE_THREAD).vision(semantic, images)
    onnx, torch_stage = (open_references(bundle, name, ONE_THREAD) for name in ("onnx", "torch"))
    bank = onnx.embed(images, features)[0].reshape(-1, spec.channels)[::7] + np.float32(0.05)
    one, other = onnx(images, bank, features), torch_stage(images, bank, features)
    for name in ReferenceDistances._fields:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-4, err_msg=name)
    assert float(one.joint[0].mean()) < float(one.joint[1].mean()) + 1e-3


@pytest.mark.parametrize(
    "bank",
    [
        np.zeros((3, 5), np.float32),
        np.zeros((0, 4), np.float32),
        np.zeros((3, 4), np.float64),
        np.zeros(4, np.float32),
    ],
)
def test_a_bank_that_does_not_fit_is_refused(tiny_references: Path, bank: np.ndarray) -> None:  # type: ignore[type-arg]
    stage = open_references(load_bundle(tiny_references), settings=ONE_THREAD)
    images = views(1)
    with pytest.raises(UsageError, match=r"\[rows, 4\].*fit the product again"):
        stage(images, bank, features_of(tiny_references, images))


def test_what_is_missing_or_meaningless_is_refused(tiny_bundle: Path, tiny_references: Path) -> None:
    with pytest.raises(BundleError, match=r"no references graph.*agvas-export bundle"):
        open_references(load_bundle(tiny_bundle))
    bundle = load_bundle(tiny_references)
    with pytest.raises(UsageError, match=r"references is 'onx'.*did you mean onnx"):
        open_references(bundle, "onx")
    stage = open_references(bundle, settings=ONE_THREAD)
    with pytest.raises(UsageError, match="features"):
        stage.embed(views(1))
    images = views(1)
    for weight in (-1.0, float("nan")):
        with pytest.raises(UsageError, match="colour_weight is"):
            stage(images, np.zeros((1, 4), np.float32), features_of(tiny_references, images), colour_weight=weight)
