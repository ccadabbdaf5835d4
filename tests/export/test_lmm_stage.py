"""One graph for the prefill and for every step: LLaMA as well as Qwen2, with SPAM and without."""

import copy
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from agvas_core.contract.certificate import TOLERANCES
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model, visual_tokens
from agvas_core.model.config import ModelConfig, parse_config
from agvas_core.model.weights.checkpoint import Checkpoint
from agvas_export.graphs import eager_attention, export_stage
from agvas_export.stages import Stage, make_stages, past_shape

FP32 = TOLERANCES["fp32"]
IDS = list(range(20, 32))  # 5 words before the image, 7 after it


@pytest.fixture(scope="module")
def llama_table(tiny_checkpoint: Checkpoint) -> dict[str, Any]:
    """The tiny model with LLaVA-1.5's parts: CLIP and LLaMA, embeddings and head apart."""
    table = copy.deepcopy(tiny_checkpoint.config.model_dump(mode="json"))
    del table["lmm"]["vision"]["vision_use_head"]
    table["lmm"] |= {"family": "llava-1.5", "chat": "vicuna"}
    table["lmm"]["text"]["tie_word_embeddings"] = False
    return table


def made(table: dict[str, Any]) -> tuple[AgVas, ModelConfig, dict[str, Stage]]:
    config = parse_config(table)
    torch.manual_seed(3)
    model = build_model(config).eval().requires_grad_(False)
    return model, config, {stage.name: stage for stage in make_stages(model, config)}


@torch.no_grad()
def expected(model: AgVas, f_s: Tensor, f_align: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and logits of the words after the image, by the model itself."""
    ids = IDS[:5] + [model.lmm.image_token_id] * (f_s.shape[1] + f_align.shape[1]) + IDS[5:]
    rows = torch.tensor([ids]).expand(len(f_s), -1)
    hidden, logits = model.lmm(model.lmm.embed(rows, f_s, f_align))
    assert logits is not None
    return hidden[:, -7:], logits[:, -7:]


def word_by_word(run: Any, model: AgVas, f_s: Tensor, f_align: Tensor) -> tuple[Tensor, Tensor]:
    """The same from a prefill up to the first word after the image, and one step for each word that follows."""
    batch = len(f_s)
    zero = torch.zeros(batch, 1, dtype=torch.long)
    states, logits, past = [], [], torch.zeros(past_shape(model, batch, 0))
    before = torch.tensor([IDS[:5]]).expand(batch, -1)
    for id in IDS[5:]:
        state, logit, past = run(f_s, f_align, before, zero + id, zero.expand(-1, 3), zero, past)
        states.append(state[:, 0])
        logits.append(logit[:, 0])
        f_s, f_align, before = f_s[:, :0], f_align[:, :0], before[:, :0]
    return torch.stack(states, 1), torch.stack(logits, 1)


def assert_near(value: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(value, truth, rtol=0, atol=FP32.text * max(1.0, float(truth.abs().max())))


@pytest.mark.parametrize("has_spam", [True, False], ids=["spam", "no spam"])
@pytest.mark.parametrize("family", ["llava-onevision", "llava-1.5"])
def test_step_by_step_gives_what_the_model_gives_at_once(
    tiny_checkpoint: Checkpoint, llama_table: dict[str, Any], family: str, has_spam: bool
) -> None:
    table = copy.deepcopy(llama_table if family == "llava-1.5" else tiny_checkpoint.config.model_dump(mode="json"))
    if not has_spam:
        table["spam"] = None
    model, config, stages = made(table)
    vision, lmm = stages["vision"], stages["lmm"].module
    f_s, f_align = vision.module(*vision.inputs.values())[:2]
    assert f_s.shape[1] + f_align.shape[1] == visual_tokens(config)
    with torch.no_grad(), eager_attention(lmm):
        found = word_by_word(lmm, model, f_s, f_align)
    for value, truth in zip(found, expected(model, f_s, f_align), strict=True):
        assert_near(value, truth)


def test_the_graph_of_llama_takes_an_empty_past_and_an_empty_image(llama_table: dict[str, Any], tmp_path: Path) -> None:
    model, config, stages = made(llama_table)
    spec = export_stage(stages["lmm"], tmp_path)
    session = ort.InferenceSession(str(tmp_path / spec.file), providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        feeds = {named.name: tensor.numpy() for named, tensor in zip(spec.inputs, tensors, strict=True)}
        return tuple(torch.from_numpy(value) for value in session.run(None, feeds))

    for batch, tokens in ((1, visual_tokens(config) // 2), (2, 3)):
        f_s, f_align = torch.randn(2, batch, tokens, config.lmm.text["hidden_size"])
        for f_aligned in (f_align, f_align[:, :0]):
            for value, truth in zip(word_by_word(run, model, f_s, f_aligned), expected(model, f_s, f_aligned), strict=True):
                assert_near(value, truth)
