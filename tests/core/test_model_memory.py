"""The memory of one image, counted on the meta device."""

from typing import Any

import torch

from agvas_core.model.build import build_model
from agvas_core.model.config import ModelConfig, load_preset, parse_config
from agvas_core.model.inventory import evaluation_memory


def shallow() -> ModelConfig:
    """ov-0.5b with two layers of everything: as wide, and built in a moment."""
    table: dict[str, Any] = load_preset("ov-0.5b")["model"]
    table["lmm"]["text"]["num_hidden_layers"] = table["lmm"]["vision"]["num_hidden_layers"] = table["pixel"]["arguments"][
        "depth"
    ] = 2
    table["pixel"]["arguments"]["global_blocks"] = [1]
    return parse_config(table)


def test_memory_is_weights_and_what_lives_beside_them() -> None:
    config = shallow()
    full, half = evaluation_memory(config, torch.float32), evaluation_memory(config, torch.bfloat16)
    model = build_model(config, device="meta")
    stored = sum(tensor.numel() * 4 for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
    assert stored <= full.weights < 1.01 * stored
    assert abs(half.weights / full.weights - 0.5) < 0.02 and half.peak < full.peak
    one_map = 16 * 4096**2 * 2  # of SAM's 16 heads over 64 x 64 cells, in bf16
    assert one_map <= half.peak < 8 * one_map


def test_nano_is_counted_with_its_prior() -> None:
    config = parse_config(load_preset("nano")["model"])
    full, half = evaluation_memory(config, torch.float32), evaluation_memory(config)
    assert 0 < half.weights < full.weights < 30e6
    assert 0 < half.peak < full.peak
