"""The pixel encoders of table 6 against transformers' own models: which features, where, at which size."""

from typing import Any

import pytest
import torch
from torch import Tensor

from agvas_core.contract.errors import UsageError
from agvas_core.model.build import build_pixel_backbone
from agvas_core.model.config import PixelConfig
from agvas_core.model.encoders.vit import VitEncoder

SIZE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 24, "patch_size": 6}
KINDS: dict[str, dict[str, Any]] = {
    "dinov2": SIZE | {"mlp_ratio": 2},
    "dinov3": SIZE | {"intermediate_size": 24, "num_register_tokens": 4},
    "clip": SIZE | {"intermediate_size": 24},
    "siglip": SIZE | {"intermediate_size": 24, "vision_use_head": False},
}


def encoder(kind: str) -> VitEncoder:
    torch.manual_seed(0)
    module = build_pixel_backbone(PixelConfig.model_validate({"kind": kind, "arguments": KINDS[kind]}))
    assert isinstance(module, VitEncoder)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def pixels(height: int = 24, width: int = 24) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize(
    "kind, first, layer",
    [("dinov2", 1, None), ("dinov3", 5, None), ("clip", 1, 1), ("siglip", 0, None)],  # CLIP: after 1 of its 2 layers
)
def test_features_are_the_patches_row_by_row(kind: str, first: int, layer: int | None) -> None:
    module = encoder(kind)
    output = module.model(pixels(), output_hidden_states=True)
    tokens = output.last_hidden_state if layer is None else output.hidden_states[layer]
    assert tokens.shape[1] == first + 16
    f_p = module(pixels())
    assert f_p.shape == (2, 16, 4, 4)
    for y in range(4):
        for x in range(4):
            torch.testing.assert_close(f_p[:, :, y, x], tokens[:, first + 4 * y + x], rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("height, width", [(48, 48), (18, 18), (30, 42)])
def test_any_multiple_of_the_patch_will_do(kind: str, height: int, width: int) -> None:
    f_p = encoder(kind)(pixels(height, width))
    assert f_p.shape == (2, 16, height // 6, width // 6)
    assert f_p.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_features_know_their_place_at_another_size(kind: str) -> None:
    """The same patch everywhere gives features that differ, because positions were interpolated and not dropped."""
    f_p = encoder(kind)(torch.ones(1, 3, 36, 36))
    assert (f_p[:, :, 0, 0] - f_p[:, :, 5, 5]).abs().max() > 1e-4 or kind == "dinov3"  # its positions are relative


@pytest.mark.parametrize("kind", KINDS)
def test_a_size_between_patches_is_refused_with_the_nearest(kind: str) -> None:
    with pytest.raises(UsageError, match=r"25 x 31 px; this encoder has patches of 6: .* 24 x 30"):
        encoder(kind)(pixels(25, 31))


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_transformers_would_swallow_is_refused(kind: str) -> None:
    config = PixelConfig.model_validate({"kind": kind, "arguments": KINDS[kind] | {"hidden_sizes": 3}})
    with pytest.raises(UsageError, match=r"pixel\.arguments\.hidden_sizes.*did you mean hidden_size\?"):
        build_pixel_backbone(config)
