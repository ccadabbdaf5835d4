"""Exactly which parameters get gradients, for a tiny model of every preset (paper 4.1, B.2)."""

import copy
import fnmatch
from typing import Any

import pytest
import torch
from torch import nn

from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model, visual_tokens
from agvas_core.model.config import ModelConfig, load_preset, parse_config, preset_names
from agvas_core.model.preset import ablation_names
from agvas_core.model.weights.trained import make_trainable, train_mode

torch.set_num_threads(1)

# One layer of everything, narrow; what is special of a preset (ties, adapters, decoders, kinds) stays as it is.
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
PIXEL: dict[str, dict[str, Any]] = {
    "sam": {"image_px": 32, "patch_px": 4, "dim": 16, "depth": 1, "heads": 2, "window": 3, "global_blocks": [0]},
    "dinov2": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 4},
    "dinov3": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4},
    "clip": TOWER | {"image_size": 32, "patch_size": 4},
    "siglip": TOWER | {"image_size": 32, "patch_size": 4},
    "lite": {"widths": [4, 6, 8, 8], "prior": True, "detail_dim": 6},
}

# Every name that may have a gradient, by hand; * stands for one part of a name and what follows it.
OWN = {
    "linear_p": ["linear_p.norm.weight", "linear_p.norm.bias", "linear_p.linear.weight", "linear_p.linear.bias"],
    "spam": [
        "spam.norm.weight",
        "spam.norm.bias",
        *(f"spam.{name}.{kind}" for name in ("to_q", "to_k", "to_v", "to_out") for kind in ("weight", "bias")),
    ],
    "refiner": ["refiner.*"],
    "agmd": ["agmd.t_learn", "agmd.bias", "agmd.bi_attn.*", "agmd.upscale.*", "agmd.to_mask.*"],
    "lisa": [
        "agmd.no_mask_embed.weight",
        "agmd.iou_token.weight",
        "agmd.mask_tokens.weight",
        "agmd.transformer.*",
        "agmd.output_upscaling.*",
        "agmd.output_hypernetworks_mlps.0.*",
    ],
    "adapter": ["pixel_encoder.adapter.weight", "pixel_encoder.adapter.bias"],
}
ATTENTION = "lmm.language_model.layers.0.self_attn"
LORA = [f"{ATTENTION}.{which}_proj.lora_{half}.default.weight" for which in "qv" for half in "AB"]
EMBEDDINGS, HEAD = "lmm.language_model.embed_tokens.weight", "lmm.head.weight"
PAPER = [*LORA, EMBEDDINGS, HEAD, *OWN["linear_p"], *OWN["spam"], *OWN["refiner"], *OWN["agmd"]]

EXPECTED: dict[str, list[str]] = {
    **dict.fromkeys(["ov-7b", "llava-7b", "llava-13b", "paper"], PAPER),
    "ov-0.5b": [name for name in PAPER if name != HEAD],  # tied: the head is the embeddings
    "nano": ["*"],
    "nano-decoder": ["refiner.*", "agmd.*"],
    "nano-lora": [
        *(f"{ATTENTION}.{which}_proj.lora_{half}.default.weight" for which in "qkvo" for half in "AB"),
        *OWN["linear_p"],
        "spam.*",
        "refiner.*",
        "agmd.*",
    ],
    **dict.fromkeys([f"ablations/{name}" for name in ("no-seg", "no-nor-ano", "agmd-from-sam")], PAPER),
    "ablations/eq-6-literal": [name for name in PAPER if name not in ("agmd.bias", "agmd.upscale.*", "agmd.to_mask.*")],
    **dict.fromkeys([f"ablations/{name}" for name in ("no-instruct", "no-anomaly-seg", "no-general")], PAPER),
    **{name: [*PAPER, *OWN["adapter"]] for name in ablation_names() if "/encoder-" in name},
    "ablations/no-spam": [name for name in PAPER if name.split(".")[0] not in ("linear_p", "spam")],
    **{name: [*LORA, EMBEDDINGS, HEAD, *OWN["refiner"], *OWN["lisa"]] for name in ablation_names() if "/lisa" in name},
}


def tiny(name: str) -> ModelConfig:
    table = copy.deepcopy(load_preset(name)["model"])
    kind, lmm = table["pixel"]["kind"], table["lmm"]
    lmm["vision"] |= TOWER
    lmm["text"] |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    lmm["text"] |= {"num_key_value_heads": 4 if lmm["family"] == "llava-1.5" else 2}
    lmm |= {"vocab_size": 40, "pad_token_id": 0, "end_token_id": 2, "image_token_id": 3, "anchor_ids": [4, 5, 6]}
    lmm["text"] |= {"bos_token_id": 1, "eos_token_id": 2}
    table["semantic_view"]["size_px"] = 16
    table["pixel_view"] |= {"size_px": 64 if kind == "lite" else 32}
    table["pixel"] |= {"channels": 32, "arguments": table["pixel"]["arguments"] | PIXEL[kind]}
    if kind == "dinov2":
        table["pixel"]["arguments"]["mlp_ratio"] = 2
    if table["spam"]:
        table["spam"] |= {"heads": 2}
    table["agmd"] |= {"heads": 2, "mlp_dim": 24} | ({"mask_dim": 6} if kind == "lite" else {})
    return parse_config(table)


def with_gradients(model: AgVas, config: ModelConfig) -> set[str]:
    """Names of the parameters that a step from masks and text reaches; a shared one has its first name."""
    side = config.pixel_view.size_px
    row = [10, *[config.lmm.image_token_id] * visual_tokens(config), 11, *config.lmm.anchor_ids, config.lmm.end_token_id]
    semantic, pixel = torch.zeros(2, 16, 16, 3, dtype=torch.uint8), torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
    output = model(semantic, pixel, torch.tensor([row, row]))
    assert output.text_logits is not None
    (output.mask_logits.square().mean() + output.text_logits.square().mean()).backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_every_preset_has_its_list() -> None:
    assert set(EXPECTED) == {*preset_names(), *ablation_names()}


@pytest.mark.parametrize("name", EXPECTED)
def test_exactly_these_parameters_get_gradients(name: str) -> None:
    config = tiny(name)
    model = build_model(config)
    make_trainable(model, config)
    train_mode(model)
    patterns = EXPECTED[name]
    names = {one for one, _ in model.named_parameters()}
    expected = {one for one in names if any(fnmatch.fnmatchcase(one, pattern) for pattern in patterns)}
    assert all(any(fnmatch.fnmatchcase(one, pattern) for one in names) for pattern in patterns)  # nothing is listed in vain
    found = with_gradients(model, config)
    if name == "nano":  # LLaVA reads SigLIP before its last norm
        expected -= {one for one in names if "post_layernorm" in one}
    assert found == expected
    assert {one for one, parameter in model.named_parameters() if parameter.requires_grad} >= found


def test_encoders_projector_and_the_language_models_own_weights_are_frozen_in_every_paper_preset() -> None:
    for name in EXPECTED:
        if name == "nano":
            continue
        config = tiny(name)
        model = build_model(config, device="meta")
        make_trainable(model, config)
        frozen: list[nn.Module] = [model.semantic_encoder, model.pixel_encoder.backbone]
        assert not any(parameter.requires_grad for part in frozen for parameter in part.parameters()), name
        layers = [(path, p) for path, p in model.lmm.language_model.named_parameters() if path.startswith(("layers", "norm"))]
        assert all(parameter.requires_grad == (".lora_" in path) for path, parameter in layers), name


def test_frozen_parts_stay_in_evaluation_mode_and_dropout_of_adapters_drops() -> None:
    config = tiny("ov-7b")
    model = build_model(config)
    make_trainable(model, config)
    train_mode(model)
    assert not model.semantic_encoder.training and not model.pixel_encoder.backbone.training
    assert model.agmd.training and model.spam is not None and model.spam.training
    dropouts = [module for module in model.lmm.modules() if isinstance(module, nn.Dropout)]
    assert len(dropouts) == 2 and all(module.training and module.p == 0.05 for module in dropouts)
