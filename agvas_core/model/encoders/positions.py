"""Dense positions of a grid, as in SAM: random Fourier features (used by AGMD, eq. 5, and where asked for by SPAM, eq. 2)."""

import math

import torch
from torch import Tensor, nn

__all__ = ["DensePosition"]


class DensePosition(nn.Module):
    """Random Fourier features of positions in a grid; drawn once and kept with the weights.

    Args:
        interleaved: sine and cosine of one frequency side by side, and not all sines before all cosines, as SAM has them. Heads of an
            attention that take channels in order then each see both; with cosines alone a place and its mirror look alike.

    The product of two positions falls off with their distance like a Gaussian of 0.08 of the image's side, whatever the grids.
    """

    frequencies: Tensor

    def __init__(self, dim: int, interleaved: bool = False) -> None:
        super().__init__()
        self.interleaved = interleaved
        self.register_buffer("frequencies", torch.randn(2, dim // 2))

    def forward(self, height: int, width: int) -> Tensor:
        """Positions of the cells of a height x width grid that covers the image: [1, hw, C]."""
        y = (torch.arange(height, device=self.frequencies.device, dtype=self.frequencies.dtype) + 0.5) / height
        x = (torch.arange(width, device=self.frequencies.device, dtype=self.frequencies.dtype) + 0.5) / width
        across = (2 * x - 1)[None, :, None] * self.frequencies[0]  # [1, w, C/2]
        down = (2 * y - 1)[:, None, None] * self.frequencies[1]  # [h, 1, C/2]
        phase = 2 * math.pi * (across + down)  # [h, w, C/2]
        both = (phase.sin(), phase.cos())
        dense = torch.stack(both, -1).flatten(2) if self.interleaved else torch.cat(both, -1)  # [h, w, C]
        return dense.flatten(0, 1)[None]  # [1, hw, C]
