"""Calibration: what it promises on the images it has seen, and that it sees them as the runtime does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agvas_core.contract.decision import BALANCED, STRICT, Decision, OperatingPoint, anomaly_mask
from agvas_core.contract.errors import UsageError
from agvas_core.contract.prompts import DEFAULT_INSTRUCTION, FIXED_ANSWER, NO_ANOMALY_ANSWER, Anchor
from agvas_core.data.synthetic.dialogue import train_tokenizer
from agvas_core.evaluation.checkpoint import CheckpointPredictor
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model
from agvas_core.model.config import AgmdConfig, ModelConfig, load_preset, parse_config
from agvas_core.model.fusion import anomaly_probability
from agvas_core.model.lmm import acceptance
from agvas_core.model.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from agvas_core.train import threshold_search
from agvas_core.train.calibration import FrameLogits, calibrate, calibrate_checkpoint, decided, lowered, summary
from agvas_core.train.config import CalibrationConfig, TrainConfig, parse_train_config
from agvas_core.train.threshold_search import GATES, SEEDS, THRESHOLDS, Scored, judge, overlap, search, strict_seed, table

SMALL = CalibrationConfig(images=4, sizes=((96, 96), (96, 160)), kept_px=96)


def scored_images(count: int = 40) -> list[Scored]:
    """Half of them good; defects are brighter than the spots of good images, mostly, and refused less often."""
    rng = np.random.default_rng(7)
    images = []
    for index in range(count):
        score_map = (0.3 * rng.random((40, 50))).astype(np.float32)
        truth = np.zeros(score_map.shape, bool)
        for _ in range(int(rng.integers(0, 4))):
            y, x = rng.integers(0, 36), rng.integers(0, 46)
            score_map[y : y + 3, x : x + 3] = rng.uniform(0.3, 0.8)
        if index % 2:
            y, x = rng.integers(0, 28), rng.integers(0, 38)
            truth[y : y + 12, x : x + 12] = True
            score_map[y : y + 13, x : x + 11] = rng.uniform(0.4, 0.7)
            score_map[y + 4 : y + 6, x + 4 : x + 6] = rng.uniform(0.6, 1.0)
        images.append(Scored(score_map, truth, float(np.clip(rng.normal(0.7 if index % 2 else 0.4, 0.2), 0, 1))))
    return images


def test_tables_say_what_the_rule_itself_gives() -> None:
    for image in scored_images(6):
        for threshold in THRESHOLDS[::6]:
            found = table(image, threshold)
            for row, seed in enumerate(SEEDS):
                if seed >= threshold:
                    point = OperatingPoint(threshold=threshold, seed_threshold=seed, min_area_fraction=0.0)
                    assert found[row] == pytest.approx(overlap(anomaly_mask(image.score_map, point), image.truth))


@pytest.mark.parametrize("asked", [0.3, 0.8, 1.0])
def test_the_balanced_point_is_the_best_of_all_that_keep_the_asked_share(monkeypatch: pytest.MonkeyPatch, asked: float) -> None:
    monkeypatch.setattr(threshold_search, "SEEDS", SEEDS[::8])
    monkeypatch.setattr(threshold_search, "THRESHOLDS", SEEDS[:25:8])
    images = scored_images()
    found = search(images, asked)
    again = judge(images, found.point)
    assert (found.iou_ano, found.iou_nor) == (pytest.approx(again.iou_ano), pytest.approx(again.iou_nor))
    everything = [
        judge(images, OperatingPoint(threshold=threshold, seed_threshold=seed, min_area_fraction=0.0, gate=gate))
        for threshold in threshold_search.THRESHOLDS for seed in threshold_search.SEEDS for gate in GATES if seed >= threshold
    ]  # fmt: skip
    kept = [judged.iou_ano for judged in everything if judged.iou_nor >= asked]
    assert found.iou_nor >= asked and found.iou_ano == pytest.approx(max(kept))


def test_where_nothing_keeps_the_asked_share_the_most_careful_point_is_taken() -> None:
    images = [Scored(np.ones((8, 8), np.float32), np.full((8, 8), bad), 1.0) for bad in (True, False)]
    assert search(images, 0.9).iou_nor == 0.0
    assert search(images, 0.9).iou_ano == 1.0


def test_maps_that_are_alike_get_the_plainest_point() -> None:
    bad = np.zeros((8, 8), np.float32)
    bad[2:6, 2:6] = 0.999999
    point = search([Scored(bad, bad > 0.5, 1.0), Scored(np.zeros((8, 8), np.float32), np.zeros((8, 8), bool), 1.0)], 0.8).point
    assert point.gate == point.min_area_fraction == 0 and point.plain


@pytest.mark.parametrize("asked", [0.5, 0.8, 0.95])
def test_the_strict_seed_keeps_its_share_of_good_images_and_hardly_more(asked: float) -> None:
    images = [image for image in scored_images(200) if not image.truth.any()]
    point = OperatingPoint(threshold=0.25, seed_threshold=0.25, min_area_fraction=0.0005, gate=0.2)
    seed = strict_seed(images, point, asked)
    assert asked <= judge(images, point.model_copy(update={"seed_threshold": seed})).iou_nor <= asked + 0.03


def test_the_strict_seed_looks_at_good_images_only_and_is_no_lower_than_the_balanced_one() -> None:
    images = scored_images()
    point = OperatingPoint(threshold=0.25, seed_threshold=0.55)
    good = [image for image in images if not image.truth.any()]
    assert strict_seed(images, point, 0.9) == strict_seed(good, point, 0.9)
    assert strict_seed(good, point, 0.01) == strict_seed([], point, 0.9) == 0.55


def seen_images() -> list[FrameLogits]:
    """What a model might see whose maps all lie too high by 1.5."""
    images = []
    for image in scored_images():
        logits = np.log((image.score_map + 1e-3) / (1.001 - image.score_map)) * 4 + 1.5
        images.append(FrameLogits(np.stack([logits, logits]).astype(np.float16), image.truth, 1.0))
    return images


def test_decided_points_do_what_the_record_says() -> None:
    on = CalibrationConfig(balanced_iou_nor=0.7, strict_iou_nor=0.9)
    images = seen_images()
    found = decided(images, Decision(), on)
    scored = [image.scored(found.shift, found.decision.alpha) for image in images]
    for name in (BALANCED, STRICT):
        judged = judge(scored, found.decision.point(name))
        assert found.record[name]["iou_ano"] == pytest.approx(judged.iou_ano, abs=1e-3)
        assert found.record[name]["iou_nor"] == pytest.approx(judged.iou_nor, abs=1e-3)
    balanced, strict = (found.decision.point(name) for name in (BALANCED, STRICT))
    assert found.record[BALANCED]["iou_nor"] >= 0.7 and found.record[STRICT]["iou_nor"] >= 0.9
    assert strict == balanced.model_copy(update={"seed_threshold": strict.seed_threshold})
    curve = {row["shift"]: row["iou_ano"] * row["iou_nor"] for row in found.record["shifts"]}
    assert curve[found.shift] == max(curve.values())


def test_a_shift_of_the_bias_is_a_shift_of_the_maps(nano: tuple[AgVas, ModelConfig]) -> None:
    model, config = nano
    tokenizer = train_tokenizer(config.lmm.vocab_size)
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    before, _ = CheckpointPredictor(model, config, tokenizer).logits(image, (96, 128))
    found = replace(decided(seen_images(), Decision(), SMALL), shift=1.5)
    shifted = build_model(config).eval()
    shifted.load_state_dict(found.moved(model.state_dict()))
    after, _ = CheckpointPredictor(shifted, config, tokenizer).logits(image, (96, 128))
    np.testing.assert_allclose(after, before - 1.5, atol=1e-4)


@pytest.mark.parametrize(
    "lacks", [{"anchors": ("NOR", "ANO")}, {"agmd": AgmdConfig(upscale=1, literal=True)}], ids=["anchor", "eq-6-literal"]
)
def test_a_model_without_a_bias_for_each_anchor_gets_operating_points_alone(
    nano: tuple[AgVas, ModelConfig], recipe: TrainConfig, lacks: dict[str, Any]
) -> None:
    config = nano[1].model_copy(update={"scales": (0.3,), **lacks})
    model = build_model(config).eval()
    found = calibrate(model, config, recipe, train_tokenizer(config.lmm.vocab_size), SMALL)
    assert found.shift == 0 and [row["shift"] for row in found.record["shifts"]] == [0.0]
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.moved(state).items())
    assert set(found.decision.operating_points) == {BALANCED, STRICT}


@pytest.fixture(scope="module")
def nano() -> tuple[AgVas, ModelConfig]:
    """Nano's model as it is before training, at two scales."""
    torch.manual_seed(0)
    config = parse_config(load_preset("nano")["model"]).model_copy(update={"scales": (0.3, 0.6)})
    return build_model(config).eval(), config


@pytest.fixture(scope="module")
def recipe() -> TrainConfig:
    table = load_preset("nano")["train"]
    return parse_train_config(table | {"calibration": SMALL.model_dump()})


def test_the_images_are_seen_as_the_runtime_sees_them(nano: tuple[AgVas, ModelConfig]) -> None:
    """The runtime's own scoring, on stages that are the torch model."""
    from agvas_core.contract.manifest import GraphSpec, Manifest, PromptSpec
    from agvas_core.model.build import chat_format
    from agvas_runtime.pipeline.scorer import Clock, Scorer
    from agvas_runtime.stages.protocol import Features, Reply

    model, config = nano
    tokenizer = train_tokenizer(config.lmm.vocab_size)
    predictor = CheckpointPredictor(model, config, tokenizer)
    ids, start = predictor.direct_row()
    openings = [tokenizer.encode(answer).ids[0] for answer in (FIXED_ANSWER, NO_ANOMALY_ANSWER)]
    seen: list[Any] = []

    @torch.no_grad()
    def vision(semantic: NDArray[np.uint8], pixel: NDArray[np.uint8]) -> Features:
        output = model(
            torch.from_numpy(semantic),
            torch.from_numpy(pixel),
            ids,
            torch.ones_like(ids),
            start,
        )
        seen.append(output)
        nothing = np.zeros((1, 1, 1), np.float32)
        return Features(nothing, nothing, {})

    def lmm(features: Features, *question: object) -> Reply:
        accept = acceptance(seen[-1].text_logits, start, *openings).numpy()
        return Reply(np.zeros((1, 3, 1), np.float32), accept, np.ones(1, bool))

    blank = GraphSpec(file="none.onnx", inputs=(), outputs=())
    manifest = Manifest(
        name="nano",
        created="2026-01-01",
        anchor_ids=config.lmm.anchor_ids,
        semantic_view=config.semantic_view,
        pixel_view=config.pixel_view,
        scales=config.scales,
        prompt=PromptSpec(chat=chat_format(config.lmm), end_id=config.lmm.end_token_id, image_id=config.lmm.image_token_id),
        vision=blank,
        lmm=blank,
        decoder=blank,
        decision=config.decision,
        files={},
    )
    scorer = Scorer(manifest, vision, lmm, lambda states, features: seen[-1].mask_logits.numpy())
    for size in ((100, 180), (128, 128)):
        image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
        found = scorer.score(image, DEFAULT_INSTRUCTION, Clock())
        maps, accept = predictor.logits(image, size)
        wanted = FrameLogits(maps.astype(np.float16), np.zeros(size, bool), accept).scored(0.0, config.decision.alpha)
        np.testing.assert_allclose(
            found.logits.score_map(config.decision.alpha), wanted.score_map, atol=2e-3
        )  # half precision in between
        assert found.accept == pytest.approx(accept, abs=1e-6) and 0 < accept < 1
    assert len(seen) == 2 * len(config.scales)


def test_a_checkpoint_is_calibrated_again_without_training(
    nano: tuple[AgVas, ModelConfig], recipe: TrainConfig, tmp_path: Path
) -> None:
    model, config = nano
    tokenizer = train_tokenizer(config.lmm.vocab_size)
    save_checkpoint(tmp_path / "run", model.state_dict(), config, tokenizer, {"step": 7})
    source, steps = load_checkpoint(tmp_path / "run"), list[tuple[int, int]]()
    preset = config.model_copy(update={"scales": (0.4,), "pixel_view": config.pixel_view.model_copy(update={"size_px": 256})})
    out = calibrate_checkpoint(source, preset, recipe, tmp_path / "again", lambda *step: steps.append(step))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    again = load_checkpoint(out)
    assert again.training["step"] == 7 and again.training["calibration"]["config"]["images"] == 4
    assert again.config == preset.model_copy(update={"decision": again.config.decision})
    assert set(again.config.decision.operating_points) == {BALANCED, STRICT}
    changed = [name for name, tensor in again.model.state_dict().items() if not torch.equal(tensor, model.state_dict()[name])]
    assert changed == (["agmd.bias"] if again.training["calibration"]["shift"] else [])
    assert [line.split(":")[0] for line in summary(out)] == [BALANCED, STRICT]
    assert summary(save_and_forget(source, tmp_path / "plain")) == []

    with pytest.raises(UsageError, match="already holds a checkpoint"):
        calibrate_checkpoint(source, preset, recipe, out, lambda *step: None)
    other = preset.model_copy(update={"name": "other"})
    with pytest.raises(UsageError, match="has name = nano, the preset has other"):
        calibrate_checkpoint(source, other, recipe, tmp_path / "other", lambda *step: None)


def save_and_forget(source: Checkpoint, folder: Path) -> Path:
    save_checkpoint(folder, source.model.state_dict(), source.config, source.tokenizer, {"calibration": None})
    return folder


def test_sizes_that_would_be_tiled_are_refused(nano: tuple[AgVas, ModelConfig], recipe: TrainConfig) -> None:
    model, config = nano
    tokenizer = train_tokenizer(config.lmm.vocab_size)
    with pytest.raises(UsageError, match="size 96x1800 px would be cut into tiles"):
        calibrate(model, config, recipe, tokenizer, SMALL.model_copy(update={"sizes": ((96, 1800),)}))


def test_acceptance_is_the_openings_own_probability() -> None:
    logits = torch.zeros(2, 5, 7)
    logits[0, 2, 3], logits[0, 2, 4] = 2.0, -1.0
    logits[1, 0, 4] = 5.0
    found = acceptance(logits, torch.tensor([3, 1]), 3, 4)
    openings = torch.stack([logits[0, 2, [3, 4]], logits[1, 0, [3, 4]]])
    torch.testing.assert_close(found, openings.softmax(1)[:, 0])


def test_lowered_logits_lower_the_map_everywhere() -> None:
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (anomaly_probability(lowered(logits, 1.5)) < anomaly_probability(logits)).all()
    assert torch.equal(lowered(logits, 0.0), logits)
    logits[:, Anchor.SEG] = logits[:, Anchor.ANO] - logits[:, Anchor.NOR]  # both maps alike, so P has their logits
    raised = torch.logit(anomaly_probability(logits)) - torch.logit(anomaly_probability(lowered(logits, 1.5)))
    torch.testing.assert_close(raised, torch.full_like(raised, 1.5), atol=1e-4, rtol=0)
