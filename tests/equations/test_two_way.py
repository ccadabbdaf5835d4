"""Equation 5, Z_L, f'_p = BiAttn^L(Z_0, f_p), against plain loops and transformers' SamTwoWayTransformer."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamTwoWayAttentionBlock, SamTwoWayTransformer

from agvas_core.model.agmd import TwoWayTransformer

Array = NDArray[np.float64]
DIM, HEADS, GRID = 16, 4, (3, 2)


def two_way(depth: int = 2, downsample: int = 2) -> TwoWayTransformer:
    torch.manual_seed(0)
    module = TwoWayTransformer(DIM, depth, HEADS, mlp_dim=24, downsample=downsample)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Z_0 [B, 6, C], f_p [B, hw, C] and positions [1, hw, C]."""
    generator = torch.Generator().manual_seed(1)
    pixels = GRID[0] * GRID[1]
    z0, f_p = torch.randn(batch, 6, DIM, generator=generator), torch.randn(batch, pixels, DIM, generator=generator)
    return z0, f_p, torch.randn(1, pixels, DIM, generator=generator)


class LoopReference:
    """One image, token by token, after SAM's figure of the mask decoder."""

    def __init__(self, module: TwoWayTransformer, depth: int) -> None:
        self.weights: dict[str, Array] = {name: value.double().numpy() for name, value in module.state_dict().items()}
        self.depth = depth

    def linear(self, name: str, x: Array) -> Array:
        return np.array([np.dot(row, x) for row in self.weights[f"{name}.weight"]]) + self.weights[f"{name}.bias"]

    def norm(self, name: str, tokens: Array) -> Array:
        scale, shift = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return np.array([(x - x.mean()) / np.sqrt(x.var() + 1e-5) * scale + shift for x in tokens])

    def attention(self, name: str, q: Array, k: Array, v: Array) -> Array:
        keys = [self.linear(f"{name}.k_proj", x) for x in k]
        values = [self.linear(f"{name}.v_proj", x) for x in v]
        width = len(keys[0]) // HEADS
        out = []
        for x in q:
            query, joined = self.linear(f"{name}.q_proj", x), []
            for head in range(HEADS):
                part = slice(head * width, (head + 1) * width)
                scores = [np.exp(np.dot(query[part], key[part]) / np.sqrt(width)) for key in keys]
                joined.append(sum(score / sum(scores) * value[part] for score, value in zip(scores, values, strict=True)))
            out.append(self.linear(f"{name}.out_proj", np.concatenate(joined)))
        return np.array(out)

    def __call__(self, z0: Array, f_p: Array, f_pe: Array) -> tuple[Array, Array]:
        z = z0
        for i in range(self.depth):
            block = f"layers.{i}"
            if i == 0:  # SAM: the first self-attention has neither positions nor a residual
                z = self.norm(f"{block}.norm1", self.attention(f"{block}.self_attn", z, z, z))
            else:
                z = self.norm(f"{block}.norm1", z + self.attention(f"{block}.self_attn", z + z0, z + z0, z))
            z = self.norm(f"{block}.norm2", z + self.attention(f"{block}.cross_attn_token_to_image", z + z0, f_p + f_pe, f_p))
            hidden = [np.maximum(self.linear(f"{block}.mlp.lin1", x), 0) for x in z]
            z = self.norm(f"{block}.norm3", z + np.array([self.linear(f"{block}.mlp.lin2", x) for x in hidden]))
            f_p = self.norm(f"{block}.norm4", f_p + self.attention(f"{block}.cross_attn_image_to_token", f_p + f_pe, z + z0, z))
        z = self.norm("norm_final_attn", z + self.attention("final_attn_token_to_image", z + z0, f_p + f_pe, f_p))
        return z, f_p


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_blocks_are_those_of_sam_token_by_token(depth: int) -> None:
    module, (z0, f_p, f_pe) = two_way(depth), inputs()
    z, f_out = module(z0, f_p, f_pe)
    reference = LoopReference(module, depth)
    for b in range(2):
        expected_z, expected_f = reference(z0[b].double().numpy(), f_p[b].double().numpy(), f_pe[0].double().numpy())
        np.testing.assert_allclose(z[b].numpy(), expected_z, rtol=0, atol=1e-5)
        np.testing.assert_allclose(f_out[b].numpy(), expected_f, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("downsample", [1, 2])
def test_it_equals_transformers_with_the_same_weights(downsample: int) -> None:
    module, (z0, f_p, f_pe) = two_way(downsample=downsample), inputs()
    config = SamMaskDecoderConfig(
        hidden_size=DIM,
        mlp_dim=24,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        attention_downsample_rate=downsample,
        layer_norm_eps=1e-5,  # segment-anything's own; transformers' default is 1e-6
    )
    theirs = SamTwoWayTransformer(config)
    # Left to itself it hands the rate to its last attention only.
    theirs.layers = nn.ModuleList(SamTwoWayAttentionBlock(config, downsample, skip_first_layer_pe=i == 0) for i in range(2))
    theirs.load_state_dict({name.replace("norm", "layer_norm"): value for name, value in module.state_dict().items()})

    def as_map(tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).reshape(-1, DIM, *GRID)  # [B, C, h, w]

    expected_z, expected_f = theirs(z0[:, None], as_map(f_p), as_map(f_pe), attention_similarity=None)
    z, f_out = module(z0, f_p, f_pe)
    torch.testing.assert_close(z, expected_z[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(f_out, expected_f[:, 0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_positions_pixels_may_be_permuted() -> None:
    module, (z0, f_p, f_pe) = two_way(), inputs()
    order = torch.tensor([5, 1, 0, 4, 2, 3])
    z, f_out = module(z0, f_p, torch.zeros_like(f_pe))
    z_permuted, f_permuted = module(z0, f_p[:, order], torch.zeros_like(f_pe))
    torch.testing.assert_close(z_permuted, z)
    torch.testing.assert_close(f_permuted, f_out[:, order])


@torch.no_grad()
def test_with_positions_pixels_may_be_permuted_only_together_with_them() -> None:
    module, (z0, f_p, f_pe) = two_way(), inputs()
    order = torch.tensor([5, 1, 0, 4, 2, 3])
    z, f_out = module(z0, f_p, f_pe)
    z_together, f_together = module(z0, f_p[:, order], f_pe[:, order])
    torch.testing.assert_close(z_together, z)
    torch.testing.assert_close(f_together, f_out[:, order])
    assert (module(z0, f_p[:, order], f_pe)[0] - z).abs().max() > 1e-3


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other() -> None:
    module, (z0, f_p, f_pe) = two_way(), inputs(batch=3)
    order = torch.tensor([2, 0, 1])
    for one, other in zip(module(z0[order], f_p[order], f_pe), module(z0, f_p, f_pe), strict=True):
        torch.testing.assert_close(one, other[order])
    for one, other in zip(module(z0[1:2], f_p[1:2], f_pe), module(z0, f_p, f_pe), strict=True):
        torch.testing.assert_close(one, other[1:2])


def test_heads_that_do_not_divide_the_inner_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"16.*3 heads"):
        TwoWayTransformer(16, 1, 3, mlp_dim=8)
