"""The anchors join the words of a published tokenizer, and get rows in both tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration, LlavaOnevisionForConditionalGeneration

from agvas_core.contract.errors import UsageError
from agvas_core.contract.prompts import ANCHOR_TOKENS, FIXED_ANSWER
from agvas_core.model.build import chat_format
from agvas_core.model.config import ModelConfig
from agvas_core.model.weights.checkpoint import start_tokenizer
from agvas_core.model.weights.pretrained import pretrained_model
from agvas_core.model.weights.pretrained_config import resolve_config
from agvas_core.model.weights.vocabulary import add_anchors, pretrained_tokenizer

Get = Callable[[str], Path]
Table = Callable[..., dict[str, Any]]

EMBEDDINGS, HEAD = "lmm.language_model.embed_tokens.weight", "lmm.head.weight"
WORDS = 101  # of both tokenizers


def config_of(published: Get, model_table: Table, name: str) -> ModelConfig:
    return resolve_config(model_table(published(name), published("sam.pth")))


def tokenizer_of(config: ModelConfig) -> Tokenizer:
    tokenizer = start_tokenizer(config)
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize("name, rows", [("onevision", 128), ("onevision-full", 128), ("llava", 128)])
def test_anchors_follow_the_last_word_and_tables_are_long_enough(
    published: Get, model_table: Table, name: str, rows: int
) -> None:
    config = config_of(published, model_table, name)
    assert config.lmm.anchor_ids == (WORDS, WORDS + 1, WORDS + 2)
    assert config.lmm.vocab_size == rows  # as published, or the next multiple of 64
    state = pretrained_model(config).state_dict()
    assert state[EMBEDDINGS].shape[0] == state[HEAD].shape[0] == rows


@pytest.mark.parametrize(
    "name, kind",
    [
        ("onevision", LlavaOnevisionForConditionalGeneration),
        ("onevision-full", LlavaOnevisionForConditionalGeneration),
        ("llava", LlavaForConditionalGeneration),
    ],
)
def test_rows_of_words_stay_and_those_of_anchors_start_among_them(
    published: Get, model_table: Table, name: str, kind: Any
) -> None:
    config = config_of(published, model_table, name)
    state = pretrained_model(config).state_dict()
    original = kind.from_pretrained(published(name))
    for ours, theirs in ((EMBEDDINGS, original.get_input_embeddings().weight), (HEAD, original.lm_head.weight)):
        table, known = state[ours], theirs[:WORDS].detach()
        assert torch.equal(table[:WORDS], known)
        anchors = table[list(config.lmm.anchor_ids)]
        assert (anchors - known.mean(0)).abs().max() < known.std(0).max()
        assert len({tuple(row.tolist()) for row in anchors}) == 3
    again = pretrained_model(config).state_dict()
    assert torch.equal(again[EMBEDDINGS], state[EMBEDDINGS])


def test_the_tied_tables_stay_one(published: Get, model_table: Table) -> None:
    model = pretrained_model(config_of(published, model_table, "onevision-tied"))
    assert model.lmm.head.weight is model.get_parameter(EMBEDDINGS)


@pytest.mark.parametrize("name", ["onevision", "llava"])
def test_a_prompt_is_encoded_as_it_is_written(published: Get, model_table: Table, name: str) -> None:
    """Nothing is added in front of each piece, and an anchor is one token wherever it stands."""
    config = config_of(published, model_table, name)
    tokenizer, chat = tokenizer_of(config), chat_format(config.lmm)
    ids = tokenizer.encode(chat.before_image).ids
    assert tokenizer.decode(ids, skip_special_tokens=False).replace(" ", "").startswith(chat.before_image[:4])
    answer = tokenizer.encode(FIXED_ANSWER + chat.after_answer).ids
    assert [id for id in answer if id >= WORDS] == list(config.lmm.anchor_ids)
    assert answer[-1] == config.lmm.end_token_id
    assert ids + answer == tokenizer.encode(chat.before_image + FIXED_ANSWER + chat.after_answer).ids


def test_a_tokenizer_that_has_the_anchors_already_keeps_them_and_their_rows(
    tmp_path: Path, published: Get, model_table: Table
) -> None:
    config = config_of(published, model_table, "onevision")
    taught = tmp_path / "taught"
    original = LlavaOnevisionForConditionalGeneration.from_pretrained(published("onevision"))
    original.save_pretrained(taught)
    tokenizer_of(config).save(str(taught / "tokenizer.json"))
    again = config_of(lambda name: taught if name == "taught" else published(name), model_table, "taught")
    assert again.lmm.anchor_ids == config.lmm.anchor_ids
    _, had = pretrained_tokenizer(again.lmm)
    assert had and not pretrained_tokenizer(config.lmm)[1]
    assert torch.equal(pretrained_model(again).state_dict()[EMBEDDINGS], original.get_input_embeddings().weight)


def test_one_anchor_that_is_there_keeps_its_id_and_the_others_follow() -> None:
    """LISA's tokenizer has [SEG]; and a plain word becomes one that text is split at."""
    from tokenizers import models

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[SEG]": 1, "<image>": 2}, unk_token="a"))
    assert add_anchors(tokenizer) == (3, 4, 1)
    assert add_anchors(tokenizer) == (3, 4, 1)
    assert tokenizer.encode("".join(ANCHOR_TOKENS)).ids == [3, 4, 1]


def test_ids_that_the_tokenizer_does_not_give_are_refused(published: Get, model_table: Table) -> None:
    table = config_of(published, model_table, "onevision").model_dump(mode="json")
    table["lmm"]["anchor_ids"] = [102, 103, 104]
    with pytest.raises(UsageError, match=r"lmm\.anchor_ids is \(102, 103, 104\), the tokenizer of .* gives \(101, 102, 103\)"):
        pretrained_model(resolve_config(table))
    table["lmm"] |= {"anchor_ids": [101, 102, 103], "vocab_size": 120}
    with pytest.raises(UsageError, match=r"lmm\.vocab_size is 120, .*onevision has 128 rows"):
        pretrained_model(resolve_config(table))
