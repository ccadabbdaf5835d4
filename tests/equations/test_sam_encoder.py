"""The SAM image encoder against transformers' SamModel, and its names and sizes against segment-anything's."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SamConfig, SamModel, SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from agvas_core.contract.errors import UsageError
from agvas_core.model.encoders.sam import SAM_SIZES, LayerNorm2d, SamImageEncoder
from agvas_core.model.weights.sam_checkpoint import load_sam_encoder_state, sam_state_from_transformers

# Of the three published image encoders.
PARAMETERS = {"vit_b": 89_670_912, "vit_l": 308_278_272, "vit_h": 637_026_048}

GRIDS = {"windows fit": 8, "windows are padded": 7, "one window is larger than the grid": 3}


def theirs(grid: int, *, window: int = 4, qkv_bias: bool = True, attention: str = "eager", seed: int = 0) -> SamModel:
    """A tiny SamModel whose every parameter, positions and norms included, is random."""
    vision = SamVisionConfig(
        hidden_size=32,
        output_channels=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=4 * grid,
        patch_size=4,
        window_size=window,
        global_attn_indexes=[1],
        mlp_dim=64,
        qkv_bias=qkv_bias,
    )
    config = SamConfig(vision_config=vision.to_dict())
    config._attn_implementation = attention
    model = SamModel(config)
    model.train(False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.vision_encoder.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def ours(grid: int, *, window: int = 4, qkv_bias: bool = True) -> SamImageEncoder:
    return SamImageEncoder(
        image_px=4 * grid,
        patch_px=4,
        dim=32,
        depth=3,
        heads=4,
        window=window,
        global_blocks=(1,),
        out_dim=16,
        mlp_ratio=2,
        qkv_bias=qkv_bias,
    ).eval()


def image(grid: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 4 * grid, 4 * grid, generator=torch.Generator().manual_seed(1))


def segment_anything_names(depth: int) -> set[str]:
    """As they stand in sam_vit_b_01ec64.pth under ``image_encoder.``, written down by hand."""
    names = {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    names |= {"neck.0.weight", "neck.1.weight", "neck.1.bias", "neck.2.weight", "neck.3.weight", "neck.3.bias"}
    for n in range(depth):
        names |= {f"blocks.{n}.norm1.weight", f"blocks.{n}.norm1.bias", f"blocks.{n}.norm2.weight", f"blocks.{n}.norm2.bias"}
        names |= {
            f"blocks.{n}.attn.qkv.weight",
            f"blocks.{n}.attn.qkv.bias",
            f"blocks.{n}.attn.proj.weight",
            f"blocks.{n}.attn.proj.bias",
        }
        names |= {f"blocks.{n}.attn.rel_pos_h", f"blocks.{n}.attn.rel_pos_w"}
        names |= {
            f"blocks.{n}.mlp.lin1.weight",
            f"blocks.{n}.mlp.lin1.bias",
            f"blocks.{n}.mlp.lin2.weight",
            f"blocks.{n}.mlp.lin2.bias",
        }
    return names


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_it_equals_transformers(grid: int, attention: str) -> None:
    reference, encoder = theirs(grid, attention=attention), ours(grid)
    load_sam_encoder_state(encoder, reference.state_dict())
    x = image(grid)
    expected = reference.vision_encoder(x).last_hidden_state
    torch.testing.assert_close(encoder(x), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1  # the comparison is of something


@torch.no_grad()
def test_it_equals_transformers_without_a_bias_of_qkv() -> None:
    reference, encoder = theirs(7, qkv_bias=False), ours(7, qkv_bias=False)
    load_sam_encoder_state(encoder, reference.state_dict())
    torch.testing.assert_close(encoder(image(7)), reference.vision_encoder(image(7)).last_hidden_state, rtol=0, atol=1e-5)


@torch.no_grad()
def test_relative_positions_of_another_size_are_interpolated_as_in_transformers() -> None:
    small, encoder = theirs(6), ours(6)
    blocks: Any = small.vision_encoder.layers
    larger: Any = theirs(10, seed=3).vision_encoder.layers
    blocks[1].attn.rel_pos_h = larger[1].attn.rel_pos_h  # transformers interpolates a table that does not fit
    blocks[1].attn.rel_pos_w = larger[1].attn.rel_pos_w
    load_sam_encoder_state(encoder, small.state_dict(), resize=True)
    assert encoder.state_dict()["blocks.1.attn.rel_pos_h"].shape == (11, 8)
    torch.testing.assert_close(encoder(image(6)), small.vision_encoder(image(6)).last_hidden_state, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_checkpoint_loads_into_another_image_size_only_when_asked() -> None:
    state, encoder = theirs(8).state_dict(), ours(6)
    with pytest.raises(UsageError, match=r"pos_embed is \[1, 8, 8, 32\] in the checkpoint, \[1, 6, 6, 32\].*resize=True"):
        load_sam_encoder_state(encoder, state)
    load_sam_encoder_state(encoder, state, resize=True)
    assert encoder(image(6)).shape == (2, 16, 6, 6)


@torch.no_grad()
@pytest.mark.parametrize("grid", [7, 8])
def test_the_order_and_the_company_in_a_batch_change_nothing(grid: int) -> None:
    encoder = ours(grid)
    load_sam_encoder_state(encoder, theirs(grid).state_dict())
    x = image(grid, batch=3)
    whole = encoder(x)
    torch.testing.assert_close(encoder(x[[2, 0, 1]]), whole[[2, 0, 1]], rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder(x[1:2]), whole[1:2], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_block_with_windows_does_not_see_past_its_window() -> None:
    encoder = SamImageEncoder(image_px=32, patch_px=4, dim=32, depth=1, heads=4, window=4, global_blocks=(), out_dim=16)
    x = torch.randn(1, 8, 8, 32)
    changed = x.clone()
    changed[:, 5, 6] = torch.randn(32)
    difference = (encoder.blocks[0](changed) - encoder.blocks[0](x)).abs().amax(-1)[0]
    assert difference[4:, 4:].min() > 0
    assert difference[:4].max() == 0
    assert difference[:, :4].max() == 0


def test_names_and_shapes_are_those_of_segment_anything() -> None:
    with torch.device("meta"):
        encoder = SamImageEncoder(**SAM_SIZES["vit_b"])
    state = encoder.state_dict()
    assert set(state) == segment_anything_names(depth=12)
    shapes = {name: tuple(state[name].shape) for name in state}
    assert shapes["pos_embed"] == (1, 64, 64, 768)
    assert shapes["patch_embed.proj.weight"] == (768, 3, 16, 16)
    assert shapes["blocks.0.attn.rel_pos_h"] == (27, 64)  # a window of 14
    assert shapes["blocks.2.attn.rel_pos_w"] == (127, 64)  # the whole grid of 64
    assert shapes["blocks.11.mlp.lin1.weight"] == (3072, 768)
    assert shapes["neck.2.weight"] == (256, 256, 3, 3)


@pytest.mark.parametrize("name", SAM_SIZES)
def test_the_published_sizes_have_their_parameters(name: str) -> None:
    size = SAM_SIZES[name]
    config = SamVisionConfig(
        hidden_size=size["dim"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        global_attn_indexes=list(size["global_blocks"]),
    )
    with torch.device("meta"):
        encoder, reference = SamImageEncoder(**size), SamVisionEncoder(config)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert count == PARAMETERS[name]
    assert count == sum(parameter.numel() for parameter in reference.parameters())
    # Every tensor of transformers' encoder has its place here, with the same shape.
    renamed = sam_state_from_transformers({f"vision_encoder.{key}": value for key, value in reference.state_dict().items()})
    assert {key: value.shape for key, value in renamed.items()} == {
        key: value.shape for key, value in encoder.state_dict().items()
    }


@pytest.mark.parametrize("name", SAM_SIZES)
def test_a_view_of_1024_px_gives_64_by_64_features_of_256_channels(name: str) -> None:
    with torch.device("meta"):
        features = SamImageEncoder(**SAM_SIZES[name])(torch.empty(2, 3, 1024, 1024))
    assert features.shape == (2, 256, 64, 64)


@pytest.mark.parametrize("prefix", ["", "image_encoder."])
def test_checkpoints_load_whole_or_as_the_encoder_alone(prefix: str) -> None:
    source, encoder = ours(7), ours(7)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    if prefix:  # the rest of a segment-anything checkpoint is none of the encoder's business
        state["mask_decoder.iou_token.weight"] = torch.zeros(1, 256)
    load_sam_encoder_state(encoder, state)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in encoder.state_dict().items())


def test_an_encoder_on_the_meta_device_takes_over_the_checkpoint() -> None:
    source = ours(7)
    with torch.device("meta"):
        encoder = ours(7)
    load_sam_encoder_state(encoder, source.state_dict())
    torch.testing.assert_close(encoder(image(7)), source(image(7)))


def test_a_foreign_checkpoint_is_refused_with_the_nearest_names() -> None:
    encoder = ours(7)
    state = dict(encoder.state_dict())
    state["neck.layernorm.weight"] = state.pop("neck.1.weight")
    with pytest.raises(UsageError) as error:
        load_sam_encoder_state(encoder, state)
    assert "lacks neck.1.weight (nearest: neck.layernorm.weight)" in str(error.value)
    assert "has neck.layernorm.weight (nearest: neck.1.weight)" in str(error.value)
    with pytest.raises(UsageError, match="and has nothing too many"):
        load_sam_encoder_state(encoder, {"pos_embed": state["pos_embed"]})
    with pytest.raises(UsageError, match=r"lacks blocks\.0\..* more"):
        load_sam_encoder_state(encoder, {})


@pytest.mark.parametrize("resize", [False, True])
def test_a_checkpoint_of_another_width_is_refused_with_its_size(resize: bool) -> None:
    wider = SamImageEncoder(
        image_px=28, patch_px=4, dim=64, depth=3, heads=4, window=4, global_blocks=(1,), out_dim=16, mlp_ratio=2
    )
    with pytest.raises(UsageError, match=r"pos_embed is \[1, 7, 7, 64\] in the checkpoint, \[1, 7, 7, 32\].*vit_b"):
        load_sam_encoder_state(ours(7), wider.state_dict(), resize=resize)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\[1, 3, 32, 28\].*\[B, 3, 28, 28\]"):
        ours(7)(torch.zeros(1, 3, 32, 28))
    with pytest.raises(UsageError, match=r"image_px=1000.*try 992"):
        SamImageEncoder(image_px=1000, dim=8, depth=0, heads=1, global_blocks=())
    with pytest.raises(UsageError, match=r"dim=10.*4 heads"):
        SamImageEncoder(image_px=32, dim=10, depth=0, heads=4, global_blocks=())
    with pytest.raises(UsageError, match=r"depth=2 has 0\.\.1"):
        SamImageEncoder(image_px=32, dim=8, depth=2, heads=4, global_blocks=(2,))


def test_every_norm_is_a_module_that_an_export_can_keep_in_float32() -> None:
    encoder = ours(7)
    norms = [name for name, module in encoder.named_modules() if isinstance(module, torch.nn.LayerNorm | LayerNorm2d)]
    assert norms == [*(f"blocks.{n}.norm{k}" for n in range(3) for k in (1, 2)), "neck.1", "neck.3"]
