"""Semantic and pixel encoding (paper 3.1, eq. 1): f_s = Linear_s(F_s(x)), f_p = Linear_p(F_p(x)).

Linear_s is the LMM's own projector. The paper writes f_p for two things: here ``f_p`` are the pixel encoder's own features
[B, C, h, w], which the mask decoder takes (B.4: SAM's 256 channels), and Linear_p brings them to the LMM's width for SPAM alone.
"""

import math
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
        norm_out: width D of a layer norm on f_s, None for none. Published towers need none. In one trained from scratch nothing holds the
            scale of f_s: it grew to hundreds of times its variation within an image, and the language model saw no image any more.
        tiles: per side. With more than 1 the view is that many times the tower's size, and f_s is the whole view, shrunk, followed by
            its tiles, joined to one grid with ``newline`` after each row: LLaVA-OneVision's any-resolution tiling.
        newline: [D], that model's ``image_newline``.
    """

    def __init__(
        self,
        *,
        normalize: Normalize,
        tower: nn.Module,
        projector: nn.Module,
        feature_layer: int = -1,
        drop_class_token: bool = False,
        norm_out: int | None = None,
        tiles: int = 1,
        newline: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.normalize, self.tower, self.projector = normalize, tower, projector
        self.feature_layer, self.drop_class_token = feature_layer, drop_class_token
        self.norm_out = nn.Identity() if norm_out is None else nn.LayerNorm(norm_out)
        self.tiles, self.newline = tiles, newline

    def forward(self, image: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> f_s [B, N, D]; with tiles, N = n^2 + tn (tn + 1) for t tiles of n x n patches."""
        pixels = self.normalize(image)
        if self.newline is None:
            return self._project(pixels)
        t, batch = self.tiles, pixels.shape[0]
        whole = nn.functional.avg_pool2d(pixels, t)  # [B, 3, s, s]
        px = whole.shape[-1]
        tiles = pixels.view(batch, 3, t, px, t, px).permute(0, 2, 4, 1, 3, 5)  # [B, t, t, 3, s, s]
        views = torch.cat([whole[:, None], tiles.flatten(1, 2)], 1)  # [B, 1 + t^2, 3, s, s]
        projected = self._project(views.flatten(0, 1))  # [B (1 + t^2), n^2, D]
        tokens = projected.view(batch, 1 + t * t, *projected.shape[1:])  # [B, 1 + t^2, n^2, D]
        side = math.isqrt(tokens.shape[2])
        grid = tokens[:, 1:].reshape(batch, t, t, side, side, -1)  # [B, t, t, n, n, D]
        grid = grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # [B, tn, tn, D]
        ends = self.newline.to(grid.dtype).expand(batch, t * side, 1, -1)
        return torch.cat([tokens[:, 0], torch.cat([grid, ends], 2).flatten(1, 2)], 1)

    def _project(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, s, s] -> [B, n^2, D]."""
        output = self.tower(pixels, output_hidden_states=True)
        patches = output.hidden_states[self.feature_layer]
        if self.drop_class_token:
            patches = patches[:, 1:]
        f_s: Tensor = self.norm_out(self.projector(patches))  # [B, N, D]
        return f_s


class PixelFeatures(NamedTuple):
    """What the pixel encoder gives: ``f_p`` and ``f_detail`` for the model, the trunk's maps for the references."""

    f_p: Tensor
    """[B, C, h, w]."""
    f_detail: Tensor | None
    """[B, C', H/2, W/2]; None from encoders that have no finer features (SAM)."""
    trunk_8: Tensor | None = None
    """Features of a pretrained trunk at stride 8, [B, 40, H/8, W/8]; None from encoders without one (all but LitePyramid)."""
    trunk_16: Tensor | None = None
    """At stride 16, [B, 112, H/16, W/16]."""


class PixelEncoder(nn.Module):
    """F_p: any backbone that maps normalised pixels to [B, C, h, w], or to that and finer features.

    Args:
        adapter: a linear layer on each place of the backbone's features; for encoders whose width is not C, and for table 6's SAM-FT.
            The paper leaves open how encoders other than SAM meet a decoder of 256 channels.
    """

    def __init__(self, *, normalize: Normalize, backbone: nn.Module, adapter: nn.Module | None = None) -> None:
        super().__init__()
        self.normalize, self.backbone, self.adapter = normalize, backbone, adapter

    def forward(self, image: Tensor) -> PixelFeatures:
        """uint8 [B, H, W, 3] -> pixel features."""
        features = self.backbone(self.normalize(image))
        if self.adapter is not None:
            features = self.adapter(features)
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
