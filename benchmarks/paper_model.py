"""Models of paper size with random weights, made where they run, and the same architectures at a size that a test can afford.

Speed does not depend on what the weights are; nothing else may be concluded from these.
"""

from typing import Any

import torch

from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model, visual_tokens
from agvas_core.model.config import ModelConfig, load_preset, parse_config
from agvas_core.model.encoders.encoders import Normalize
from agvas_core.model.encoders.positions import DensePosition

VIT_B = {"dim": 768, "depth": 12, "heads": 12, "global_blocks": [2, 5, 8, 11]}  # SAM ViT-B
BEFORE, ASKED, ANSWER = 3, 16, 9  # words before the image, after it up to the answer, and of the answer up to the last anchor


def paper_config(preset: str, *, tiny: bool = False, sam: str = "") -> ModelConfig:
    """A preset without its published weights.

    Args:
        tiny: every part of it, each as small as can be.
        sam: ``vit_b`` in place of the preset's ViT-H.
    """
    table = load_preset(preset)["model"]
    table["lmm"].pop("pretrained", None)
    table["pixel"].pop("pretrained", None)
    if sam == "vit_b":
        table["pixel"]["arguments"] |= VIT_B
        table["name"] += "-vit-b"
    return parse_config(shrunk(table) if tiny else table)


def shrunk(table: dict[str, Any]) -> dict[str, Any]:
    """The ``model`` table of a preset with SAM at tiny size: 9 semantic tokens, 5 x 5 cells of which windows hold 3 x 3."""
    table["semantic_view"]["size_px"] = 42
    table["pixel_view"]["size_px"] = 80
    table["lmm"] |= {"vocab_size": 64, "pad_token_id": 1, "end_token_id": 2, "image_token_id": 3, "anchor_ids": [4, 5, 6]}
    vision = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    table["lmm"]["vision"] |= vision | {"image_size": 42, "patch_size": 14}
    grouped = table["lmm"]["text"].get("num_key_value_heads", 0) < table["lmm"]["text"]["num_attention_heads"]
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    table["lmm"]["text"] |= text | {"num_key_value_heads": 2 if grouped else 4, "bos_token_id": 1, "eos_token_id": 2}
    table["pixel"] |= {"channels": 32}
    table["pixel"]["arguments"] |= {"image_px": 80, "dim": 32, "depth": 3, "heads": 4, "window": 3, "global_blocks": [1]}
    table["spam"] |= {"heads": 4}
    table["agmd"] |= {"heads": 4, "mlp_dim": 48}
    return table


def random_model(config: ModelConfig, device: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> AgVas:
    """Made on ``device`` in ``dtype``, so that it never takes more there than it has to; norms and tables stay float32."""
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = build_model(config, device=device)
    finally:
        torch.set_default_dtype(before)
    for part in model.modules():
        if isinstance(part, DensePosition):
            part.frequencies = part.frequencies.float()
    with torch.device(device):
        model.semantic_encoder.normalize = Normalize(config.semantic_view.mean, config.semantic_view.std)
        model.pixel_encoder.normalize = Normalize(config.pixel_view.mean, config.pixel_view.std)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():  # what starts at zero would leave a part of the work without effect
        for parameter in model.parameters():
            if parameter.numel() and not parameter.any():
                parameter.normal_(0, 0.02, generator=generator)
    model.refiner.float()
    model.agmd.float()
    return model.eval().requires_grad_(False)


def views(config: ModelConfig, batch: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, uint8 [B, Hs, Ws, 3] and [B, H, W, 3], on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    sides = config.semantic_view.size_px, config.pixel_view.size_px
    semantic, pixel = (torch.randint(0, 256, (batch, side, side, 3), generator=generator, dtype=torch.uint8) for side in sides)
    return semantic, pixel


def words(config: ModelConfig) -> tuple[list[int], list[int], list[int], int]:
    """Words before the image, those after it with the answer up to its last anchor, where the anchors are in them, and where the answer is
    asked for. Their number is that of the direct instruction in the chat format of LLaVA-OneVision; which words they are is chance."""
    generator = torch.Generator().manual_seed(1)
    special = {*config.lmm.anchor_ids, config.lmm.image_token_id, config.lmm.pad_token_id, config.lmm.end_token_id}
    drawn = torch.randint(0, config.lmm.vocab_size, (4 * (BEFORE + ASKED + ANSWER),), generator=generator).tolist()
    plain = [word for word in drawn if word not in special]
    before, asked, answer = plain[:BEFORE], plain[BEFORE : BEFORE + ASKED], plain[-(ANSWER - 3) :]
    after = [*asked, *answer, *config.lmm.anchor_ids]
    return before, after, [len(after) - 3, len(after) - 2, len(after) - 1], ASKED - 1


def length(config: ModelConfig) -> int:
    """Positions that the language model reads."""
    return BEFORE + visual_tokens(config) + ASKED + ANSWER
