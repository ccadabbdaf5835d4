"""What a published model's own configuration says, in place of what a configuration leaves out; and where the two contradict each other."""

import dataclasses
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedConfig

from agvas_core.contract.errors import UsageError
from agvas_core.contract.prompts import IMAGE_TOKEN
from agvas_core.contract.validation import did_you_mean
from agvas_core.model.build import TEXT_CONFIGS, VISION_CONFIGS
from agvas_core.model.config import LmmConfig, ModelConfig, PixelConfig, parse_config
from agvas_core.model.encoders.vit import VIT_FAMILIES
from agvas_core.model.weights.published import read_published_config, read_published_tokenizer, read_weights
from agvas_core.model.weights.sam_checkpoint import sam_arguments
from agvas_core.model.weights.vocabulary import add_anchors, id_of, rows_for

__all__ = ["check_lmm", "check_vit", "resolve_config"]

_FAMILIES: Final = {"llava_onevision": "llava-onevision", "llava": "llava-1.5"}
_CHATS: Final = {"llava-onevision": "qwen", "llava-1.5": "vicuna"}
_PAD_AND_END: Final = {"qwen": ("<|endoftext|>", "<|im_end|>"), "vicuna": ("<pad>", "</s>")}
_SIZES: Final = (  # always written out: others read them
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "image_size",
    "patch_size",
    "max_position_embeddings",
    "tie_word_embeddings",
)
# What changes an answer without changing a shape, or a shape.
_COMPARED: Final = (
    *_SIZES[:-2],
    *("mlp_ratio", "hidden_act", "layer_norm_eps", "rms_norm_eps", "rope_parameters", "rope_theta", "tie_word_embeddings"),
    *("use_swiglu_ffn", "use_gated_mlp", "num_register_tokens", "qkv_bias", "query_bias", "key_bias", "value_bias"),
)
_DERIVED: Final = {"vocab_size", "pad_token_id", "layer_types"}  # the first two stand in [lmm]


def resolve_config(table: dict[str, Any]) -> ModelConfig:
    """The ``model`` table of a preset as a configuration; what it leaves out of a part that names a ``pretrained`` model is that
    model's own. A table that leaves nothing out asks neither disk nor hub.

    Raises:
        UsageError: a wrong key, no such model, or one of another family.
        SetupError: the hub cannot be reached, or files are damaged.
    """
    table = dict(table)
    lmm, pixel, view = (table.get(key) for key in ("lmm", "pixel", "pixel_view"))
    if isinstance(lmm, dict) and isinstance(lmm.get("pretrained"), str):
        table["lmm"] = _complete_lmm(lmm)
    if isinstance(pixel, dict) and isinstance(pixel.get("pretrained"), str):
        table["pixel"] = _complete_pixel(pixel, view.get("size_px") if isinstance(view, dict) else None)
    return parse_config(table)


def check_lmm(config: LmmConfig) -> None:
    """Raises UsageError where the published model is not the one that the configuration writes out."""
    assert config.pretrained is not None
    raw = read_published_config(config.pretrained)
    if (family := _family_of(raw, config.pretrained)) != config.family:
        raise UsageError(f"lmm.family is {config.family}, {config.pretrained} is a {family}: correct it, or leave it out")
    for part, configs in (("vision", VISION_CONFIGS), ("text", TEXT_CONFIGS)):
        theirs = configs[family](**raw.get(f"{part}_config", {}))
        _agree(configs[family](**getattr(config, part)), theirs, f"lmm.{part}", config.pretrained)
    layer = -2 if family == "llava-1.5" else -1
    if (published := raw.get("vision_feature_layer", layer)) != layer:
        raise UsageError(
            f"{config.pretrained} reads layer {published} of its vision tower; AG-VAS reads {layer} of a {family}: take another"
        )


def check_vit(config: PixelConfig) -> None:
    """As :func:`check_lmm`, for a pixel encoder that transformers has. (SAM's sizes are those of its tensors.)"""
    assert config.pretrained is not None
    family = VIT_FAMILIES[config.kind]
    raw = read_published_config(config.pretrained)
    _agree(
        family.config(**config.arguments), family.config(**raw.get("vision_config", raw)), "pixel.arguments", config.pretrained
    )


def _agree(ours: Any, theirs: Any, where: str, name: str) -> None:
    for key in _COMPARED:
        if (one := getattr(ours, key, None)) != (other := getattr(theirs, key, None)):
            raise UsageError(f"{where}.{key} is {one}, {name} has {other}: correct it, or leave out what {name} says itself")


def _complete_lmm(part: dict[str, Any]) -> dict[str, Any]:
    needed = [key for key, field in LmmConfig.model_fields.items() if field.is_required()]
    if all(key in part for key in needed):
        return part
    name = part["pretrained"]
    raw = read_published_config(name)
    family = part.get("family", _family_of(raw, name))
    chat = part.get("chat", _CHATS[family])
    text = TEXT_CONFIGS[family](**raw.get("text_config", {}))
    tokenizer = read_published_tokenizer(name)
    anchors = add_anchors(tokenizer)
    pad, end = (id_of(tokenizer, token, name) for token in _PAD_AND_END[chat])
    own = {
        "family": family,
        "vision": _written_out(VISION_CONFIGS[family](**raw.get("vision_config", {})), raw.get("vision_config", {})),
        "text": _written_out(text, {}),
        "chat": chat,
        "vocab_size": rows_for(anchors, text.vocab_size),
        "anchor_ids": anchors,
        "image_token_id": id_of(tokenizer, IMAGE_TOKEN, name),
        "pad_token_id": pad,
        "end_token_id": end,
    }
    return own | part


def _complete_pixel(part: dict[str, Any], view_px: int | None) -> dict[str, Any]:
    if "kind" in part and "arguments" in part:
        return part
    name = part["pretrained"]
    is_file = Path(name).is_file()  # of segment-anything, which has no configuration beside its tensors
    raw = {} if is_file else read_published_config(name)
    model_type = "sam" if is_file else raw.get("model_type")
    if model_type == "sam":
        own = sam_arguments(read_weights(name))
        own["image_px"] = view_px or own["image_px"]  # its positions are interpolated to whatever the view is
        return {"kind": "sam", **part, "arguments": own | part.get("arguments", {})}
    kind = next((kind for kind, family in VIT_FAMILIES.items() if model_type in family.model_types), None)
    if kind is None:
        known = [model_type for family in VIT_FAMILIES.values() for model_type in family.model_types]
        raise UsageError(
            f"{name} is a {model_type}; a pixel encoder is sam, {', '.join(known)}{did_you_mean(str(model_type), known)}: take one of these"
        )
    raw = raw.get("vision_config", raw)
    arguments = _written_out(VIT_FAMILIES[kind].config(**raw), raw)
    if kind == "siglip":
        arguments["vision_use_head"] = False  # it pools, and no one reads what it pools
    return {"kind": kind, **part, "arguments": arguments | part.get("arguments", {})}


def _family_of(raw: dict[str, Any], name: str) -> str:
    model_type = str(raw.get("model_type"))
    if model_type not in _FAMILIES:
        raise UsageError(f"{name} is a {model_type}; AG-VAS takes {' and '.join(_FAMILIES)}{did_you_mean(model_type, _FAMILIES)}")
    parts = {"vision_config": "siglip_vision_model clip_vision_model", "text_config": "qwen2 llama"}
    for part, known in parts.items():
        wanted = known.split()[0 if model_type == "llava_onevision" else 1]
        if (found := raw.get(part, {}).get("model_type", wanted)) != wanted:
            raise UsageError(f"{name} has a {part} of {found}; AG-VAS takes a {model_type} with {wanted}: take another model")
    return _FAMILIES[model_type]


def _written_out(config: Any, raw: dict[str, Any]) -> dict[str, Any]:
    """What differs from the defaults of transformers, and the sizes, as keywords."""
    own = {field.name for field in dataclasses.fields(config)} - {field.name for field in dataclasses.fields(PreTrainedConfig)}
    default = type(config)()
    written = {
        key: value
        for key in sorted(own - _DERIVED)
        if not key.startswith("_") and ((value := getattr(config, key)) != getattr(default, key) or key in _SIZES)
    }
    return written | {key: raw[key] for key in ("vision_use_head",) if key in raw}
