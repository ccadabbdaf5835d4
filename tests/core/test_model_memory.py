"""The memory of one image, counted on the meta device."""

import torch

from agvas_core.model.build import build_model
from agvas_core.model.config import load_preset, parse_config
from agvas_core.model.inventory import evaluation_memory


def test_memory_is_weights_and_what_lives_beside_them() -> None:
    config = parse_config(load_preset("nano")["model"])
    full, half = evaluation_memory(config, torch.float32), evaluation_memory(config, torch.bfloat16)
    model = build_model(config, device="meta")
    stored = sum(tensor.numel() * 4 for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
    assert stored <= full.weights < 1.01 * stored
    assert abs(half.weights / full.weights - 0.5) < 0.02
    pixels = config.pixel_view.size_px**2 * 3
    assert pixels * 4 < full.peak < 4000 * pixels and half.peak < full.peak
