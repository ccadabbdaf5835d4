"""Equation 2, f_align = MHCA(Q=f_s, K=f_p, V=f_p), against plain loops and torch's own attention."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agvas_core.model.spam import Spam

Array = NDArray[np.float64]


def spam(dim: int = 8, heads: int = 2, bottleneck: int | None = None) -> Spam:
    torch.manual_seed(0)
    module = Spam(dim, heads, bottleneck)
    for parameter in module.parameters():  # norms and biases too
        nn.init.normal_(parameter, std=0.5)
    return module


def features(batch: int = 2, dim: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, dim, generator=generator), torch.randn(batch, 5, dim, generator=generator)


def loop_spam(module: Spam, f_s: Tensor, f_p: Tensor) -> Array:
    w: dict[str, Array] = {name: value.double().numpy() for name, value in module.state_dict().items()}

    def linear(name: str, x: Array) -> Array:
        return np.array([np.dot(row, x) for row in w[f"{name}.weight"]]) + w[f"{name}.bias"]

    def norm(x: Array) -> Array:
        normed: Array = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w["norm.weight"] + w["norm.bias"]
        return normed

    images = []
    for semantic, pixel in zip(f_s.double().numpy(), f_p.double().numpy(), strict=True):
        keys, values = [linear("to_k", token) for token in pixel], [linear("to_v", token) for token in pixel]
        width = len(keys[0]) // module.heads
        aligned = []
        for token in semantic:
            query = linear("to_q", norm(token))
            joined = []
            for head in range(module.heads):
                part = slice(head * width, (head + 1) * width)
                scores = [np.exp(np.dot(query[part], key[part]) / np.sqrt(width)) for key in keys]
                joined.append(sum(score / sum(scores) * value[part] for score, value in zip(scores, values, strict=True)))
            aligned.append(linear("to_out", np.concatenate(joined)))
        images.append(aligned)
    return np.array(images)


@torch.no_grad()
@pytest.mark.parametrize(("heads", "bottleneck"), [(1, None), (2, None), (4, None), (2, 4), (3, 12)])
def test_alignment_is_equation_2(heads: int, bottleneck: int | None) -> None:
    module, (f_s, f_p) = spam(heads=heads, bottleneck=bottleneck), features()
    np.testing.assert_allclose(module(f_s, f_p).numpy(), loop_spam(module, f_s, f_p), rtol=0, atol=1e-5)


@torch.no_grad()
def test_it_is_the_multi_head_attention_of_torch() -> None:
    module, (f_s, f_p) = spam(), features()
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    projections = (module.to_q, module.to_k, module.to_v)
    theirs.in_proj_weight.copy_(torch.cat([linear.weight for linear in projections]))
    theirs.in_proj_bias.copy_(torch.cat([linear.bias for linear in projections]))
    theirs.out_proj.load_state_dict(module.to_out.state_dict())
    torch.testing.assert_close(module(f_s, f_p), theirs(module.norm(f_s), f_p, f_p)[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_order_of_the_pixels_does_not_matter_and_that_of_the_semantic_tokens_is_kept() -> None:
    module, (f_s, f_p) = spam(), features()
    f_align = module(f_s, f_p)
    torch.testing.assert_close(module(f_s, f_p[:, [4, 2, 0, 1, 3]]), f_align)
    torch.testing.assert_close(module(f_s[:, [2, 0, 1]], f_p), f_align[:, [2, 0, 1]])


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other() -> None:
    module, (f_s, f_p) = spam(), features(batch=3)
    f_align = module(f_s, f_p)
    torch.testing.assert_close(module(f_s[[2, 0, 1]], f_p[[2, 0, 1]]), f_align[[2, 0, 1]])
    torch.testing.assert_close(module(f_s[1:2], f_p[1:2]), f_align[1:2])


@torch.no_grad()
def test_pixels_that_are_all_alike_give_every_token_the_same() -> None:
    module, (f_s, f_p) = spam(), features()
    f_align = module(f_s, f_p[:, :1].expand(-1, 5, -1))
    torch.testing.assert_close(f_align, f_align[:, :1].expand(-1, 3, -1))


@torch.no_grad()
@pytest.mark.parametrize("seed", range(5))
def test_with_positions_a_query_sees_the_cells_under_its_patch_most(seed: int) -> None:
    """Next come those on the other side of the centre: a head has the sines or the cosines of positions, and cannot tell the two apart."""
    torch.manual_seed(seed)
    module = Spam(128, 4, positions=True)
    for projection in (module.to_q, module.to_k):  # no content, places alone
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)
    nn.init.zeros_(module.place.weight)  # type: ignore[union-attr]
    f_s, f_p = torch.zeros(1, 4, 128), torch.zeros(1, 64, 128)
    f_p.view(8, 8, 128)[1:3, 5:7] = torch.randn(128)  # in the middle of the top right quarter
    apart = module(f_s, f_p, (8, 8)) - module(f_s, torch.zeros_like(f_p), (8, 8))  # [1, 4, 128]
    top_left, top_right, bottom_left, bottom_right = apart[0].norm(dim=1)
    assert top_right > 1.2 * bottom_left and top_right > 5 * max(top_left, bottom_right)


@torch.no_grad()
def test_positions_do_not_depend_on_the_size_of_the_pixel_grid() -> None:
    torch.manual_seed(0)
    module = Spam(128, 4, positions=True)
    f_s, f_p = torch.randn(1, 16, 128), torch.randn(1, 1, 128).expand(1, 144, 128)
    torch.testing.assert_close(module(f_s, f_p, (12, 12)), module(f_s, f_p[:, :60], (6, 10)), rtol=0, atol=1e-5)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"8.*3 heads"):
        Spam(8, 3)
