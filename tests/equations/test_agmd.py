"""Equations 4-6: what enters the two-way blocks, and how their output becomes mask logits, against plain loops."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import SamConfig
from transformers.models.sam.modeling_sam import SamPositionalEmbedding

from agvas_core.model.agmd import Agmd
from agvas_core.model.encoders.positions import DensePosition

Array = NDArray[np.float64]
DIM, GRID = 16, (3, 2)


def agmd(upscale: int = 4, detail: bool = False, mask_dim: int | None = None) -> Agmd:
    torch.manual_seed(0)
    module = Agmd(DIM, depth=2, heads=4, mlp_dim=24, upscale=upscale, mask_dim=mask_dim, detail=detail)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
    """h_anchor [B, 3, C] and f_p [B, C, h, w]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, DIM, generator=generator), torch.randn(batch, DIM, *GRID, generator=generator)


def test_the_decoder_starts_from_equation_4() -> None:
    module, (h, f_p) = agmd(), inputs()
    seen: list[tuple[Tensor, ...]] = []
    module.bi_attn.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    module(h, f_p)
    z0, pixels, *_ = seen[0]
    t_nor, t_ano, t_seg = module.t_learn
    for b in range(2):
        h_nor, h_ano, h_seg = h[b]
        assert torch.equal(z0[b], torch.stack([t_nor, t_ano, t_seg, h_nor, h_ano, h_seg]))
        for y in range(GRID[0]):
            for x in range(GRID[1]):
                assert torch.equal(pixels[b, y * GRID[1] + x], f_p[b, :, y, x])


def test_an_answer_with_seg_alone_is_decoded_without_the_other_anchors() -> None:
    module, (h, f_p) = agmd(), inputs()
    carried = torch.tensor([[False, False, True], [True, True, True]])
    h.requires_grad_()
    logits = module(h, f_p, None, carried)
    assert torch.allclose(logits[1], module(h, f_p)[1], atol=1e-6)  # a row that has all three is as before
    logits[0, 2].sum().backward()
    assert h.grad is not None and module.t_learn.grad is not None
    for gradient in (h.grad[0], module.t_learn.grad):
        assert not gradient[:2].any() and gradient[2].any()


class LoopReference:
    """From Z_L and f'_p of one image to logits, number by number."""

    def __init__(self, module: Agmd) -> None:
        self.weights: dict[str, Array] = {name: value.double().numpy() for name, value in module.state_dict().items()}

    def linear(self, name: str, x: Array) -> Array:
        return np.array([np.dot(row, x) for row in self.weights[f"{name}.weight"]]) + self.weights[f"{name}.bias"]

    def token(self, anchor: int, t: Array) -> Array:
        for layer in (0, 2):
            t = np.maximum(self.linear(f"to_mask.{anchor}.{layer}", t), 0)
        return self.linear(f"to_mask.{anchor}.4", t)

    def doubled(self, name: str, f: Array) -> Array:
        """Transposed convolution, 2x2 with stride 2: each pixel becomes four. [h, w, C] -> [2h, 2w, C']."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]  # [C, C', 2, 2]
        out = np.zeros((2 * f.shape[0], 2 * f.shape[1], len(bias)))
        for y in range(out.shape[0]):
            for x in range(out.shape[1]):
                out[y, x] = f[y // 2, x // 2] @ weight[:, :, y % 2, x % 2] + bias
        return out

    def upscaled(self, f: Array) -> Array:
        f = self.doubled("upscale.0", f)
        for y in range(f.shape[0]):
            for x in range(f.shape[1]):
                v = f[y, x]
                v = (v - v.mean()) / np.sqrt(v.var() + 1e-6) * self.weights["upscale.1.norm.weight"] + self.weights[
                    "upscale.1.norm.bias"
                ]
                f[y, x] = [0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in v]  # GELU
        f = self.doubled("upscale.3", f)
        return 0.5 * f * (1 + np.vectorize(math.erf)(f / math.sqrt(2)))  # GELU

    def __call__(self, z: Array, pixels: Array, upscale: int) -> Array:
        f = pixels.reshape(*GRID, DIM)
        f = self.upscaled(f) if upscale == 4 else f
        logits = np.zeros((3, *f.shape[:2]))
        for anchor in range(3):  # the first three of Z_L are the learnable tokens
            t = self.token(anchor, z[anchor])
            for y in range(f.shape[0]):
                for x in range(f.shape[1]):
                    logits[anchor, y, x] = np.dot(t, f[y, x]) + self.weights["bias"][anchor]  # eq. 6
        return logits


@torch.no_grad()
@pytest.mark.parametrize("upscale", [1, 4])
def test_logits_are_the_products_of_equation_6(upscale: int) -> None:
    module, (h, f_p) = agmd(upscale), inputs()
    seen: list[tuple[Tensor, Tensor]] = []
    module.bi_attn.register_forward_hook(lambda _, __, output: seen.append(output))
    logits = module(h, f_p)
    z, pixels = seen[0]
    assert logits.shape == (2, 3, upscale * GRID[0], upscale * GRID[1])
    for b in range(2):
        expected = LoopReference(module)(z[b].double().numpy(), pixels[b].double().numpy(), upscale)
        np.testing.assert_allclose(logits[b].numpy(), expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_dense_positions_are_those_of_sam() -> None:
    config = SamConfig(prompt_encoder_config={"hidden_size": DIM}, vision_config={"num_pos_feats": DIM // 2, "hidden_size": DIM})
    theirs: nn.Module = SamPositionalEmbedding(config.vision_config)  # type: ignore[no-untyped-call]
    ours = DensePosition(DIM)
    theirs.load_state_dict({"positional_embedding": ours.frequencies})
    expected = []
    for y in range(GRID[0]):
        for x in range(GRID[1]):
            centre = torch.tensor([[[(x + 0.5) / GRID[1], (y + 0.5) / GRID[0]]]])
            expected.append(theirs(centre)[0, 0])
    torch.testing.assert_close(ours(*GRID)[0], torch.stack(expected), rtol=0, atol=1e-5)


@torch.no_grad()
def test_without_positions_permuted_pixels_give_permuted_masks() -> None:
    module, (h, f_p) = agmd(upscale=1), inputs()
    order = torch.tensor([5, 1, 0, 4, 2, 3])
    permuted = f_p.flatten(2)[..., order].reshape(f_p.shape)
    placed = (module(h, permuted).flatten(2) - module(h, f_p).flatten(2)[..., order]).abs().max()
    module.position.frequencies.zero_()  # every pixel at the same place
    torch.testing.assert_close(module(h, permuted).flatten(2), module(h, f_p).flatten(2)[..., order], rtol=0, atol=1e-4)
    assert placed > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("upscale", [1, 4])
def test_images_of_a_batch_do_not_see_each_other(upscale: int) -> None:
    module, (h, f_p) = agmd(upscale), inputs(batch=3)
    order = torch.tensor([2, 0, 1])
    logits = module(h, f_p)
    torch.testing.assert_close(module(h[order], f_p[order]), logits[order], rtol=0, atol=1e-4)
    torch.testing.assert_close(module(h[1:2], f_p[1:2]), logits[1:2], rtol=0, atol=1e-4)


def test_every_mask_depends_on_every_anchor_and_on_the_pixels() -> None:
    module, (h, f_p) = agmd(), inputs(batch=1)
    h.requires_grad_()
    f_p.requires_grad_()
    logits = module(h, f_p)
    for anchor in range(3):
        to_h, to_f = torch.autograd.grad(logits[0, anchor].sum(), (h, f_p), retain_graph=True)
        assert (to_h[0].abs().amax(1) > 0).all()
        assert (to_f.abs().amax(1) > 0).all()


@torch.no_grad()
def test_finer_features_enter_before_the_product() -> None:
    module, plain, (h, f_p) = agmd(detail=True, mask_dim=4), agmd(mask_dim=4), inputs()
    f_detail = torch.randn(2, 4, 4 * GRID[0], 4 * GRID[1])
    logits = module(h, f_p, f_detail)
    assert logits.shape == (2, 3, 4 * GRID[0], 4 * GRID[1])
    changed = f_detail.clone()
    changed[0, :, 0, 0] += 1
    difference = (module(h, f_p, changed) - logits).abs()
    assert difference[0, :, :2, :2].min() > 0  # its own place and the 3 x 3 around it
    difference[0, :, :2, :2] = 0
    assert difference.max() == 0
    assert plain(h, f_p).shape == logits.shape
    with pytest.raises(AssertionError, match="detail=True"):
        module(h, f_p)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(ValueError, match="upscale is 2"):
        agmd(upscale=2)
    with pytest.raises(ValueError, match="detail needs upscale=4"):
        agmd(upscale=1, detail=True)


def test_literal_is_the_product_of_eq_6_and_nothing_else() -> None:
    torch.manual_seed(3)
    agmd = Agmd(16, heads=2, mlp_dim=16, upscale=1, literal=True).eval()
    h, f_p = torch.randn(2, 3, 16), torch.randn(2, 16, 5, 7)
    z0 = torch.cat([agmd.t_learn.expand(2, -1, -1), h], 1)
    z, pixels = agmd.bi_attn(z0, f_p.flatten(2).transpose(1, 2), agmd.position(5, 7))
    expected = (z[:, :3] @ pixels.transpose(1, 2)).view(2, 3, 5, 7)
    torch.testing.assert_close(agmd(h, f_p), expected)
    assert not any(name.startswith(("to_mask", "upscale", "bias")) for name, _ in agmd.named_parameters())
    with pytest.raises(ValueError, match="set upscale = 1"):
        Agmd(16, heads=2, literal=True)
