"""Checkpoints of SAM's image encoder, as segment-anything and as transformers name their tensors."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from agvas_core.contract.errors import UsageError
from agvas_core.model.sam_encoder import SAM_SIZES, SamImageEncoder

__all__ = ["load_sam_encoder_state", "sam_state_from_transformers"]

_FROM_TRANSFORMERS: Final = (
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"layers\.(\d+)\.layer_norm([12])\.", r"blocks.\1.norm\2."),
    (r"layers\.", "blocks."),
    (r"neck\.conv1\.", "neck.0."),
    (r"neck\.layer_norm1\.", "neck.1."),
    (r"neck\.conv2\.", "neck.2."),
    (r"neck\.layer_norm2\.", "neck.3."),
)


def sam_state_from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for the ``vision_encoder.*`` entries of transformers' ``SamModel``; its other parts are left out."""
    renamed = {}
    for key, value in _part(state, "vision_encoder.").items():
        for pattern, ours in _FROM_TRANSFORMERS:
            key, replaced = re.subn(f"^{pattern}", ours, key)
            if replaced:
                break
        renamed[key] = value
    return renamed


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
    if any(key.startswith("vision_encoder.") for key in state):
        found = sam_state_from_transformers(state)
    else:
        found = _part(state, "image_encoder.") or dict(state)
    wanted = encoder.state_dict()
    _refuse_foreign_keys(found, wanted)
    if resize:
        found = {key: _resized(key, value, wanted[key].shape) for key, value in found.items()}
    for key, value in found.items():
        if value.shape != (shape := wanted[key].shape):
            can_resize = _is_position(key) and value.shape[-1] == shape[-1]
            remedy = (
                "pass resize=True" if can_resize else f"build the encoder with the checkpoint's size ({', '.join(SAM_SIZES)})"
            )
            raise UsageError(f"{key} is {list(value.shape)} in the checkpoint, {list(shape)} in the encoder: {remedy}")
    encoder.load_state_dict(found, assign=encoder.pos_embed.is_meta)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _refuse_foreign_keys(found: Iterable[str], wanted: Iterable[str]) -> None:
    missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or unknown:
        raise UsageError(
            f"not this encoder's checkpoint: it lacks {_named(missing, unknown)} and has {_named(unknown, missing)} too many: "
            f"give a SAM checkpoint of the encoder's size ({', '.join(SAM_SIZES)}), whole or its image encoder alone"
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
