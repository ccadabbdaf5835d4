"""Token Refiner (paper 3.1, B.4): two linear layers, shared by the three anchors."""

from torch import Tensor, nn

__all__ = ["TokenRefiner"]


class TokenRefiner(nn.Module):
    """[B, 3, D] -> [B, 3, C]: anchor states into the decoder's space.

    The paper names two linear layers of 3584 -> 3584 -> 256; we put a ReLU between them (as LISA does), since two linear maps
    in a row are one.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out_dim))

    def forward(self, anchor_states: Tensor) -> Tensor:
        h: Tensor = self.layers(anchor_states)  # [B, 3, C]
        return h
