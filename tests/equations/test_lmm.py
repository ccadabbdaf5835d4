"""Equation 3, y_txt = F_LLM(Concat(f_s, f_align, f_txt)), against transformers' own models and a plain loop."""

from typing import Any

import pytest
import torch
from torch import Tensor

from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_llava
from agvas_core.model.config import LmmConfig
from agvas_core.model.lmm import Lmm

IMAGE, N, D, V = 3, 4, 32, 40


@pytest.fixture(params=["llava-onevision", "llava-1.5"])
def pair(request: pytest.FixtureRequest, tiny_table: dict[str, Any]) -> tuple[Lmm, Any]:
    """Ours, and the transformers model whose language model and head it has."""
    table = tiny_table["lmm"] | {"family": request.param}
    if request.param == "llava-1.5":
        del table["vision"]["vision_use_head"]
        table["text"]["tie_word_embeddings"] = False
    torch.manual_seed(0)
    llava = build_llava(LmmConfig.model_validate(table)).eval().requires_grad_(False)
    for parameter in llava.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    lmm = Lmm(
        language_model=llava.model.language_model,
        head=llava.lm_head,
        image_token_id=IMAGE,
        anchor_ids=(4, 5, 6),
    )
    return lmm, llava


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Ids [2, 14] with 2N image tokens in each row, f_s and f_align [2, N, D]."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.tensor([[10, *[IMAGE] * 8, 11, 12, 4, 5, 6], [20, 21, *[IMAGE] * 8, 22, 4, 5, 6]])
    return ids, torch.randn(2, N, D, generator=generator), torch.randn(2, N, D, generator=generator)


def test_visual_embeddings_take_the_place_of_the_image_tokens_in_order(pair: tuple[Lmm, Any]) -> None:
    lmm, llava = pair
    ids, f_s, f_align = inputs()
    table = llava.get_input_embeddings().weight
    embeddings = lmm.embed(ids, f_s, f_align)
    for row in range(2):
        visual = [*f_s[row], *f_align[row]]  # Concat(f_s, f_align)
        for index, token in enumerate(ids[row].tolist()):
            expected = visual.pop(0) if token == IMAGE else table[token]
            assert torch.equal(embeddings[row, index], expected)
        assert not visual


def test_rows_with_another_number_of_image_tokens_are_refused(pair: tuple[Lmm, Any]) -> None:
    ids, f_s, f_align = inputs()
    ids[1, 3] = 20
    with pytest.raises(ValueError, match=r"\[8, 7\] image tokens; f_s and f_align give 8"):
        pair[0].embed(ids, f_s, f_align)


@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_hidden_states_and_logits_are_those_of_transformers(pair: tuple[Lmm, Any], padding: str) -> None:
    lmm, llava = pair
    embeddings = lmm.embed(*inputs())
    mask = None
    if padding != "none":
        mask = torch.ones(2, embeddings.shape[1], dtype=torch.long)
        mask[0, slice(-3, None) if padding == "right" else slice(3)] = 0
    # As its own generate() does: positions count tokens, not padding.
    positions = None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)
    expected = llava(
        inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, output_hidden_states=True, use_cache=False
    )
    output = lmm(embeddings, mask)
    valid = slice(None) if mask is None else mask.bool()
    torch.testing.assert_close(output.hidden[valid], expected.hidden_states[-1][valid], rtol=0, atol=1e-5)
    torch.testing.assert_close(output.logits[valid], expected.logits[valid], rtol=0, atol=1e-5)
    assert output.hidden.std() > 0.1  # the comparison is of something


def test_hidden_states_are_taken_after_the_final_norm(pair: tuple[Lmm, Any]) -> None:
    lmm, llava = pair
    before: list[Tensor] = []
    llava.model.language_model.norm.register_forward_pre_hook(lambda _, arguments: before.append(arguments[0]))
    output = lmm(lmm.embed(*inputs()))
    for x, hidden in zip(before[0].flatten(0, 1), output.hidden.flatten(0, 1), strict=True):  # RMSNorm, token by token
        expected = x / (x.square().mean() + 1e-6).sqrt() * llava.model.language_model.norm.weight
        torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.logits, output.hidden @ llava.lm_head.weight.T, rtol=0, atol=1e-5)


def test_without_logits_the_states_are_the_same(pair: tuple[Lmm, Any]) -> None:
    lmm, _ = pair
    embeddings = lmm.embed(*inputs())
    output = lmm(embeddings, with_logits=False)
    assert output.logits is None
    assert torch.equal(output.hidden, lmm(embeddings).hidden)


def test_what_comes_after_never_changes_a_state(pair: tuple[Lmm, Any]) -> None:
    lmm, _ = pair
    embeddings = lmm.embed(*inputs())
    torch.testing.assert_close(lmm(embeddings[:, :-2]).hidden, lmm(embeddings).hidden[:, :-2], rtol=0, atol=1e-5)


def test_embeddings_and_head_are_one_where_the_preset_ties_them(tiny_model: AgVas) -> None:
    assert tiny_model.lmm.head.weight is tiny_model.lmm.language_model.get_input_embeddings().weight  # type: ignore[operator]
