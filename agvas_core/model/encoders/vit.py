"""Pixel encoders of table 6 that transformers has: DINOv2, DINOv3, CLIP and SigLIP, as maps of features.

The paper does not say which of their features it takes, nor at which size. Ours: the last layer's after its norm, without class and
register tokens; of CLIP, whose last norm is for the pooled token alone, the last layer's but one, as LLaVA takes them.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from agvas_core.contract.errors import UsageError

__all__ = ["VIT_FAMILIES", "VitEncoder", "VitFamily"]


class VitFamily(NamedTuple):
    """How one family is built and read. Its size comes from its configuration."""

    config: type[Any]
    model: type[Any]
    model_types: tuple[str, ...]
    """``model_type`` of the published configurations, whole models and vision towers."""
    class_tokens: int
    options: Mapping[str, bool]
    """Of the forward pass: those whose positions are a table interpolate it to other sizes only when asked."""
    layer: int = -1


_INTERPOLATE: Final = MappingProxyType({"interpolate_pos_encoding": True})
_NO_OPTIONS: Final[Mapping[str, bool]] = MappingProxyType({})

VIT_FAMILIES: Final[dict[str, VitFamily]] = {
    "dinov2": VitFamily(Dinov2Config, Dinov2Model, ("dinov2",), 1, _NO_OPTIONS),
    "dinov3": VitFamily(DINOv3ViTConfig, DINOv3ViTModel, ("dinov3_vit",), 1, _NO_OPTIONS),
    "clip": VitFamily(CLIPVisionConfig, CLIPVisionModel, ("clip", "clip_vision_model"), 1, _INTERPOLATE, layer=-2),
    "siglip": VitFamily(SiglipVisionConfig, SiglipVisionModel, ("siglip", "siglip_vision_model"), 0, _INTERPOLATE),
}


class VitEncoder(nn.Module):
    """Normalised pixels [B, 3, H, W] -> features [B, width, H / patch_px, W / patch_px]; H and W are multiples of ``patch_px``.

    Positions are interpolated where the model was trained at another size, in the way of its family (DINOv3 has none to interpolate).

    Args:
        model: of the family's ``model`` class.
    """

    def __init__(self, model: Any, family: VitFamily) -> None:
        super().__init__()
        self.model = model
        self.width: int = model.config.hidden_size
        self.patch_px: int = model.config.patch_size
        self.options, self.layer = dict(family.options), family.layer
        self.skipped: int = family.class_tokens + getattr(model.config, "num_register_tokens", 0)

    def forward(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        if height % self.patch_px or width % self.patch_px:
            nearest = [max(1, round(side / self.patch_px)) * self.patch_px for side in (height, width)]
            raise UsageError(
                f"the pixel view is {height} x {width} px; this encoder has patches of {self.patch_px}: set pixel_view.size_px (or "
                f"multiple_px) so that it becomes {nearest[0]} x {nearest[1]}"
            )
        output = self.model(pixels, output_hidden_states=self.layer != -1, **self.options)
        tokens: Tensor = output.last_hidden_state if self.layer == -1 else output.hidden_states[self.layer]
        patches = tokens[:, self.skipped :].transpose(1, 2)  # [B, width, hw]
        return patches.reshape(pixels.shape[0], self.width, height // self.patch_px, width // self.patch_px)
