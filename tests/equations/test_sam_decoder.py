"""SAM's mask decoder with one prompt, against transformers' own; and the ablations of AGMD's anchors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from agvas_core.contract.errors import UsageError
from agvas_core.contract.prompts import Anchor
from agvas_core.model.agmd import Agmd, in_anchor_order
from agvas_core.model.sam_decoder import SamMaskDecoder
from agvas_core.model.weights.sam_checkpoint import load_sam_decoder_state

DIM, GRID = 32, 6


def reference() -> Any:
    """transformers' SAM with its decoder at width 32 (layer norms as in segment-anything)."""
    torch.manual_seed(0)
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=16, output_channels=DIM, num_hidden_layers=1, num_attention_heads=2, image_size=GRID * 4, patch_size=4
        ),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=DIM, num_attention_heads=2, mlp_dim=24, layer_norm_eps=1e-5, iou_head_hidden_dim=16
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=DIM, image_size=GRID * 4, patch_size=4, mask_input_channels=4, image_embedding_size=GRID
        ),
    )
    config.vision_config.num_pos_feats = DIM // 2
    model = SamModel(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, DIM, generator=generator), torch.randn(2, DIM, GRID, GRID, generator=generator)


def segment_anything_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names to segment-anything's, by hand."""
    pairs = [
        ("shared_image_embedding.positional_embedding", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
        ("layer_norm_final_attn", "norm_final_attn"),
        *((f"layer_norm{i}", f"norm{i}") for i in range(1, 5)),
        ("upscale_conv1", "output_upscaling.0"),
        ("upscale_layer_norm", "output_upscaling.1"),
        ("upscale_conv2", "output_upscaling.3"),
    ]
    renamed = {}
    for key, value in state.items():
        if "output_hypernetworks_mlps" in key:
            key = key.replace("layers.0", "layers.1").replace("proj_in", "layers.0").replace("proj_out", "layers.2")
        for theirs, original in pairs:
            key = key.replace(theirs, original)
        renamed[key] = value
    return renamed


@torch.no_grad()
@pytest.mark.parametrize("names", ["transformers", "segment-anything"])
def test_it_equals_transformers_with_one_prompt(names: str) -> None:
    theirs, ours = reference(), SamMaskDecoder(DIM, heads=2, mlp_dim=24)
    state = theirs.state_dict()
    load_sam_decoder_state(ours, state if names == "transformers" else segment_anything_names(state))
    h_anchor, f_p = inputs()
    expected, _ = theirs.mask_decoder(
        image_embeddings=f_p,
        image_positional_embeddings=theirs.get_image_wide_positional_embeddings().expand(2, -1, -1, -1),
        sparse_prompt_embeddings=h_anchor[:, None, Anchor.SEG, None],
        dense_prompt_embeddings=theirs.prompt_encoder.no_mask_embed.weight.view(1, DIM, 1, 1).expand(2, -1, GRID, GRID),
        multimask_output=False,
    )
    logits = ours(h_anchor, f_p)
    assert logits.shape == (2, 3, 4 * GRID, 4 * GRID)
    torch.testing.assert_close(logits[:, Anchor.SEG], expected[:, 0, 0], rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1
    assert not logits[:, [Anchor.NOR, Anchor.ANO]].any()


@torch.no_grad()
def test_only_the_state_of_seg_is_read() -> None:
    decoder, (h_anchor, f_p) = SamMaskDecoder(DIM, heads=2, mlp_dim=24), inputs()
    logits = decoder(h_anchor, f_p)
    h_anchor[:, [Anchor.NOR, Anchor.ANO]] += 1
    assert torch.equal(decoder(h_anchor, f_p), logits)
    h_anchor[:, Anchor.SEG] += 1
    assert not torch.equal(decoder(h_anchor, f_p), logits)


def test_a_checkpoint_without_a_decoder_says_what_it_lacks() -> None:
    state = {key: value for key, value in reference().state_dict().items() if "iou_token" not in key}
    with pytest.raises(UsageError, match=r"it lacks iou_token\.weight"):
        load_sam_decoder_state(SamMaskDecoder(DIM, heads=2, mlp_dim=24), state)
    with pytest.raises(UsageError, match=r"in the checkpoint, .* in the model: build the decoder with the checkpoint's size"):
        load_sam_decoder_state(SamMaskDecoder(DIM * 2, heads=2, mlp_dim=24), reference().state_dict())


@torch.no_grad()
@pytest.mark.parametrize("anchors", [(Anchor.NOR, Anchor.ANO), (Anchor.SEG,)])
def test_agmd_without_an_anchor_neither_reads_nor_gives_it(anchors: tuple[Anchor, ...]) -> None:
    torch.manual_seed(0)
    decoder, (h_anchor, f_p) = Agmd(DIM, heads=2, mlp_dim=24, anchors=anchors), inputs()
    logits = decoder(h_anchor, f_p)
    absent = [anchor for anchor in Anchor if anchor not in anchors]
    assert logits.shape == (2, 3, 4 * GRID, 4 * GRID)
    assert not logits[:, absent].any()
    assert all(logits[:, anchor].any() for anchor in anchors)
    h_anchor[:, absent] += 1
    assert torch.equal(decoder(h_anchor, f_p), logits)
    assert len(decoder.to_mask) == len(decoder.t_learn) == len(anchors)


def test_masks_stand_in_anchor_order() -> None:
    two = torch.arange(8.0).view(1, 2, 2, 2)
    assert in_anchor_order(two, (Anchor.NOR, Anchor.ANO))[:, :2].equal(two)
    assert in_anchor_order(two[:, :1], (Anchor.SEG,))[:, 2:].equal(two[:, :1])
    three = torch.zeros(1, 3, 2, 2)
    assert in_anchor_order(three, tuple(Anchor)) is three
