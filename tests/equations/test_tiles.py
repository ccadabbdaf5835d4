"""Any-resolution tiling of the semantic view against LLaVA-OneVision's own in transformers."""

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from agvas_core.model.build import assemble, build_llava, build_pixel_backbone, semantic_tokens, visual_tokens
from agvas_core.model.config import ModelConfig, parse_config


def tiled(table: dict[str, Any], tiles: int) -> ModelConfig:
    table = copy.deepcopy(table)
    table["lmm"]["tiles"] = tiles
    table["semantic_view"]["size_px"] = 32 * tiles
    return parse_config(table)


@torch.no_grad()
@pytest.mark.parametrize("tiles", [2, 3])
def test_the_tokens_are_those_of_llava_onevision(tiny_table: dict[str, Any], tiles: int) -> None:
    config = tiled(tiny_table, tiles)
    torch.manual_seed(0)
    llava = build_llava(config.lmm).eval()
    llava.config.image_grid_pinpoints = [[32 * tiles, 32 * tiles]]
    encoder = assemble(config, llava, build_pixel_backbone(config.pixel)).semantic_encoder.eval()
    image = torch.randint(0, 256, (2, 32 * tiles, 32 * tiles, 3), dtype=torch.uint8)
    pixels = encoder.normalize(image)
    # The whole image first, then the tiles row by row, as its image processor stacks them.
    stacked = [F.adaptive_avg_pool2d(pixels, 32)] + [
        pixels[:, :, 32 * y : 32 * (y + 1), 32 * x : 32 * (x + 1)] for y in range(tiles) for x in range(tiles)
    ]
    expected = llava.model.get_image_features(
        torch.stack(stacked, 1), image_sizes=torch.tensor([[32 * tiles, 32 * tiles]] * 2)
    ).pooler_output
    f_s = encoder(image)
    assert f_s.shape[1] == semantic_tokens(config) == 4 + 2 * tiles * (2 * tiles + 1)
    assert visual_tokens(config) == 2 * semantic_tokens(config)
    torch.testing.assert_close(f_s, torch.stack(list(expected)), rtol=0, atol=1e-5)


def test_one_tile_is_the_plain_view(tiny_table: dict[str, Any]) -> None:
    config = tiled(tiny_table, 1)
    assert semantic_tokens(config) == 4
    assert not any("newline" in name for name in assemble(config, build_llava(config.lmm), torch.nn.Identity()).state_dict())
