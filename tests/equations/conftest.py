"""A tiny AG-VAS with every part of the paper, whose weights are random and far from their start."""

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model
from agvas_core.model.config import ModelConfig, parse_config

torch.set_num_threads(1)  # such small tensors only wait for each other's threads

TINY: dict[str, Any] = {
    "name": "tiny",
    "semantic_view": {"fit": "stretch", "size_px": 32, "mean": [0.5, 0.4, 0.6], "std": [0.5, 0.25, 0.3]},
    "pixel_view": {"fit": "area", "size_px": 64, "multiple_px": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "lmm": {
        "family": "llava-onevision",
        "chat": "qwen",
        "vocab_size": 40,
        "pad_token_id": 0,
        "end_token_id": 2,
        "image_token_id": 3,
        "anchor_ids": [4, 5, 6],
        "vision": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
            "vision_use_head": False,
        },
        "text": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
        },
    },
    "pixel": {
        "kind": "lite",
        "channels": 16,
        "arguments": {"widths": [4, 6, 8, 8], "prior": True, "detail_dim": 6},
    },
    "spam": {"heads": 2},
    "agmd": {"depth": 2, "heads": 2, "mlp_dim": 32, "mask_dim": 6, "detail": True},
}


class Images(NamedTuple):
    """``semantic`` uint8 [B, 32, 32, 3] and ``pixel`` uint8 [B, 64, 64, 3]."""

    semantic: Tensor
    pixel: Tensor


def shake(module: nn.Module, std: float = 0.1) -> None:
    """Moves every parameter, so that no norm is the identity and no bias is zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))


@pytest.fixture
def tiny_table() -> dict[str, Any]:
    """The ``model`` table of a configuration, to change at will."""
    return copy.deepcopy(TINY)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """4 semantic tokens, so 8 image tokens a row."""
    return parse_config(TINY)


@pytest.fixture(scope="module")
def tiny_model(tiny_config: ModelConfig) -> AgVas:
    """In evaluation mode."""
    torch.manual_seed(0)
    model = build_model(tiny_config)
    shake(model)
    return model.eval().requires_grad_(False)


@pytest.fixture
def images() -> Images:
    """Two images."""
    generator = torch.Generator().manual_seed(2)
    return Images(
        torch.randint(0, 256, (2, 32, 32, 3), generator=generator, dtype=torch.uint8),
        torch.randint(0, 256, (2, 64, 64, 3), generator=generator, dtype=torch.uint8),
    )
