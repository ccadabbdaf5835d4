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
from agvas_core.contract.prompts import ANCHOR_TOKENS, QWEN_CHAT, VICUNA_CHAT, Anchor, ChatFormat
from agvas_core.contract.validation import did_you_mean
from agvas_core.model.agmd import Agmd, TokenRefiner
from agvas_core.model.agvas import AgVas
from agvas_core.model.config import LmmConfig, ModelConfig, PixelConfig
from agvas_core.model.encoders.efficientnet_lite import EfficientNetLite, load_trunk
from agvas_core.model.encoders.encoders import LinearP, Normalize, PixelEncoder, SemanticEncoder
from agvas_core.model.encoders.lite_pyramid import BLOCKS, LitePyramid
from agvas_core.model.encoders.sam import SamImageEncoder
from agvas_core.model.encoders.vit import VIT_FAMILIES, VitEncoder
from agvas_core.model.lmm import Lmm
from agvas_core.model.sam_decoder import SamMaskDecoder
from agvas_core.model.spam import Spam

__all__ = [
    "TEXT_CONFIGS",
    "VISION_CONFIGS",
    "assemble",
    "build_llava",
    "build_model",
    "build_pixel_backbone",
    "chat_format",
    "named_anchors",
    "semantic_tokens",
    "visual_tokens",
]

VISION_CONFIGS: dict[str, type[Any]] = {"llava-onevision": SiglipVisionConfig, "llava-1.5": CLIPVisionConfig}
TEXT_CONFIGS: dict[str, type[Any]] = {"llava-onevision": Qwen2Config, "llava-1.5": LlamaConfig}


def build_model(config: ModelConfig, device: str = "cpu") -> AgVas:
    """A model with random weights, whatever ``config`` names; ``device="meta"`` builds shapes without memory."""
    with torch.device(device):
        return assemble(config, build_llava(config.lmm), build_pixel_backbone(config.pixel))


def assemble(config: ModelConfig, llava: Any, backbone: nn.Module) -> AgVas:
    """The parts of a LLaVA and a pixel encoder, joined by the paper's own, which are new.

    Args:
        llava: transformers' model, as ``build_llava`` makes it.
        backbone: as ``build_pixel_backbone`` makes it.
    """
    width: int = llava.config.text_config.hidden_size
    channels, is_clip = config.pixel.channels, config.lmm.family == "llava-1.5"
    # A backbone that has C channels by itself does not say its width.
    adapted = getattr(backbone, "width", channels if config.pixel.linear else None)
    return AgVas(
        semantic_encoder=SemanticEncoder(
            normalize=Normalize(config.semantic_view.mean, config.semantic_view.std),
            tower=llava.model.vision_tower,
            projector=llava.model.multi_modal_projector,
            feature_layer=-2 if is_clip else -1,
            drop_class_token=is_clip,
            norm_out=width if config.lmm.norm_visual else None,
            tiles=config.lmm.tiles,
            newline=newline_of(config, llava),
        ),
        pixel_encoder=PixelEncoder(
            normalize=Normalize(config.pixel_view.mean, config.pixel_view.std),
            backbone=backbone,
            adapter=None if adapted is None else nn.Conv2d(adapted, channels, 1),
        ),
        linear_p=None if config.spam is None else LinearP(channels, width),
        spam=None if config.spam is None else Spam(width, norm_out=config.lmm.norm_visual, **config.spam.model_dump()),
        lmm=Lmm(
            language_model=llava.model.language_model,
            head=llava.lm_head,
            image_token_id=config.lmm.image_token_id,
            anchor_ids=anchor_ids_read(config),
        ),
        refiner=TokenRefiner(width, channels),
        agmd=build_decoder(config),
    )


def build_llava(config: LmmConfig) -> Any:
    """The transformers model that tower, projector, language model and head are taken from."""
    is_onevision = config.family == "llava-onevision"
    vision_config, text_config = VISION_CONFIGS[config.family], TEXT_CONFIGS[config.family]
    # transformers swallows keys that it does not know, and a mistyped size becomes its default.
    # (SigLIP reads vision_use_head without declaring it; the two keys of the text stand in [lmm].)
    only_known("lmm.vision", config.vision, keys_of(vision_config) | {"vision_use_head"})
    only_known("lmm.text", config.text, keys_of(text_config) - {"vocab_size", "pad_token_id"})
    text: dict[str, Any] = {**config.text, "vocab_size": config.vocab_size, "pad_token_id": config.pad_token_id}
    if is_onevision:
        return LlavaOnevisionForConditionalGeneration(
            LlavaOnevisionConfig(
                vision_config=vision_config(**config.vision),
                text_config=text_config(**text),
                image_token_index=config.image_token_id,
                tie_word_embeddings=text.get("tie_word_embeddings", False),
            )
        )
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision_config(**config.vision),
            text_config=text_config(**text),
            image_token_index=config.image_token_id,
            tie_word_embeddings=False,
        )
    )


def build_pixel_backbone(config: PixelConfig) -> nn.Module:
    """The pixel encoder without its normalisation and its adapter."""
    if (family := VIT_FAMILIES.get(config.kind)) is not None:
        only_known("pixel.arguments", config.arguments, keys_of(family.config) | {"vision_use_head"})
        return VitEncoder(family.model(family.config(**config.arguments)), family)
    encoder = LitePyramid if config.kind == "lite" else SamImageEncoder
    known = inspect.signature(encoder).parameters.keys() - {"trunk", "out_dim"}
    only_known("pixel.arguments", config.arguments, known | {"pretrained"} if config.kind == "lite" else known)
    if config.kind != "lite":
        return SamImageEncoder(out_dim=config.channels, **config.arguments)
    arguments = dict(config.arguments)
    if not arguments.pop("pretrained", True):
        trunk = EfficientNetLite(0, BLOCKS[-1])  # random, its norms learn
    elif torch.empty(0).device.type == "meta":
        trunk = EfficientNetLite(0, BLOCKS[-1], folded=True)  # shapes alone: no file is read
    else:
        trunk = load_trunk()
    return LitePyramid(trunk, out_dim=config.channels, **arguments)


def build_decoder(config: ModelConfig) -> Agmd | SamMaskDecoder:
    """AGMD, or what takes its place."""
    numbers = config.agmd
    if config.decoder == "sam":
        return SamMaskDecoder(config.pixel.channels, numbers.depth, numbers.heads, numbers.mlp_dim)
    anchors = [Anchor[name] for name in config.anchors]
    return Agmd(config.pixel.channels, **numbers.model_dump(exclude={"start"}), anchors=anchors)


def newline_of(config: ModelConfig, llava: Any) -> nn.Parameter | None:
    """The embedding that ends a row of tiles, where there are any."""
    view_px, tower_px = config.semantic_view.size_px, llava.config.vision_config.image_size
    if view_px != config.lmm.tiles * tower_px:
        raise UsageError(
            f"semantic_view.size_px is {view_px}; {config.lmm.tiles} x {config.lmm.tiles} tiles of the tower's {tower_px} px need "
            f"{config.lmm.tiles * tower_px}"
        )
    if config.lmm.tiles == 1:
        return None
    if config.lmm.family != "llava-onevision":
        raise UsageError(
            f"lmm.tiles is {config.lmm.tiles}; {config.lmm.family} was not trained with tiles and has no end of line: set tiles = 1"
        )
    newline: nn.Parameter = llava.model.image_newline
    return newline


def anchor_ids_read(config: ModelConfig) -> tuple[int, int, int]:
    """Which tokens' states are read as NOR, ANO and SEG. For an anchor that the model lacks, the state of one that it has: it has to
    be somewhere, and no one looks at it."""
    first = Anchor[config.anchors[0]]
    nor, ano, seg = (config.lmm.anchor_ids[anchor if anchor.name in config.anchors else first] for anchor in Anchor)
    return nor, ano, seg


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


def named_anchors(config: ModelConfig, anchors: Iterable[Anchor] = tuple(Anchor)) -> str:
    """The anchors as this model's answers write them: ``[NOR][ANO][SEG]``, fewer in an ablation, or where only some are asked for."""
    asked = set(anchors)
    return "".join(ANCHOR_TOKENS[Anchor[name]] for name in config.anchors if Anchor[name] in asked)


def semantic_tokens(config: ModelConfig) -> int:
    """N: tokens of f_s for one image."""
    tiles = config.lmm.tiles
    per_side: int = config.semantic_view.size_px // tiles // config.lmm.vision["patch_size"]
    return per_side**2 + (tiles * per_side * (tiles * per_side + 1) if tiles > 1 else 0)


def visual_tokens(config: ModelConfig) -> int:
    """Image tokens in each row of ids: those of f_s, and of f_align where there is SPAM."""
    return semantic_tokens(config) * (1 if config.spam is None else 2)
