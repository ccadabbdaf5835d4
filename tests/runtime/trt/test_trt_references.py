"""The reference stage on TensorRT, with a stand-in underneath."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bench import Bench
from fake_kernels import FakeKernels

from agvas.fitting.fit import fit
from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.contract.preprocess import make_view, scaled_views
from agvas_runtime import native
from agvas_runtime.bundle import Bundle, load_bundle
from agvas_runtime.images.tiling import plan_scales
from agvas_runtime.stages.open import open_head, open_references, open_stages
from agvas_runtime.stages.protocol import FramePlan, FrameReferences, ReferenceDistances


def runtime_conftest():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("runtime_conftest", Path(__file__).parents[1] / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def references_bench(empty_bench: Bench) -> Bench:
    runtime_conftest().add_references(empty_bench.bundle, max_rows=40)
    empty_bench.build()
    return empty_bench


def test_trt_gives_the_distances_of_onnx_runtime(references_bench: Bench) -> None:
    bundle = load_bundle(references_bench.bundle)
    onnx, trt = open_references(bundle), open_references(bundle, "trt")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 64, 48, 3), np.uint8)  # more than the engine takes at once
    features = open_stages(bundle).vision(images[:, :32, :32], images)
    np.testing.assert_array_equal(trt.embed(images, features), onnx.embed(images, features))
    for rows in (40, 1, 17):
        bank = rng.random((rows, 4), np.float32)
        one, other = onnx(images, bank, features, colour_weight=0.5), trt(images, bank, features, colour_weight=0.5)
        for name in ReferenceDistances._fields:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


TRT = {"vision": "trt", "lmm": "trt", "decoder": "trt"}


@pytest.fixture
def kernels(empty_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> FakeKernels:
    """As if the native core had been built with CUDA, on the GPU of the bench."""
    core = native.core
    if core is None:
        pytest.skip("the native core was not built")
    fake = FakeKernels(core, empty_bench.cuda.run)
    monkeypatch.setattr(native, "core", fake)
    return fake


def plan_of(bundle: Bundle, size: tuple[int, int], references: FrameReferences | None) -> FramePlan:
    manifest = bundle.manifest
    views = scaled_views(manifest.pixel_view, manifest.scales, *size)
    looks = tuple(plan_scales(*size, views, manifest.tiling, enabled=True))
    return FramePlan(size, manifest.semantic_view, looks, manifest.decision.alpha, 2, references)


def test_a_whole_frame_with_its_distances_is_one_graph_launch(
    empty_bench: Bench, kernels: FakeKernels, make_part: Callable[..., Any]
) -> None:
    runtime_conftest().add_references(empty_bench.bundle, own_encoder=True)
    empty_bench.build()
    bundle = load_bundle(empty_bench.bundle)
    spec = bundle.manifest.references
    assert spec is not None and spec.view is not None
    stages, onnx = open_stages(bundle, **TRT), open_references(bundle)
    frames = stages.vision.framed(stages.lmm, stages.decoder)  # type: ignore[attr-defined]
    bank = np.random.default_rng(0).random((7, 4), np.float32)
    references = FrameReferences(open_references(bundle, "trt"), bank, spec.view, 0.5)
    images = [make_part(spots=spots) for spots in ([], [(40, 40, 9)], [(90, 60, 5)], [], [(30, 50, 7)])]
    with_it, without = (plan_of(bundle, images[0].shape[:2], each) for each in (references, None))
    point = bundle.manifest.decision.point()
    assert frames(images[0], with_it, "find the dark spots", point) is None  # the first of a size
    frames(images[0], without, "find the dark spots", point)
    for turn, image in enumerate(images):
        before = empty_bench.cuda.launches, empty_bench.cuda.allocations
        seen = frames(image, with_it, "find the dark spots", point).result()
        if turn > 1:
            assert (empty_bench.cuda.launches - before[0], empty_bench.cuda.allocations - before[1]) == (1, 0)
        alone = frames(image, without, "find the dark spots", point).result()
        assert np.array_equal(seen.score_map, alone.score_map) and alone.deep is None and alone.joint is None
        expected = onnx(make_view(spec.view, image).pixels[None], bank, colour_weight=0.5)
        np.testing.assert_array_equal(seen.deep, expected.deep[0])
        np.testing.assert_array_equal(seen.joint, expected.joint[0])


def test_whole_frames_whose_references_another_engine_has_go_the_other_way(
    empty_bench: Bench, kernels: FakeKernels, make_part: Callable[..., Any]
) -> None:
    runtime_conftest().add_references(empty_bench.bundle, own_encoder=True)
    empty_bench.build()
    bundle = load_bundle(empty_bench.bundle)
    stages = open_stages(bundle, **TRT)
    frames = stages.vision.framed(stages.lmm, stages.decoder)  # type: ignore[attr-defined]
    spec = bundle.manifest.references
    assert spec is not None and spec.view is not None
    elsewhere = FrameReferences(open_references(bundle), np.zeros((1, 4), np.float32), spec.view)
    too_large = FrameReferences(
        open_references(bundle, "trt"),
        np.zeros((1, 4), np.float32),
        spec.view.model_copy(update={"size_px": 512}),
    )
    image, point = make_part(), bundle.manifest.decision.point()
    features = replace(too_large, view=spec.view, takes_features=True)
    for references in (elsewhere, too_large, features):
        plan = plan_of(bundle, image.shape[:2], references)
        assert [frames(image, plan, "find", point) for _ in range(3)] == [None] * 3


def test_features_that_lie_on_the_gpu_stay_there(references_bench: Bench) -> None:
    bundle = load_bundle(references_bench.bundle)
    images = np.random.default_rng(1).integers(0, 256, (1, 64, 48, 3), np.uint8)
    on_gpu = open_stages(bundle, vision="trt").vision(images[:, :32, :32], images)
    bank = np.random.default_rng(2).random((9, 4), np.float32)
    one = open_references(bundle, "trt")(images, bank, on_gpu)
    other = open_references(bundle)(images, bank, on_gpu)
    np.testing.assert_array_equal(one.joint, other.joint)


def test_trt_gives_the_logits_of_a_products_head(
    empty_bench: Bench, make_part: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("agvas.fitting.head.is_better", lambda gain, areas: True)
    monkeypatch.setattr("agvas.fitting.head.STEPS", 3)
    monkeypatch.setattr("agvas.fitting.fit.PAINTED_IMAGES", 4)
    base = runtime_conftest().add_references(empty_bench.bundle)
    rng = np.random.default_rng(3)
    good = [np.clip(make_part() + rng.normal(0, 4, (96, 128, 3)), 0, 255).astype(np.uint8) for _ in range(8)]
    bundle = fit(good, tmp_path / "plate", model=base, head=True, threads=1).bundle
    replace(empty_bench, bundle=bundle.folder).build()
    embedding, rarities = rng.random((1, 16, 12, 4), np.float32), rng.random((1, 3, 16, 12), np.float32)
    one, other = (open_head(bundle, name)(embedding, rarities) for name in ("onnx", "trt"))
    assert one.shape == (1, 16, 12) and one.std() > 0
    np.testing.assert_array_equal(one, other)


def test_more_rows_than_the_engine_takes_are_refused(references_bench: Bench) -> None:
    bundle = load_bundle(references_bench.bundle)
    images = np.zeros((1, 64, 48, 3), np.uint8)
    features = open_stages(bundle).vision(images[:, :32, :32], images)
    with pytest.raises(UsageError, match=r"41 rows.*40.*smaller bank"):
        open_references(bundle, "trt")(images, np.zeros((41, 4), np.float32), features)


def test_engines_that_were_built_without_it_are_refused(empty_bench: Bench) -> None:
    runtime_conftest().add_references(empty_bench.bundle)
    with pytest.raises(SetupError, match=r"agvas-export trt"):
        open_references(load_bundle(empty_bench.bundle), "trt")
