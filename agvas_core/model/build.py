"""ModelConfig -> AgVas. The only place that turns a configuration into modules."""

import dataclasses
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from agvas_core.contract.errors import UsageError
from agvas_core.contract.prompts import QWEN_CHAT, VICUNA_CHAT, ChatFormat
from agvas_core.model.agmd import Agmd
from agvas_core.model.agvas import AgVas
from agvas_core.model.config import LmmConfig, ModelConfig, PixelConfig
from agvas_core.model.encoders import LinearP, Normalize, PixelEncoder, SemanticEncoder
from agvas_core.model.lmm import Lmm
from agvas_core.model.nano_encoder import NanoEncoder
from agvas_core.model.refiner import TokenRefiner
from agvas_core.model.sam_encoder import SamImageEncoder
from agvas_core.model.spam import Spam
from agvas_core.model.validation import did_you_mean

__all__ = ["build_model", "chat_format", "semantic_tokens"]


def build_model(config: ModelConfig, device: str = "cpu") -> AgVas:
    """An untrained model with random weights; ``device="meta"`` builds shapes without memory."""
    with torch.device(device):
        llava = build_llava(config.lmm)
        width: int = llava.config.text_config.hidden_size
        tower, projector = llava.model.vision_tower, llava.model.multi_modal_projector
        is_clip = config.lmm.family == "llava-1.5"
        return AgVas(
            semantic_encoder=SemanticEncoder(
                normalize=Normalize(config.semantic_view.mean, config.semantic_view.std),
                tower=tower,
                projector=projector,
                feature_layer=-2 if is_clip else -1,
                drop_class_token=is_clip,
            ),
            pixel_encoder=PixelEncoder(
                normalize=Normalize(config.pixel_view.mean, config.pixel_view.std), backbone=build_pixel_backbone(config.pixel)
            ),
            linear_p=LinearP(config.pixel.channels, width),
            spam=Spam(width, config.spam.heads, config.spam.bottleneck),
            lmm=Lmm(
                language_model=llava.model.language_model,
                head=llava.lm_head,
                image_token_id=config.lmm.image_token_id,
                anchor_ids=config.lmm.anchor_ids,
            ),
            refiner=TokenRefiner(width, config.pixel.channels),
            agmd=Agmd(config.pixel.channels, **config.agmd.model_dump()),
        )


def build_llava(config: LmmConfig) -> Any:
    """The transformers model that tower, projector, language model and head are taken from."""
    is_onevision = config.family == "llava-onevision"
    # transformers swallows keys that it does not know, and a mistyped size becomes its default.
    # (SigLIP reads vision_use_head without declaring it; the two keys of the text stand in [lmm].)
    only_known(
        "lmm.vision", config.vision, keys_of(SiglipVisionConfig if is_onevision else CLIPVisionConfig) | {"vision_use_head"}
    )
    only_known("lmm.text", config.text, keys_of(Qwen2Config if is_onevision else LlamaConfig) - {"vocab_size", "pad_token_id"})
    text: dict[str, Any] = {**config.text, "vocab_size": config.vocab_size, "pad_token_id": config.pad_token_id}
    if is_onevision:
        return LlavaOnevisionForConditionalGeneration(
            LlavaOnevisionConfig(
                vision_config=SiglipVisionConfig(**config.vision),
                text_config=Qwen2Config(**text),
                image_token_index=config.image_token_id,
                tie_word_embeddings=text.get("tie_word_embeddings", False),
            )
        )
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**config.vision),
            text_config=LlamaConfig(**text),
            image_token_index=config.image_token_id,
            tie_word_embeddings=False,
        )
    )


def build_pixel_backbone(config: PixelConfig) -> nn.Module:
    """The pixel encoder without its normalisation."""
    encoder: type[NanoEncoder] | type[SamImageEncoder] = NanoEncoder if config.kind == "nano" else SamImageEncoder
    only_known("pixel.arguments", config.arguments, inspect.signature(encoder).parameters.keys() - {"out_dim"})
    return encoder(out_dim=config.channels, **config.arguments)


def keys_of(config_type: type[Any]) -> set[str]:
    """What a transformers configuration declares."""
    return {field.name for field in dataclasses.fields(config_type)}


def only_known(where: str, given: dict[str, Any], known: Iterable[str]) -> None:
    """Refuses keys that would be ignored."""
    for key in given.keys() - set(known):
        raise UsageError(f"model configuration: {where}.{key}: there is no such key{did_you_mean(key, known)}")


def chat_format(config: LmmConfig) -> ChatFormat:
    """The text around image, instruction and answer."""
    return {"qwen": QWEN_CHAT, "vicuna": VICUNA_CHAT}[config.chat]


def semantic_tokens(config: ModelConfig) -> int:
    """N: tokens of f_s for one view."""
    per_side: int = config.semantic_view.size_px // config.lmm.vision["patch_size"]
    return per_side * per_side
