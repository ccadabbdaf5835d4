"""Semantic and pixel encoding (paper 3.1, eq. 1): f_s = Linear_s(F_s(x)), f_p = Linear_p(F_p(x)).

Linear_s is the LMM's own projector. The paper writes f_p for two things: here ``f_p`` are the pixel encoder's own features
[B, C, h, w], which the mask decoder takes (B.4: SAM's 256 channels), and Linear_p brings them to the LMM's width for SPAM alone.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["LinearP", "Normalize", "PixelEncoder", "PixelFeatures", "SemanticEncoder"]


class Normalize(nn.Module):
    """uint8 RGB [B, H, W, 3] -> float [B, 3, H, W] with the encoder's mean and std (of values in 0..1).

    Part of the model so that the exported graph carries its own numbers.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        deviation = torch.tensor(std)
        self.register_buffer("scale", (1 / (255 * deviation)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", (-torch.tensor(mean) / deviation).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float [B, 3, H, W]."""
        # Cast first: TensorRT does not transpose uint8.
        return image.to(self.scale.dtype).permute(0, 3, 1, 2) * self.scale + self.shift


class SemanticEncoder(nn.Module):
    """F_s and Linear_s: the LMM's own vision tower and projector.

    Args:
        tower: a transformers vision model (SigLIP, CLIP).
        projector: its 2-layer MLP into the LMM's width.
        feature_layer: which hidden state is taken (-1: LLaVA-OneVision, -2: LLaVA-1.5).
        drop_class_token: True for CLIP, whose first token is no patch.
    """

    def __init__(
        self,
        *,
        normalize: Normalize,
        tower: nn.Module,
        projector: nn.Module,
        feature_layer: int = -1,
        drop_class_token: bool = False,
    ) -> None:
        super().__init__()
        self.normalize, self.tower, self.projector = normalize, tower, projector
        self.feature_layer, self.drop_class_token = feature_layer, drop_class_token

    def forward(self, image: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> f_s [B, N, D]."""
        output = self.tower(self.normalize(image), output_hidden_states=True)
        patches = output.hidden_states[self.feature_layer]
        if self.drop_class_token:
            patches = patches[:, 1:]
        f_s: Tensor = self.projector(patches)  # [B, N, D]
        return f_s


class PixelFeatures(NamedTuple):
    """``f_p`` [B, C, h, w]; ``f_detail`` [B, C', H/2, W/2], or None from encoders that have no finer features (SAM)."""

    f_p: Tensor
    f_detail: Tensor | None


class PixelEncoder(nn.Module):
    """F_p: any backbone that maps normalised pixels to [B, C, h, w], or to that and finer features."""

    def __init__(self, *, normalize: Normalize, backbone: nn.Module) -> None:
        super().__init__()
        self.normalize, self.backbone = normalize, backbone

    def forward(self, image: Tensor) -> PixelFeatures:
        """uint8 [B, H, W, 3] -> pixel features."""
        features = self.backbone(self.normalize(image))
        return PixelFeatures(features, None) if isinstance(features, Tensor) else PixelFeatures(*features)


class LinearP(nn.Module):
    """Linear_p: f_p [B, C, h, w] -> tokens [B, h*w, D], row by row.

    The paper has no norm here; SAM's features vary in scale between images, so they are normalised first. Norm before, not
    after: Linear_p then folds into SPAM's keys and values at export, exactly.
    """

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, dim)

    def forward(self, f_p: Tensor) -> Tensor:
        tokens = f_p.flatten(2).transpose(1, 2)  # [B, hw, C]
        mapped: Tensor = self.linear(self.norm(tokens))  # [B, hw, D]
        return mapped
