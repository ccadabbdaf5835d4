"""One frame in direct mode: its views to the masks' logits, with nothing between that leaves the device."""

from contextlib import nullcontext

import torch
from torch import Tensor

from agvas_core.model.agvas import AgVas
from agvas_runtime.stages.torch_cuda.pieces import PLAIN, Pieces
from agvas_runtime.stages.torch_cuda.reading import Prompt, Reader
from agvas_runtime.stages.torch_cuda.seeing import Eyes

__all__ = ["Direct"]


class Direct:
    """The model as one function of its views.

    Args:
        model: as ``placed`` gives it; its language model's layers are laid together in place.
        side: the stream of the pixel encoder on a GPU; it begins when the current stream has come so far, and SPAM waits for it. None computes
            one after the other.
    """

    def __init__(
        self, model: AgVas, *, side: torch.cuda.Stream | None = None, float8: bool = False, pieces: Pieces = PLAIN
    ) -> None:
        self.eyes, self.reader = Eyes(model), Reader(model.lmm, float8=float8, pieces=pieces)
        self._side = side

    def __call__(self, prompt: Prompt, semantic: Tensor, *pixels: Tensor) -> tuple[Tensor, ...]:
        """uint8 [B, Hs, Ws, 3] and, for each look, [B, H, W, 3] -> for each look logits float32 [B, 3, H', W'], then, of all looks one after
        the other, how far the model leans to answering, float32 [looks * B]. Of many looks the language model is asked once."""
        side = self._side
        if side is not None:
            side.wait_stream(torch.cuda.current_stream(side.device))
        with torch.cuda.stream(side) if side is not None else nullcontext():
            features = [self.eyes.pixel(pixel) for pixel in pixels]  # beside the semantic encoder
        f_s = self.eyes.semantic(semantic)  # [B, N, D]
        if side is not None:
            torch.cuda.current_stream(side.device).wait_stream(side)
        f_align = torch.cat([self.eyes.align(f_s, each.f_p) for each in features])  # eq. 2: [looks * B, N, D]
        anchors, lean = self.reader(prompt, f_s.repeat(len(pixels), 1, 1), f_align)  # eq. 3: [looks * B, 3, D], [looks * B]
        of_look = anchors.view(len(pixels), -1, *anchors.shape[1:])  # [looks, B, 3, D]
        logits = [
            self.eyes.masks(states, each) for states, each in zip(of_look, features, strict=True)
        ]  # eq. 4-7: [B, 3, H', W']
        # ``features`` lives until here, so its memory is not given to the side stream again before it was read.
        return *logits, lean
