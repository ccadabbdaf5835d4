"""A tiny model with every part of nano, whose language model has learned three answers by heart, and its bundle."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from agvas_core.contract.command_line import exit_code_of
from agvas_core.contract.prompts import ANCHORS, DEFAULT_INSTRUCTION, FIXED_ANSWER, INSTRUCTIONS, NO_ANOMALY_ANSWER, Mode
from agvas_core.data.synthetic.dialogue import SPECIAL_TOKENS, Dialogue
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model
from agvas_core.model.config import ModelConfig, load_preset, parse_config
from agvas_core.model.weights.checkpoint import (
    Checkpoint,
    base_digests,
    load_checkpoint,
    save_checkpoint,
    start_model,
    start_tokenizer,
)
from agvas_core.model.weights.trained import kept_state, make_trainable
from agvas_core.train.batches import encode_dialogues
from agvas_export.cli import app

torch.set_num_threads(1)

SMALL: dict[str, Any] = {
    "name": "tiny",
    "semantic_view": {"size_px": 64},
    "lmm": {
        "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "image_size": 64},
        "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    },
    "pixel": {"channels": 32, "arguments": {"widths": [4, 8, 8, 12], "prior_dim": 6, "detail_dim": 8}},
    "agmd": {"depth": 1, "mlp_dim": 32, "mask_dim": 8},
}


LESSONS = (  # instruction, answer
    (DEFAULT_INSTRUCTION, FIXED_ANSWER),
    (INSTRUCTIONS[Mode.DESCRIBE], f"There is a dent, it is {ANCHORS}."),
    ("Segment the hole.", NO_ANOMALY_ANSWER),
)


def merged(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``table`` with ``changes`` in it, table by table."""
    result = copy.deepcopy(table)
    for key, value in changes.items():
        result[key] = merged(result[key], value) if isinstance(value, dict) and isinstance(result.get(key), dict) else value
    return result


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE with the special tokens first; no generator needed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    said = [text.replace(ANCHORS, "") for lesson in LESSONS for text in lesson]
    tokenizer.train_from_iterator([*said, "user\nassistant\n"] * 20, trainer)
    return tokenizer


def make_model(config: ModelConfig) -> AgVas:
    """Random weights, far from their start: batch norms that have seen something, and masks with both sides."""
    torch.manual_seed(7)
    model = build_model(config).eval()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.get_buffer("running_mean").normal_(0, 0.2)
                part.get_buffer("running_var").uniform_(0.5, 1.5)
                part.weight.uniform_(0.7, 1.3)
                part.bias.normal_(0, 0.2)
        for index in range(3):
            model.agmd.get_parameter(f"to_mask.{index}.4.weight").mul_(8)
    return model


def teach_by_heart(model: AgVas, config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Fits the language model alone to the lessons, about any image."""
    dialogues = [Dialogue(instruction, answer, None) for instruction, answer in LESSONS]
    ids, attention, labels, _ = encode_dialogues(dialogues, tokenizer, config)
    visual = int((ids[0] == config.lmm.image_token_id).sum()) // 2
    optimizer = torch.optim.Adam(model.lmm.parameters(), 5e-3)
    for _ in range(120):
        f_s, f_align = torch.randn(2, len(ids), visual, config.lmm.text["hidden_size"])
        _, logits = model.lmm(model.lmm.embed(ids, f_s, f_align), attention)
        assert logits is not None
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@pytest.fixture(scope="session")
def small_model() -> Callable[[dict[str, Any]], tuple[AgVas, ModelConfig]]:
    """``small_model(changes)``: nano at tiny size with other parts, and its configuration."""

    def build(changes: dict[str, Any]) -> tuple[AgVas, ModelConfig]:
        config = parse_config({**merged(load_preset("nano")["model"], SMALL), **changes})
        return make_model(config), config

    return build


@pytest.fixture(scope="session")
def tiny_checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny checkpoint; read it only."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    config = parse_config(merged(load_preset("nano")["model"], SMALL))
    tokenizer, model = make_tokenizer(), make_model(config)
    teach_by_heart(model, config, tokenizer)
    training = {"images": 240, "train": {"seed": 7}}
    save_checkpoint(folder, model.state_dict(), config, tokenizer, training)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_checkpoint_folder: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint_folder)


@pytest.fixture(scope="session")
def exported_folder(tiny_checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny checkpoint, made by the command; read it only, copy it to change it."""
    out = tmp_path_factory.mktemp("bundle") / "tiny"
    code = exit_code_of(lambda: app, name="agvas-export", arguments=["bundle", str(tiny_checkpoint_folder), "-o", str(out)])
    assert code == 0
    return out


@pytest.fixture(scope="session")
def adapted() -> Callable[[Path, Path, str, int, list[str]], Path]:
    """``adapted(base, folder, name, seed, trained)``: a checkpoint of the tiny one with LoRA that has learned something."""

    def build(base: Path, folder: Path, name: str, seed: int, trained: list[str]) -> Path:
        table = load_checkpoint(base).config.model_dump(mode="json")
        config = parse_config(table | {"name": name, "base": str(base), "trained": trained, "lora": {"rank": 2, "alpha": 4.0}})
        model, tokenizer = start_model(config), start_tokenizer(config)
        assert tokenizer is not None
        make_trainable(model, config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        save_checkpoint(folder, kept_state(model, config), config, tokenizer, {}, base_digests(config))
        return folder

    return build
