"""Not nano alone: other head sizes, tables that are not tied, LLaMA in place of Qwen2. Random weights, word by word."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agvas_core.contract.command_line import exit_code_of
from agvas_core.model.agvas import AgVas, Vision
from agvas_core.model.build import build_model, visual_tokens
from agvas_core.model.config import load_preset, parse_config
from agvas_core.model.encoders.encoders import PixelFeatures
from agvas_core.model.generation import greedy_generate
from agvas_core.model.weights.checkpoint import load_checkpoint, save_checkpoint
from agvas_runtime.stages.vllm.local import LocalEngine
from agvas_runtime.stages.vllm.protocol import LmmRequest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

ONEVISION = {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": False}  # heads of 128
LLAMA = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False}  # heads of 64


def random_model(family: str, text: dict[str, Any], folder: Path) -> AgVas:
    """A checkpoint of nano's make with another language model; its states vary, as a trained one's do."""
    table = load_preset("nano")["model"]
    vision = {key: value for key, value in table["lmm"]["vision"].items() if family != "llava-1.5" or key != "vision_use_head"}
    lmm = table["lmm"] | {"family": family, "text": table["lmm"]["text"] | text, "vision": vision}
    config = parse_config(table | {"name": family, "lmm": lmm})
    torch.manual_seed(0)
    model = build_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.lmm.named_parameters():
            parameter.copy_(1 + 0.3 * torch.randn_like(parameter) if "norm" in name else 0.1 * torch.randn_like(parameter))
    save_checkpoint(folder, model.state_dict(), config, load_checkpoint("nano").tokenizer, {})
    return model


@pytest.mark.parametrize(("family", "text"), [("llava-onevision", ONEVISION), ("llava-1.5", LLAMA)])
@torch.no_grad()
def test_states_and_words_are_those_of_torch(tmp_path: Path, family: str, text: dict[str, Any]) -> None:
    from agvas_export.cli import app

    model = random_model(family, text, tmp_path / "checkpoint")
    arguments = ["vllm", str(tmp_path / "checkpoint"), "-o", str(tmp_path / "vllm")]
    assert exit_code_of(lambda: app, name="agvas-export", arguments=arguments) == 0
    config = load_checkpoint(tmp_path / "checkpoint").config
    tokens, dim = visual_tokens(config), 256
    visual = np.random.default_rng(0).normal(size=(2, tokens, dim)).astype(np.float32)
    before, after = (1, 40, 41), (60, 61, 62, 4, 5, 6)
    engine = LocalEngine(tmp_path / "vllm")
    try:
        direct = engine.ask(LmmRequest(before, after, (2, 3, 4, 5), 0, None, visual))
        spoken = engine.ask(LmmRequest(before, after, (), 12, None, visual))
    finally:
        engine.close()
    for row in range(2):
        f_s, f_align = torch.from_numpy(visual[row, None]).chunk(2, 1)
        ids = torch.tensor([[*before, *[config.lmm.image_token_id] * tokens, *after]])
        hidden = model.lmm(model.lmm.embed(ids, f_s, f_align), with_logits=False).hidden[0, -4:]
        assert np.abs(direct[row].states - hidden.numpy()).max() < 1e-4
        said = greedy_generate(model, Vision(f_s, f_align, PixelFeatures(f_s, None)), ids, config.lmm.end_token_id, 12)
        assert list(spoken[row].ids) == said
