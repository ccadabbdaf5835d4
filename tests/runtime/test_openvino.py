"""The stages on OpenVINO say what they say on ONNX Runtime; bfloat16 only where it is asked for and the CPU has it."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agvas_core.contract.certificate import TOLERANCES
from agvas_core.contract.errors import BundleError, SetupError
from agvas_core.contract.prompts import Mode
from agvas_runtime.bundle import Bundle, load_bundle
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.profile.session import generated_frame
from agvas_runtime.stages.open import Stages, StageSettings, open_references, open_stages

ov = pytest.importorskip("openvino")
TOLERANCE = TOLERANCES["fp32"]
ASK = "Please segment the anomalies in this image."


def stages(bundle: Bundle, name: str) -> Stages:
    return open_stages(bundle, vision=name, lmm=name, decoder=name, settings=StageSettings(threads=1))


def off(one: Any, other: Any) -> float:
    """As ``Tolerance`` says."""
    return float(np.abs(one - other).max() / max(1.0, np.abs(other).max()))


def test_each_stage_gives_the_answer_of_onnx_runtime() -> None:
    bundle = load_bundle("nano")
    rng = np.random.default_rng(3)
    views = rng.integers(0, 256, (1, 128, 128, 3), np.uint8), rng.integers(0, 256, (1, 192, 256, 3), np.uint8)
    mine, theirs = stages(bundle, "openvino"), stages(bundle, "onnx")
    seen, truth = mine.vision(*views), theirs.vision(*views)
    assert off(seen.f_s, truth.f_s) < TOLERANCE.features and off(seen.f_align, truth.f_align) < TOLERANCE.features
    assert all(off(seen.decoder[name], truth.decoder[name]) < TOLERANCE.features for name in truth.decoder)
    for mode in (Mode.DIRECT, Mode.DESCRIBE):  # a prefill, and word by word with a cache
        said, told = mine.lmm(truth, ASK, mode), theirs.lmm(truth, ASK, mode)
        assert said.answers == told.answers and off(said.anchor_states, told.anchor_states) < TOLERANCE.anchor_states
    anchors = told.anchor_states
    assert off(mine.decoder(anchors, truth), theirs.decoder(anchors, truth)) < TOLERANCE.logits
    far, near = (open_references(bundle, name, StageSettings(threads=1)) for name in ("openvino", "onnx"))
    bank = near.embed(views[1], truth)[0].reshape(-1, near.spec.channels)[::5] + np.float32(0.05)
    for one, other in zip(far(views[1], bank, truth), near(views[1], bank, truth), strict=True):
        assert off(one, other) < TOLERANCE.features


def test_threads_do_not_mix_their_answers(tiny_bundle: Path) -> None:
    vision = stages(load_bundle(tiny_bundle), "openvino").vision
    rng = np.random.default_rng(5)
    views = [rng.integers(0, 256, (1, 64, 64, 3), np.uint8) for _ in range(4)]
    alone = [vision(view[:, :32, :32], view).f_s for view in views]
    found: dict[int, bool] = {}

    def look(index: int) -> None:
        view = views[index]
        found[index] = all(np.array_equal(vision(view[:, :32, :32], view).f_s, alone[index]) for _ in range(5))

    threads = [threading.Thread(target=look, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


def test_a_frame_has_the_same_verdict(tiny_bundle: Path) -> None:
    frame = generated_frame(96)
    by_ort, by_ov = (
        Segmenter.load(tiny_bundle, vision=name, lmm=name, decoder=name, threads=1).segment(frame)
        for name in ("onnx", "openvino")
    )
    assert by_ov.verdict == by_ort.verdict and by_ov.score == pytest.approx(by_ort.score, abs=TOLERANCE.probability)


def test_bfloat16_is_refused_where_the_cpu_has_none(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(ov, "Core", Core)
    with pytest.raises(SetupError, match="BF16"):
        open_stages(load_bundle(tiny_bundle), vision="openvino-bf16")


def test_a_graph_of_another_export_is_refused(tiny_bundle: Path) -> None:
    from agvas_runtime.stages.openvino import OpenVinoGraph

    bundle = load_bundle(tiny_bundle)
    spec = bundle.manifest.vision
    with pytest.raises(BundleError, match="export the bundle again"):
        OpenVinoGraph(bundle, spec.model_copy(update={"file": bundle.manifest.decoder.file}), 1)
