"""Checkpoints of SAM, as segment-anything and as transformers name their tensors: image encoder and mask decoder."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agvas_core.contract.errors import UsageError
from agvas_core.model.agmd import Agmd
from agvas_core.model.encoders.sam import SAM_SIZES, SamImageEncoder
from agvas_core.model.sam_decoder import SamMaskDecoder

__all__ = [
    "load_sam_decoder_state",
    "load_sam_encoder_state",
    "sam_arguments",
    "sam_state_from_transformers",
    "start_agmd_from_sam",
]

_FROM_TRANSFORMERS: Final = (
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"layers\.(\d+)\.layer_norm([12])\.", r"blocks.\1.norm\2."),
    (r"layers\.", "blocks."),
    (r"neck\.conv1\.", "neck.0."),
    (r"neck\.layer_norm1\.", "neck.1."),
    (r"neck\.conv2\.", "neck.2."),
    (r"neck\.layer_norm2\.", "neck.3."),
)
_DECODER_FROM_TRANSFORMERS: Final = (
    (r"transformer\.(.*)layer_norm_final_attn\.", r"transformer.\1norm_final_attn."),
    (r"transformer\.(.*)layer_norm([1-4])\.", r"transformer.\1norm\2."),
    (r"upscale_conv1\.", "output_upscaling.0."),
    (r"upscale_layer_norm\.", "output_upscaling.1."),
    (r"upscale_conv2\.", "output_upscaling.3."),
    (r"output_hypernetworks_mlps\.0\.proj_in\.", "output_hypernetworks_mlps.0.layers.0."),
    (r"output_hypernetworks_mlps\.0\.layers\.0\.", "output_hypernetworks_mlps.0.layers.1."),
    (r"output_hypernetworks_mlps\.0\.proj_out\.", "output_hypernetworks_mlps.0.layers.2."),
)
# Of the decoder, what the single mask of one prompt does not need.
_NOT_READ: Final = re.compile(r"iou_prediction_head\.|output_hypernetworks_mlps\.[1-9]")
_PROMPT: Final = {  # in segment-anything and in transformers
    "prompt_encoder.no_mask_embed.weight": "no_mask_embed.weight",
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": "position.frequencies",
    "shared_image_embedding.positional_embedding": "position.frequencies",
}


def sam_state_from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for the ``vision_encoder.*`` entries of transformers' ``SamModel``; its other parts are left out."""
    renamed = {}
    for key, value in _part(state, "vision_encoder.").items():
        renamed[_renamed(key, _FROM_TRANSFORMERS)] = value
    return renamed


def _renamed(key: str, names: Iterable[tuple[str, str]]) -> str:
    for pattern, ours in names:
        key, replaced = re.subn(f"^{pattern}", ours, key)
        if replaced:
            break
    return key


def sam_arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of :class:`SamImageEncoder`, except ``out_dim``, that a checkpoint's tensors were made with.

    Raises:
        UsageError: not a checkpoint of SAM.
    """
    found = _encoder_part(state)
    needed = ["pos_embed", "patch_embed.proj.weight", "blocks.0.attn.rel_pos_h", "blocks.0.mlp.lin1.weight", "neck.0.weight"]
    if missing := [key for key in needed if key not in found]:
        raise UsageError(
            f"not a SAM checkpoint: it lacks {_named(missing, list(found))}: give one of SAM, whole or its image encoder alone"
        )
    grid, dim = found["pos_embed"].shape[1], found["pos_embed"].shape[-1]
    patch_px = found["patch_embed.proj.weight"].shape[-1]
    depth = 1 + max(int(key.split(".")[1]) for key in found if key.startswith("blocks."))
    sides = [(found[f"blocks.{index}.attn.rel_pos_h"].shape[0] + 1) // 2 for index in range(depth)]
    return {
        "image_px": grid * patch_px,
        "patch_px": patch_px,
        "dim": dim,
        "depth": depth,
        "heads": dim // found["blocks.0.attn.rel_pos_h"].shape[1],
        "window": min(sides),
        "global_blocks": [index for index, side in enumerate(sides) if side == grid],
        "mlp_ratio": found["blocks.0.mlp.lin1.weight"].shape[0] / dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in found,
    }


def load_sam_decoder_state(decoder: SamMaskDecoder, state: Mapping[str, Tensor]) -> None:
    """Loads the mask decoder of a whole SAM checkpoint, of segment-anything or of transformers, and the two embeddings of its prompt
    encoder that a prompt without points, boxes and masks needs.

    Raises:
        UsageError: keys are missing, unknown, or of another shape.
    """
    _load(
        decoder,
        _decoder_part(state),
        assign=False,
        remedy="build the decoder with the checkpoint's size (SAM's: 256 channels, 8 heads, 2 layers)",
    )


def start_agmd_from_sam(agmd: Agmd, state: Mapping[str, Tensor]) -> None:
    """Gives AGMD what it has in common with SAM's mask decoder: blocks, positions, upscaling, and for each anchor the MLP of the single
    mask. Queries and biases stay as they are.

    Args:
        state: of a whole SAM checkpoint, of segment-anything or of transformers.

    Raises:
        UsageError: AGMD is made otherwise than SAM's decoder.
    """
    decoder = _decoder_part(state)
    names = [
        (r"transformer\.(.*)", r"bi_attn.\1"),
        (r"output_upscaling\.1\.(.*)", r"upscale.1.norm.\1"),
        (r"output_upscaling\.(.*)", r"upscale.\1"),
    ]
    found = {}
    for key, value in decoder.items():
        if (mlp := re.match(r"output_hypernetworks_mlps\.0\.layers\.(\d)\.(.*)", key)) is not None:
            for anchor in range(len(agmd.anchors)):
                found[f"to_mask.{anchor}.{2 * int(mlp[1])}.{mlp[2]}"] = value
        elif (renamed := _renamed(key, names)) != key:
            found[renamed] = value
    found["position.frequencies"] = decoder["position.frequencies"]
    wanted = agmd.state_dict()
    for key, value in found.items():
        if key not in wanted or wanted[key].shape != value.shape:
            raise UsageError(
                f"agmd.start = \"sam\": AGMD's {key} is {list(wanted[key].shape) if key in wanted else 'absent'}, SAM's {list(value.shape)}: "
                "give AGMD SAM's size (256 channels, 8 heads, 2 layers, mlp_dim 2048, upscale 4), or leave start out"
            )
    agmd.load_state_dict(wanted | {key: value.to(wanted[key].dtype) for key, value in found.items()})


def load_sam_encoder_state(encoder: SamImageEncoder, state: Mapping[str, Tensor], *, resize: bool = False) -> None:
    """Loads a checkpoint's tensors into the encoder.

    Args:
        encoder: may be on the meta device; it then takes over the tensors themselves, with their dtype.
        state: of segment-anything (whole, or the part under ``image_encoder.``) or of transformers' ``SamModel``, as read by
            ``torch.load(path, weights_only=True)`` or safetensors.
        resize: interpolate the positions to this encoder's ``image_px`` (relative ones linearly, as SAM itself; absolute ones
            bicubically, as is usual for a ViT); without it another ``image_px`` is an error.

    Raises:
        UsageError: keys are missing, unknown, or of another shape; the message names them and their nearest.
    """
    found, wanted = _encoder_part(state), encoder.state_dict()
    if resize and found.keys() == wanted.keys():
        found = {key: _resized(key, value, wanted[key].shape) for key, value in found.items()}
    _load(
        encoder,
        found,
        assign=encoder.pos_embed.is_meta,
        remedy=f"build the encoder with the checkpoint's size ({', '.join(SAM_SIZES)})",
    )


def _load(module: nn.Module, found: Mapping[str, Tensor], *, assign: bool, remedy: str) -> None:
    wanted = module.state_dict()
    _refuse_foreign_keys(found, wanted)
    for key, value in found.items():
        if value.shape != (shape := wanted[key].shape):
            can_resize = _is_position(key) and value.shape[-1] == shape[-1]
            raise UsageError(
                f"{key} is {list(value.shape)} in the checkpoint, {list(shape)} in the model: {'pass resize=True' if can_resize else remedy}"
            )
    module.load_state_dict(found, assign=assign)


def _decoder_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mask decoder's tensors by segment-anything's names, and those of the prompt encoder that it needs."""
    found = _part(state, "mask_decoder.")
    if "upscale_conv1.weight" in found:  # both call a layer of the MLP layers.0, and mean another
        found = {_renamed(key, _DECODER_FROM_TRANSFORMERS): value for key, value in found.items()}
    found = {key: value for key, value in found.items() if not _NOT_READ.match(key)}
    return found | {ours: state[theirs] for theirs, ours in _PROMPT.items() if theirs in state}


def _encoder_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder's tensors by our names."""
    if any(key.startswith("vision_encoder.") for key in state):
        return sam_state_from_transformers(state)
    return _part(state, "image_encoder.") or dict(state)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _refuse_foreign_keys(found: Iterable[str], wanted: Iterable[str]) -> None:
    missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or unknown:
        raise UsageError(
            f"not this model's checkpoint: it lacks {_named(missing, unknown)} and has {_named(unknown, missing)} too many: "
            f"give a SAM checkpoint of its size ({', '.join(SAM_SIZES)}), whole or its image encoder alone"
        )


def _named(keys: list[str], others: list[str], limit: int = 3) -> str:
    """The first few keys, each with the nearest on the other side."""
    if not keys:
        return "nothing"
    near = [(key, get_close_matches(key, others, n=1, cutoff=0.5)) for key in keys[:limit]]
    text = ", ".join(f"{key} (nearest: {match[0]})" if match else key for key, match in near)
    return text + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def _is_position(key: str) -> bool:
    return key == "pos_embed" or ".rel_pos_" in key


def _resized(key: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Positions of the same width interpolated to ``shape``; everything else as it is."""
    if not _is_position(key) or value.shape == shape or value.shape[-1] != shape[-1]:
        return value
    if key == "pos_embed":
        channels_first = value.permute(0, 3, 1, 2).float()
        resized = F.interpolate(channels_first, size=tuple(shape[1:3]), mode="bicubic").permute(0, 2, 3, 1)
    else:
        resized = F.interpolate(value.T[None].float(), size=shape[0], mode="linear")[0].T
    return resized.to(value.dtype).contiguous()
