"""From an example of the mixture to what the model takes: words, anchors, masks; and who sees which example when."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from agvas_core.data.templates.rules import Task
from agvas_core.model.build import visual_tokens
from agvas_core.model.config import ModelConfig
from agvas_core.model.lmm import find_anchors
from agvas_core.model.losses import IGNORED_TARGET, SegmentationWeights, segmentation_loss, supervision_counts, text_loss
from agvas_core.model.weights.checkpoint import start_tokenizer
from agvas_core.model.weights.pretrained_config import resolve_config
from agvas_core.train.fit.batches import Parts, collate, encode
from agvas_core.train.fit.config import FitConfig, parse_fit_config, parse_mixture_config
from agvas_core.train.fit.schedule import Shares, learning_rate


@pytest.fixture(scope="module")
def model(tables: dict[str, Any]) -> ModelConfig:
    return resolve_config(tables["model"])


@pytest.fixture(scope="module")
def tokenizer(model: ModelConfig) -> Tokenizer:
    found = start_tokenizer(model)
    assert found is not None
    return found


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
    row = encode(
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
    row = encode(
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
    row = encode(long, tokenizer, model, 200)
    assert row.anchored and len(row.ids) <= 200 + visual_tokens(model)
    assert "x" not in said(row.ids, tokenizer)
    cut = encode(example(("z" * 300, f"Sure, {ANCHORS}.")), tokenizer, model, 200)
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
    config = FitConfig(steps=1000, warmup_steps=100)
    assert learning_rate(config, 0) == pytest.approx(3e-6)
    assert learning_rate(config, 99) == learning_rate(config, 100) == 3e-4
    assert learning_rate(config, 550) == pytest.approx(1.5e-4)
    assert learning_rate(config, 999) == pytest.approx(3e-4 / 900)


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
    fit = parse_fit_config(tables["fit"])
    mixture = Mixture.load(parse_mixture_config(tables["mixture"] | {"held_out": 0.0}))
    parts = Parts(mixture, Shares(fit.batch, fit.micro_batch), fit, model, tokenizer, overfit=2)
    assert parts[0].names == parts[1].names == parts[7].names


def test_wrong_tables_name_the_key() -> None:
    with pytest.raises(UsageError, match=r"micro_batc.*did you mean micro_batch"):
        parse_fit_config({"micro_batc": 2})
    with pytest.raises(UsageError, match="batch 10 is no multiple of micro_batch 4"):
        parse_fit_config({"batch": 10, "micro_batch": 4})
    with pytest.raises(UsageError, match="warmup_steps 100 leave nothing of 50 steps"):
        parse_fit_config({"steps": 50})


def test_a_set_that_is_not_there_is_named(tables: dict[str, Any], tmp_path: Path) -> None:
    mixture = parse_mixture_config({"sets": [{"name": "ade20k", "path": tmp_path / "nowhere"}]})
    with pytest.raises(UsageError, match="nowhere is not there"):
        Mixture.load(mixture)
