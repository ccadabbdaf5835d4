"""The Token Refiner (3.1, B.4) against plain loops."""

import torch
from torch import nn

from agvas_core.model.agmd import TokenRefiner


@torch.no_grad()
def test_it_is_two_linear_layers_with_a_relu_between() -> None:
    torch.manual_seed(0)
    module, states = TokenRefiner(6, 4), torch.randn(2, 3, 6)
    first, second = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
    h = module(states).tolist()
    for b in range(2):
        for anchor in range(3):
            hidden = []
            for row, bias in zip(first.weight.tolist(), first.bias.tolist(), strict=True):
                hidden.append(max(0.0, sum(w * x for w, x in zip(row, states[b, anchor].tolist(), strict=True)) + bias))
            for c, (row, bias) in enumerate(zip(second.weight.tolist(), second.bias.tolist(), strict=True)):
                assert abs(sum(w * x for w, x in zip(row, hidden, strict=True)) + bias - h[b][anchor][c]) < 1e-5


@torch.no_grad()
def test_the_three_anchors_share_it() -> None:
    module, states = TokenRefiner(6, 4), torch.randn(2, 3, 6)
    torch.testing.assert_close(module(states[:, [2, 0, 1]]), module(states)[:, [2, 0, 1]])


def test_its_size_at_the_width_of_qwen2_7b() -> None:
    with torch.device("meta"):
        module = TokenRefiner(3584, 256)  # B.4
    assert sum(parameter.numel() for parameter in module.parameters()) == 3584 * 3584 + 3584 + 3584 * 256 + 256
