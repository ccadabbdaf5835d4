"""Every language model with every pixel encoder: read from published files, run, trained for a step."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agvas_core.model.agvas import AgVas, AgVasOutput
from agvas_core.model.build import visual_tokens
from agvas_core.model.config import ModelConfig
from agvas_core.model.weights.pretrained import pretrained_model
from agvas_core.model.weights.pretrained_config import resolve_config
from agvas_core.model.weights.trained import make_trainable, train_mode

Get = Callable[[str], Path]
Table = Callable[..., dict[str, Any]]

# Name of the published model, size of the view (the second SAM has another than it was trained with, as have DINO and CLIP), stride.
PIXEL = {
    "SAM .pth": ("sam.pth", 32, 4),
    "SAM safetensors, larger": ("sam.safetensors", 40, 4),
    "SAM of transformers": ("sam", 32, 4),
    "DINOv2-L": ("dinov2-l", 35, 7),
    "DINOv2-G": ("dinov2-g", 28, 7),
    "DINOv3": ("dinov3", 48, 8),
    "CLIP": ("clip", 36, 6),
    "SigLIP": ("siglip", 24, 6),
}


def run(model: AgVas, config: ModelConfig) -> AgVasOutput:
    """Two images with an exchange each."""
    generator = torch.Generator().manual_seed(8)
    sides = [config.semantic_view.size_px, config.pixel_view.size_px]
    semantic, pixel = (torch.randint(0, 256, (2, side, side, 3), generator=generator, dtype=torch.uint8) for side in sides)
    lmm = config.lmm
    row = [40, *[lmm.image_token_id] * visual_tokens(config), 41, 42, *lmm.anchor_ids, lmm.end_token_id]
    output: AgVasOutput = model(semantic, pixel, torch.tensor([row, row]))
    return output


def loss_of(output: AgVasOutput) -> Tensor:
    assert output.text_logits is not None
    return output.mask_logits.square().mean() + output.text_logits.float().log_softmax(-1)[:, -2, 7].mean()


def step(model: AgVas, config: ModelConfig) -> None:
    """One optimizer step; only what is trained moves."""
    train_mode(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    loss_of(run(model, config)).backward()  # type: ignore[no-untyped-call]
    assert {name for name, p in model.named_parameters(remove_duplicate=False) if p.grad is not None} == trained
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved <= trained
    still = trained - moved
    assert all("lora_A" in name for name in still), still  # their gradient is zero as long as B is


@pytest.mark.parametrize("lmm", ["onevision", "llava"])
@pytest.mark.parametrize("pixel", PIXEL)
def test_every_pair_runs_and_learns(published: Get, model_table: Table, lmm: str, pixel: str) -> None:
    name, size_px, stride = PIXEL[pixel]
    config = resolve_config(model_table(published(lmm), published(name), size_px))
    model = pretrained_model(config)
    make_trainable(model, config)
    output = run(model, config)
    grid = size_px // stride
    assert output.vision.pixel.f_p.shape == (2, 32, grid, grid)
    assert output.mask_logits.shape == (2, 3, 4 * grid, 4 * grid)
    assert output.found.all()
    step(model, config)


@pytest.mark.parametrize("lmm", ["onevision-tied", "onevision-full"])
def test_tied_tables_and_tables_without_a_row_to_spare_learn_as_well(published: Get, model_table: Table, lmm: str) -> None:
    config = resolve_config(model_table(published(lmm), published("sam.pth")))
    model = pretrained_model(config)
    make_trainable(model, config)
    assert (model.lmm.head.weight is model.get_parameter("lmm.language_model.embed_tokens.weight")) == (lmm == "onevision-tied")
    step(model, config)


def test_a_model_that_says_of_its_text_alone_that_tables_are_tied_is_loaded_as_published(
    published: Get, model_table: Table, tmp_path: Path
) -> None:
    """As the hub's LLaVA-OneVision of 0.5 B is: no head in its files, ``tie_word_embeddings`` false at the top and true for the text."""
    folder = Path(shutil.copytree(published("onevision-tied"), tmp_path / "lmm"))
    config = json.loads((folder / "config.json").read_text())
    assert config["text_config"]["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    model = pretrained_model(resolve_config(model_table(folder, published("sam.pth"))))
    assert model.lmm.head.weight is model.get_parameter("lmm.language_model.embed_tokens.weight")


@pytest.mark.parametrize("lmm", ["onevision", "onevision-tied"])
def test_the_anchors_rows_alone_can_be_trained(published: Get, model_table: Table, lmm: str) -> None:
    parts = ["lmm.anchor_rows", "linear_p", "spam", "refiner", "agmd"]
    config = resolve_config(model_table(published(lmm), published("sam.pth"), trained=parts))
    plain, model = pretrained_model(config), pretrained_model(config)
    make_trainable(model, config)
    step(model, config)
    tables = {name for name, p in model.named_parameters() if p.requires_grad and p.shape[0] == config.lmm.vocab_size}
    assert tables == set()
    for kept in ("lmm.language_model.embed_tokens.table.weight", "lmm.head.head.weight"):
        assert torch.equal(model.state_dict()[kept], plain.lmm.head.weight) or lmm == "onevision"
    assert (model.lmm.head.rows is model.lmm.language_model.embed_tokens.rows) == (lmm == "onevision-tied")  # type: ignore[union-attr]


def test_a_linear_layer_after_sam_is_trained_and_sam_is_not(published: Get, model_table: Table) -> None:
    table = model_table(published("onevision"), published("sam.pth"), trained=["pixel_encoder.adapter"])
    table["pixel"]["linear"] = True
    config = resolve_config(table)
    model = pretrained_model(config)
    make_trainable(model, config)
    own = {name for name, p in model.named_parameters() if p.requires_grad and not name.startswith("lmm.")}
    assert own == {"pixel_encoder.adapter.weight", "pixel_encoder.adapter.bias"}
    step(model, config)


ABLATIONS: dict[str, dict[str, Any]] = {
    "without [SEG]": {"anchors": ["NOR", "ANO"], "decision": {"alpha": 0.0}},
    "without [NOR] and [ANO]": {"anchors": ["SEG"], "decision": {"alpha": 1.0}},
    "without SPAM": {"spam": False, "trained": ["lmm.embeddings", "lmm.head", "refiner", "agmd"]},
    "LISA": {
        "anchors": ["SEG"],
        "decision": {"alpha": 1.0},
        "spam": False,
        "decoder": "sam",
        "trained": ["lmm.embeddings", "lmm.head", "refiner", "agmd"],
    },
}


@pytest.mark.parametrize("lmm", ["onevision", "llava"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_every_ablation_runs_and_learns(published: Get, model_table: Table, lmm: str, ablation: str) -> None:
    config = resolve_config(model_table(published(lmm), published("sam.pth"), **ABLATIONS[ablation]))
    model = pretrained_model(config)
    make_trainable(model, config)
    output = run(model, config)
    present = torch.tensor([name in config.anchors for name in ("NOR", "ANO", "SEG")])
    assert torch.equal(output.mask_logits.abs().amax(dim=(0, 2, 3)) > 0, present)
    assert output.vision.f_align.shape[1] == (0 if config.spam is None else 4)
    step(model, config)


def test_tiles_follow_the_whole_view_and_learn(published: Get, model_table: Table) -> None:
    table = model_table(published("onevision"), published("sam.pth"))
    table["lmm"]["tiles"], table["semantic_view"]["size_px"] = 2, 32
    config = resolve_config(table)
    model = pretrained_model(config)
    make_trainable(model, config)
    assert run(model, config).vision.f_s.shape[1] == 4 + 4 * 5
    step(model, config)


def test_published_weights_in_bfloat16_are_trained_with_parameters_in_float32(published: Get, model_table: Table) -> None:
    config = resolve_config(model_table(published("onevision"), published("sam.pth")))
    model = pretrained_model(config, dtype=torch.bfloat16)
    make_trainable(model, config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("semantic_encoder.", "pixel_encoder.", "lmm.")) and not parameter.requires_grad
        assert parameter.dtype == (torch.bfloat16 if frozen else torch.float32), name
    with torch.autocast("cpu", torch.bfloat16):
        step(model, config)
