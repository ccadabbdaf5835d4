"""From examples of a mixture, and from generated images, to what the model takes: words, anchors, masks; and who sees which when."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from agvas_core.contract.errors import UsageError
from agvas_core.contract.prompts import ANCHORS, Anchor
from agvas_core.data.datasets.record import Turn
from agvas_core.data.mixture.config import Source
from agvas_core.data.mixture.example import Example
from agvas_core.data.mixture.mixture import Mixture
from agvas_core.data.synthetic.dialogue import train_tokenizer
from agvas_core.data.templates.rules import Task
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model, visual_tokens
from agvas_core.model.config import ModelConfig
from agvas_core.model.lmm import find_anchors
from agvas_core.model.losses import IGNORED_TARGET, SegmentationWeights, segmentation_loss, supervision_counts, text_loss
from agvas_core.model.weights.checkpoint import start_tokenizer
from agvas_core.model.weights.pretrained_config import resolve_config
from agvas_core.train.aux_heads import AuxHeads
from agvas_core.train.batches import Batch, Encoded, GeneratedExamples, MixtureExamples, Parts, collate, encode
from agvas_core.train.config import TrainConfig, parse_mixture_config, parse_train_config
from agvas_core.train.objective import Counts, Objective
from agvas_core.train.schedule import Plan, Shares, learning_rate


@pytest.fixture(scope="module")
def model(tables: dict[str, Any]) -> ModelConfig:
    return resolve_config(tables["model"])


@pytest.fixture(scope="module")
def tokenizer(model: ModelConfig) -> Tokenizer:
    found = start_tokenizer(model)
    assert found is not None
    return found


def encoded(example: Example, tokenizer: Tokenizer, model: ModelConfig, max_text_tokens: int) -> Encoded:
    return encode(example.turns, tokenizer, model, max_text_tokens, masked=example.mask is not None)


def said(ids: list[int], tokenizer: Tokenizer) -> str:
    """Characters, which is what the tiny tokenizer has for words."""
    return "".join(tokenizer.id_to_token(token) for token in ids)


@pytest.fixture
def example() -> Callable[..., Example]:
    def make(
        *turns: tuple[str, str], shape: tuple[int, int] = (24, 32), supervised: tuple[Anchor, ...] = tuple(Anchor)
    ) -> Example:
        mask = np.zeros(shape, bool)
        mask[: shape[0] // 2] = True
        anchored = any(ANCHORS in answer for _, answer in turns)
        return Example(
            index=0,
            source=Source.SEG,
            task=Task.DIRECT,
            dataset="set",
            name="image",
            image=np.full((*shape, 3), 128, np.uint8),
            mask=mask if anchored else None,
            supervised=supervised if anchored else (),
            turns=tuple(Turn(*turn) for turn in turns),
            anomalous=True,
            skipped=(),
        )

    return make


def test_answers_are_learned_and_nothing_else(example: Callable[..., Example], model: ModelConfig, tokenizer: Tokenizer) -> None:
    row = encoded(
        example(("What is it?", "A part."), ("Mark it.", f"Sure, {ANCHORS}."), ("Why?", "A dent.")), tokenizer, model, 500
    )
    taught = [token for token in row.labels if token != IGNORED_TARGET]
    assert said(taught, tokenizer) == f"A part.<|im_end|>Sure, {ANCHORS}.<|im_end|>A dent.<|im_end|>"
    whole = said([token for token in row.ids if token != model.lmm.image_token_id], tokenizer)
    assert whole.startswith(
        "<|im_start|>user\n\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA part.<|im_end|>\n<|im_start|>user\nMark it."
    )
    assert row.ids.count(model.lmm.image_token_id) == visual_tokens(model)


def test_the_anchors_are_found_in_the_answer_that_carries_them(
    example: Callable[..., Example], model: ModelConfig, tokenizer: Tokenizer
) -> None:
    row = encoded(
        example(("What is it?", "A part."), ("Mark it.", f"Sure, {ANCHORS}."), ("Why?", "A dent.")), tokenizer, model, 500
    )
    positions, found = find_anchors(torch.tensor([row.ids]), model.lmm.anchor_ids, torch.tensor([row.answer_start]))
    assert row.anchored and found.all()
    assert [row.ids[at] for at in positions[0]] == list(model.lmm.anchor_ids)


def test_an_exchange_without_anchors_has_no_mask_to_learn(
    example: Callable[..., Example], model: ModelConfig, tokenizer: Tokenizer
) -> None:
    batch = collate([example(("Hello?", "Yes.")), example(("Mark it.", ANCHORS))], model, tokenizer, 500)
    assert batch.supervise.tolist() == [[False] * 3, [True] * 3]
    found = find_anchors(batch.input_ids, model.lmm.anchor_ids, batch.answer_start)[1]
    assert found.tolist() == [False, True]


def test_what_is_too_long_loses_its_end_and_never_half_of_the_anchors(
    example: Callable[..., Example], model: ModelConfig, tokenizer: Tokenizer
) -> None:
    long = example(("Mark it.", f"Sure, {ANCHORS}."), ("Why?", "x" * 300), ("And?", "y" * 300))
    row = encoded(long, tokenizer, model, 200)
    assert row.anchored and len(row.ids) <= 200 + visual_tokens(model)
    assert "x" not in said(row.ids, tokenizer)
    cut = encoded(example(("z" * 300, f"Sure, {ANCHORS}.")), tokenizer, model, 200)
    assert not cut.anchored and len(cut.ids) == len(cut.labels) == 200 + visual_tokens(model)
    assert not collate([example(("z" * 300, f"Sure, {ANCHORS}."))], model, tokenizer, 200).supervise.any()


def test_an_ablation_writes_and_supervises_only_its_own_anchors(
    example: Callable[..., Example], tables: dict[str, Any], tokenizer: Tokenizer
) -> None:
    table = tables["model"] | {"anchors": ["SEG"], "decision": {"alpha": 1.0}}
    batch = collate([example(("Mark it.", ANCHORS))], resolve_config(table), tokenizer, 500)
    assert batch.supervise.tolist() == [[False, False, True]]
    nor, ano, seg = resolve_config(table).lmm.anchor_ids
    assert seg in batch.input_ids and nor not in batch.input_ids and ano not in batch.input_ids


def test_a_mask_lies_where_the_view_shows_the_image(
    example: Callable[..., Example], model: ModelConfig, tokenizer: Tokenizer
) -> None:
    batch = collate([example(("Mark it.", ANCHORS), shape=(12, 24))], model, tokenizer, 500)  # letterbox of 32: 16 x 32
    assert batch.pixel.shape == (1, 32, 32, 3)
    assert batch.valid[0, :16].all() and not batch.valid[0, 16:].any()
    assert batch.mask[0, :8].all() and not batch.mask[0, 8:].any()


def test_images_of_unlike_shape_share_the_view_of_the_first(
    example: Callable[..., Example], tokenizer: Tokenizer, tables: dict[str, Any]
) -> None:
    view = {"fit": "area", "size_px": 32, "multiple_px": 4, "mean": [0.5] * 3, "std": [0.5] * 3}
    area = resolve_config(tables["model"]).model_copy(
        update={"pixel_view": resolve_config(tables["model"]).pixel_view.model_validate(view)}
    )
    batch = collate([example(("a", ANCHORS), shape=(20, 40)), example(("b", ANCHORS), shape=(40, 20))], area, tokenizer, 500)
    height, width = batch.pixel.shape[1:3]
    assert height < width and batch.valid.all()
    assert batch.mask[1, : height // 2 - 1].all() and not batch.mask[1, height // 2 + 1 :].any()


def test_any_number_of_processes_sees_the_same_examples_in_a_step() -> None:
    alone = Shares(12, 3)
    together = [Shares(12, 2, rank, 3) for rank in range(3)]
    for step in range(3):
        one = [index for part in range(alone.accumulation) for index in alone.part(step * alone.accumulation + part)]
        many = [
            index
            for each in together
            for part in range(each.accumulation)
            for index in each.part(step * each.accumulation + part)
        ]
        assert one == many == list(range(step * 12, step * 12 + 12))
    with pytest.raises(UsageError, match="micro_batch can be 1, 2, 4"):
        Shares(8, 3, 0, 2)
    with pytest.raises(UsageError, match="make it a multiple of 3"):
        Shares(8, 1, 0, 3)


def test_the_rate_rises_and_falls_in_straight_lines() -> None:
    config = TrainConfig(steps=1000, warmup_steps=100)
    assert learning_rate(config, 0) == pytest.approx(3e-6)
    assert learning_rate(config, 99) == learning_rate(config, 100) == 3e-4
    assert learning_rate(config, 550) == pytest.approx(1.5e-4)
    assert learning_rate(config, 999) == pytest.approx(3e-4 / 900)
    cosine = TrainConfig(steps=1000, warmup_steps=100, schedule="cosine")
    assert learning_rate(cosine, 0) == pytest.approx(3e-6) and learning_rate(cosine, 500) == pytest.approx(3e-4 * 0.505)
    assert learning_rate(cosine, 999) == pytest.approx(3e-6, rel=1e-2)


def test_a_plan_numbers_phases_of_unlike_batches_without_a_gap() -> None:
    cut = {"weight": 1, "canvas": [64, 64], "size": [64, 64], "how": "crop"}
    phases = [{"share": 3, "batch": 6, "cuts": [cut]}, {"share": 1, "batch": 4, "cuts": [cut]}]
    train = TrainConfig.model_validate(
        {"examples": "generated", "images": 32, "warmup_steps": 0, "phases": phases, "micro_batch": 2}
    )
    seen: list[list[int]] = []
    for rank in (0, 1):
        with pytest.raises(UsageError, match="cannot be shared by 2"):
            Plan(train, rank, 2)
    plan = Plan(train)
    assert [span.first_step for span in plan.spans] == [0, 4] and plan.steps == 6 and train.total_images == 32
    for number in range(plan.parts):
        span, step, images = plan.part(number)
        assert span is plan.span(step) and plan.parts_before(step) <= number < plan.parts_before(step) + span.shares.accumulation
        seen.append(list(images))
    assert [image for part in seen for image in part] == list(range(32))
    assert [plan.images_before(step) for step in range(7)] == [0, 6, 12, 18, 24, 28, 32]


def test_the_parts_of_a_step_add_up_to_the_step() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, text = torch.randn(6, 3, 8, 8, generator=generator), torch.randn(6, 5, 11, generator=generator)
    target = (torch.rand(6, 8, 8, generator=generator) > 0.7).float()
    target[2] = 0
    labels = torch.randint(0, 11, (6, 5), generator=generator)
    labels[1:4, :3] = IGNORED_TARGET
    supervise = torch.rand(6, 3, generator=generator) > 0.4
    weights = SegmentationWeights(dice_on_empty=False)
    whole = segmentation_loss(logits, target, weights, supervise)[0] + text_loss(text, labels)
    counts, tokens = supervision_counts(target, supervise, weights), (labels[:, 1:] != IGNORED_TARGET).sum()
    parts = [
        segmentation_loss(logits[at], target[at], weights, supervise[at], counts=counts)[0]
        + text_loss(text[at], labels[at], count=tokens)
        for at in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_padding_counts_in_no_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 3, 8, 8, generator=generator), torch.zeros(2, 8, 8)
    target[:, 1:3] = 1
    valid = torch.zeros(2, 8, 8, dtype=torch.bool)
    valid[:, :5] = True
    shown = segmentation_loss(logits, target, valid=valid)[0]
    torch.testing.assert_close(shown, segmentation_loss(logits[:, :, :5], target[:, :5])[0])


def test_held_out_images_are_never_drawn_from_any_source(tables: dict[str, Any]) -> None:
    mixture = Mixture.load(parse_mixture_config(tables["mixture"] | {"held_out": 0.5, "shares": {"seg": 1}}))
    held = {record.image.resolve() for record in mixture.held_out}
    assert held
    pools = mixture.pools[Source.SEG]
    drawn = {
        pools.draw(stratum, np.random.default_rng(number)).image.resolve() for stratum in pools.counts() for number in range(40)
    }
    assert drawn and not drawn & held
    assert Mixture.load(mixture.config).held_out == mixture.held_out


def test_overfitting_repeats_the_first_examples(tables: dict[str, Any], model: ModelConfig, tokenizer: Tokenizer) -> None:
    train = parse_train_config(tables["train"])
    mixture = Mixture.load(parse_mixture_config(tables["mixture"] | {"held_out": 0.0}))
    parts = Parts(MixtureExamples(mixture, train, model, tokenizer), Plan(train), overfit=2)
    assert parts[0].names == parts[1].names == parts[7].names


def test_wrong_tables_name_the_key(generated: dict[str, Any]) -> None:
    for table, said in (
        ({"micro_batc": 2}, r"micro_batc.*did you mean micro_batch"),
        ({"batch": 10, "micro_batch": 4}, "batch 10 is no multiple of micro_batch 4"),
        ({"steps": 50}, "warmup_steps 100 leave nothing of 50 steps"),
        ({"steps": 50, "images": 100}, "images 100 and steps 50"),
        (generated["train"] | {"steps": 5, "images": None}, "phases have batches of their own"),
        (generated["train"] | {"examples": "sets"}, 'say examples = "generated"'),
        ({"examples": "generated", "images": 5}, "need cuts"),
        ({"loss": {"aux_heads": 0.5}}, "loss.aux_heads is 0.5"),
        ({"deepspeed": "zero2", "ema_decay": 0.9}, "ema_decay does not go with deepspeed"),
        (generated["train"] | {"deepspeed": "zero2", "ema_decay": None}, "freeze parts do not go with deepspeed"),
    ):
        with pytest.raises(UsageError, match=said):
            parse_train_config(table)


def test_keys_of_earlier_versions_name_the_new_ones() -> None:
    with pytest.raises(UsageError, match=r"loss\.aux_heads = 0\.5"):
        parse_train_config({"loss": {"kinds": 0.5}})
    with pytest.raises(UsageError, match=r"calibration = \{ balanced_iou_nor = 0\.9 \}"):
        parse_train_config({"calibrate": 0.9})


def test_a_set_that_is_not_there_is_named(tables: dict[str, Any], tmp_path: Path) -> None:
    mixture = parse_mixture_config({"sets": [{"name": "ade20k", "path": tmp_path / "nowhere"}]})
    with pytest.raises(UsageError, match="nowhere is not there"):
        Mixture.load(mixture)


# Generated images.


@pytest.fixture(scope="module")
def nano(generated: dict[str, Any]) -> tuple[ModelConfig, TrainConfig, Tokenizer]:
    config = resolve_config(generated["model"])
    return config, parse_train_config(generated["train"]), train_tokenizer(config.lmm.vocab_size)


def test_a_generated_batch_is_a_function_of_its_numbers(nano: tuple[ModelConfig, TrainConfig, Tokenizer]) -> None:
    config, train, tokenizer = nano
    phase = train.phases[0]
    first, again = (GeneratedExamples(train, config, tokenizer).batch(phase, 3, [6, 7]) for _ in range(2))
    other = GeneratedExamples(train.model_copy(update={"seed": 1}), config, tokenizer).batch(phase, 3, [6, 7])
    assert torch.equal(first.pixel, again.pixel) and torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.pixel, other.pixel)
    assert first.pixel.shape[1:3] == first.mask.shape[1:]
    alone = GeneratedExamples(train, config, tokenizer).batch(phase, 3, [7])
    assert torch.equal(alone.pixel[0], first.pixel[1]) and torch.equal(alone.mask, first.mask[first.image_of == 1])
    assert all(bool(first.kinds[number].any()) == bool(first.anomalous[number]) for number in range(2))


def test_only_the_answer_is_learned(nano: tuple[ModelConfig, TrainConfig, Tokenizer]) -> None:
    config, train, tokenizer = nano
    batch = GeneratedExamples(train, config, tokenizer).batch(train.phases[0], 0, [0, 1, 2, 3])
    for ids, labels, start in zip(batch.input_ids, batch.labels, batch.answer_start, strict=True):
        assert (labels[:start] == IGNORED_TARGET).all()
        taught = labels != IGNORED_TARGET
        if taught.sum() == 1:  # an answer that should not have been given: its first token alone is taught, and it is another
            assert taught[start] and labels[start] != ids[start]
            assert tokenizer.decode(labels[taught].tolist()) == "There"
            continue
        assert torch.equal(labels[taught], ids[taught])
        assert tokenizer.decode(labels[taught].tolist(), skip_special_tokens=False).endswith("<|im_end|>")


def test_the_parts_of_a_generated_step_add_up_with_all_their_heads(nano: tuple[ModelConfig, TrainConfig, Tokenizer]) -> None:
    config, train, tokenizer = nano
    torch.manual_seed(0)
    model = build_model(config).eval()
    objective = Objective(model, train, AuxHeads.of(model, config))
    examples = GeneratedExamples(train, config, tokenizer)

    def batch_of(first: int, end: int) -> Batch:
        batch = examples.batch(train.phases[0], 0, range(first, end))
        assert batch.asked is not None
        batch.asked[:, 1:] = ((batch.image_of + first) % 2)[:, None]  # few instructions name place, size and tone
        return batch

    whole, parts = batch_of(0, 6), [batch_of(*ends) for ends in ((0, 1), (1, 4), (4, 6))]
    counts = Counts(torch.stack([objective.counts(part).values for part in parts]).sum(0))
    torch.testing.assert_close(counts.values, objective.counts(whole).values)
    assert (counts.values > 0).all()  # every head has something to learn
    found = [objective(part, counts) for part in parts]
    loss, pieces = objective(whole, counts)
    torch.testing.assert_close(torch.stack([each[0] for each in found]).sum(), loss)
    for name, piece in pieces.items():
        torch.testing.assert_close(torch.stack([each[1][name] for each in found]).sum(), piece, msg=name)


def test_a_model_that_scores_images_learns_from_those_that_are_known(nano: tuple[ModelConfig, TrainConfig, Tokenizer]) -> None:
    """Any model with the output ``image_logit``."""
    config, train, tokenizer = nano
    model = build_model(config)

    class Scored(NamedTuple):
        text_logits: torch.Tensor
        mask_logits: torch.Tensor
        image_logit: torch.Tensor

    class Scoring(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.logit = model, torch.nn.Parameter(torch.zeros(()))

        def forward(self, *inputs: torch.Tensor, image_of: torch.Tensor) -> Scored:
            output = self.inner(*inputs, image_of=image_of)
            return Scored(output.text_logits, output.mask_logits, self.logit.expand(len(inputs[0])))

    batch = GeneratedExamples(train, config, tokenizer).batch(train.phases[0], 0, range(3))
    batch.anomalous = torch.tensor([1, 1, -1], dtype=torch.int8)
    scoring = Scoring()
    objective = Objective(cast(AgVas, scoring), train)
    counts = objective.counts(batch)
    loss, pieces = objective(batch, counts)
    assert pieces["image"].item() == pytest.approx(np.log(2))
    loss.backward()
    assert scoring.logit.grad is not None and scoring.logit.grad.item() == pytest.approx(-0.5)
