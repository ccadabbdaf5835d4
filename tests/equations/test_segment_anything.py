"""Our SAM against the package segment-anything itself: features, masks and the names of its .pth files. Skipped where it is not installed."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from agvas_core.model.agmd import Agmd
from agvas_core.model.encoders.sam import SamImageEncoder
from agvas_core.model.sam_decoder import SamMaskDecoder
from agvas_core.model.weights.published import read_weights
from agvas_core.model.weights.sam_checkpoint import (
    load_sam_decoder_state,
    load_sam_encoder_state,
    sam_arguments,
    start_agmd_from_sam,
)

pytest.importorskip("segment_anything", exc_type=ImportError)  # it needs torchvision, which is not ours


@pytest.fixture(scope="module")
def sam() -> Any:
    """Their model at tiny size, with weights everywhere."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=64, patch_size=8, embed_dim=32, depth=3, num_heads=2, out_chans=32, window_size=3, use_rel_pos=True,
        global_attn_indexes=(1,), norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    prompt = PromptEncoder(embed_dim=32, image_embedding_size=(8, 8), input_image_size=(64, 64), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=2)
    model = Sam(encoder, prompt, MaskDecoder(transformer_dim=32, transformer=transformer, iou_head_hidden_dim=16)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def state(sam: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What its .pth holds, read as ours reads it."""
    path: Path = tmp_path_factory.mktemp("sam") / "sam.pth"
    torch.save(sam.state_dict(), path)
    return dict(read_weights(str(path)))


@torch.no_grad()
def test_the_encoder_gives_the_same_features(sam: Any, state: dict[str, torch.Tensor]) -> None:
    ours = SamImageEncoder(**sam_arguments(state), out_dim=32).eval()
    load_sam_encoder_state(ours, state)
    image = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(image), sam.image_encoder(image), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_decoder_gives_the_same_mask_of_one_prompt(sam: Any, state: dict[str, torch.Tensor]) -> None:
    ours = SamMaskDecoder(32, heads=2, mlp_dim=64).eval()
    load_sam_decoder_state(ours, state)
    features, prompt = torch.randn(1, 32, 8, 8), torch.randn(1, 3, 32)
    _, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
    theirs, _ = sam.mask_decoder(
        image_embeddings=features,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=prompt[:, 2:],
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    torch.testing.assert_close(ours(prompt, features)[:, 2], theirs[:, 0], rtol=1e-4, atol=1e-5)


def test_agmd_can_begin_with_its_blocks(sam: Any, state: dict[str, torch.Tensor]) -> None:
    agmd = Agmd(32, heads=2, mlp_dim=64)
    start_agmd_from_sam(agmd, state)
    theirs = sam.mask_decoder.state_dict()
    for name, value in agmd.bi_attn.state_dict().items():
        assert torch.equal(value, theirs[f"transformer.{name}"]), name
