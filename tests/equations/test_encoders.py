"""Equation 1, f_s = Linear_s(F_s(x)) and f_p = Linear_p(F_p(x)), against transformers' models and plain loops."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from agvas_core.model.build import build_llava, build_model
from agvas_core.model.config import LmmConfig, load_preset, parse_config
from agvas_core.model.encoders.efficientnet_lite import load_trunk
from agvas_core.model.encoders.encoders import LinearP, Normalize, PixelEncoder, SemanticEncoder
from agvas_core.model.encoders.lite_pyramid import LitePyramid

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def llava_of(table: dict[str, Any], family: str) -> Any:
    lmm = table["lmm"] | {"family": family}
    if family == "llava-1.5":
        del lmm["vision"]["vision_use_head"]
    torch.manual_seed(0)
    llava = build_llava(LmmConfig.model_validate(lmm)).eval().requires_grad_(False)
    for parameter in llava.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return llava


def test_f_s_is_that_of_llava_onevision_for_one_view(tiny_table: dict[str, Any], images: Any) -> None:
    llava = llava_of(tiny_table, "llava-onevision")
    normalize = Normalize((0.5, 0.4, 0.6), (0.5, 0.25, 0.3))
    encoder = SemanticEncoder(normalize=normalize, tower=llava.model.vision_tower, projector=llava.model.multi_modal_projector)
    features = llava.get_image_features(
        normalize(images.semantic), image_sizes=torch.tensor([[32, 32]] * 2), batch_num_images=torch.tensor([2])
    ).pooler_output
    expected = torch.stack([view[:-1] for view in features])  # the last of each is image_newline, which one view does not need
    f_s = encoder(images.semantic)
    assert f_s.shape == (2, 4, 32)
    torch.testing.assert_close(f_s, expected, rtol=0, atol=1e-6)
    assert f_s.std() > 0.1  # the comparison is of something


def test_f_s_is_that_of_llava_1_5(tiny_table: dict[str, Any], images: Any) -> None:
    llava = llava_of(tiny_table, "llava-1.5")
    normalize = Normalize(CLIP_MEAN, CLIP_STD)
    encoder = SemanticEncoder(
        normalize=normalize,
        tower=llava.model.vision_tower,
        projector=llava.model.multi_modal_projector,
        feature_layer=-2,
        drop_class_token=True,
    )
    expected = torch.stack(list(llava.get_image_features(normalize(images.semantic)).pooler_output))
    torch.testing.assert_close(encoder(images.semantic), expected, rtol=0, atol=1e-6)
    assert expected.shape == (2, 4, 32)


@pytest.mark.parametrize("family", ["llava-onevision", "llava-1.5"])
def test_each_family_is_built_with_its_own_feature_layer(tiny_table: dict[str, Any], family: str) -> None:
    tiny_table["lmm"]["family"] = family
    if family == "llava-1.5":
        del tiny_table["lmm"]["vision"]["vision_use_head"]
    encoder = build_model(parse_config(tiny_table)).semantic_encoder
    assert (encoder.feature_layer, encoder.drop_class_token) == ((-2, True) if family == "llava-1.5" else (-1, False))


@pytest.mark.parametrize(
    "preset, processor",
    [
        ("ov-7b", SiglipImageProcessorPil(do_resize=False)),
        ("ov-0.5b", SiglipImageProcessorPil(do_resize=False)),
        ("llava-13b", CLIPImageProcessorPil(do_resize=False, do_center_crop=False)),
    ],
)
def test_normalisation_is_that_of_the_checkpoints_processor(preset: str, processor: Any, images: Any) -> None:
    view = parse_config(load_preset(preset)["model"]).semantic_view
    expected = np.stack(processor(list(images.semantic.numpy()), input_data_format="channels_last")["pixel_values"])
    actual = Normalize(view.mean, view.std)(images.semantic)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-6)


def test_normalisation_is_pixel_by_pixel() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    image = torch.arange(24, dtype=torch.uint8).view(1, 2, 4, 3) * 10
    out = Normalize(mean, std)(image)
    assert out.shape == (1, 3, 2, 4)
    for y in range(2):
        for x in range(4):
            for c in range(3):
                expected = (int(image[0, y, x, c]) / 255 - mean[c]) / std[c]
                assert out[0, c, y, x].item() == pytest.approx(expected, abs=1e-6)


def test_linear_p_maps_each_place_by_itself() -> None:
    torch.manual_seed(0)
    module = LinearP(channels=5, dim=7)
    nn.init.normal_(module.norm.weight)
    nn.init.normal_(module.norm.bias)
    f_p = 3 * torch.randn(2, 5, 2, 3)
    tokens = module(f_p)
    assert tokens.shape == (2, 6, 7)
    scale, shift = module.norm.weight.tolist(), module.norm.bias.tolist()
    for b in range(2):
        for y in range(2):
            for x in range(3):
                values = f_p[b, :, y, x].tolist()
                mean = sum(values) / 5
                variance = sum((value - mean) ** 2 for value in values) / 5
                normed = [(v - mean) / (variance + 1e-5) ** 0.5 * s + t for v, s, t in zip(values, scale, shift, strict=True)]
                for d in range(7):
                    expected = sum(w * v for w, v in zip(module.linear.weight[d].tolist(), normed, strict=True))
                    assert tokens[b, 3 * y + x, d].item() == pytest.approx(expected + module.linear.bias[d].item(), abs=1e-5)


def pyramid(**arguments: bool | int) -> LitePyramid:
    torch.manual_seed(0)
    return LitePyramid(load_trunk(), widths=(4, 6, 8, 8), out_dim=12, detail_dim=6, **arguments).eval()  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{}, {"prior": True}, {"attention": 2}], ids=["plain", "prior", "attention"])
@pytest.mark.parametrize("height, width", [(64, 64), (64, 160), (224, 96), (320, 320)])
def test_the_pyramid_takes_any_multiple_of_32(height: int, width: int, arguments: dict[str, bool | int]) -> None:
    f_p, f_detail, *of_trunk = pyramid(**arguments)(torch.randn(1, 3, height, width))
    assert [each.shape for each in of_trunk] == [(1, 40, height // 8, width // 8), (1, 112, height // 16, width // 16)]
    assert f_p.shape == (1, 12, height // 8, width // 8)
    assert f_detail.shape == (1, 6, height // 2, width // 2)
    assert f_p.isfinite().all()
    assert f_detail.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{"prior": True}, {"attention": 1}], ids=["prior", "attention"])
def test_the_pyramid_sees_each_image_by_itself(arguments: dict[str, bool | int]) -> None:
    encoder, pixels = pyramid(**arguments), torch.randn(3, 3, 64, 96)
    together = encoder(pixels)
    for b in range(3):
        for one, other in zip(encoder(pixels[b : b + 1]), together, strict=True):
            torch.testing.assert_close(one[0], other[b], rtol=0, atol=1e-4)


def test_a_frozen_trunk_keeps_no_gradients_and_the_pyramid_does() -> None:
    encoder, pixels = pyramid(), torch.randn(1, 3, 64, 64)
    encoder(pixels)[0].sum().backward()
    assert all(p.grad is not None for p in encoder.trunk.stem.parameters())
    encoder.zero_grad()
    encoder.trunk.requires_grad_(False)
    encoder(pixels)[0].sum().backward()
    assert all(p.grad is None for p in encoder.trunk.parameters())
    assert encoder.to_f_p.weight.grad is not None


def test_coarse_levels_reach_the_finest() -> None:
    encoder = pyramid()
    f_detail = encoder(torch.randn(1, 3, 64, 64))[1]
    f_detail[..., 0, 0].sum().backward()
    coarsest = encoder.lateral[3]
    assert isinstance(coarsest, nn.Conv2d) and coarsest.weight.grad is not None and coarsest.weight.grad.any()


def test_an_encoder_without_finer_features_has_none() -> None:
    class Flat(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[..., ::16, ::16]

    features = PixelEncoder(normalize=Normalize((0, 0, 0), (1, 1, 1)), backbone=Flat())(
        torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    )
    assert features.f_p.shape == (1, 3, 2, 2)
    assert features.f_detail is None
