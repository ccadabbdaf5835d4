"""Frames of one size from pixels to P: the native core's kernels around the model, all of it on the engine's stream."""

from types import ModuleType

import torch
from torch import Tensor

from agvas_runtime.stages.protocol import FramePlan
from agvas_runtime.stages.torch_cuda.direct import Direct
from agvas_runtime.stages.torch_cuda.reading import Prompt
from agvas_runtime.stages.whole_frame import MOST_REGIONS, REGION_BYTES, SUMMARY, FrameJudged, FrameKernels, LookMade

__all__ = ["TorchFrame"]


class TorchFrame:
    """Tables, and memory that stays where it is, because a captured graph writes there again and again.

    Args:
        core: the native core, with CUDA.
    """

    def __init__(self, core: ModuleType, plan: FramePlan, device: torch.device) -> None:
        self._kernels, self._device = FrameKernels(core, plan), device
        self._views = [torch.empty((1, *shape), dtype=torch.uint8, device=device) for shape in self._kernels.shapes]
        self._score_map = torch.empty(plan.size, dtype=torch.float32, device=device)
        self._mask = torch.empty(plan.size, dtype=torch.uint8, device=device)
        self._summary = torch.empty(SUMMARY.itemsize, dtype=torch.uint8, device=device)
        self._regions = torch.empty(MOST_REGIONS * REGION_BYTES, dtype=torch.uint8, device=device)
        self._made: list[Tensor] = []

    def __call__(self, direct: Direct, prompt: Prompt, image: Tensor, rule: Tensor) -> tuple[Tensor, Tensor]:
        """RGB uint8 [H, W, 3] and RULE as bytes -> P float32 [H, W] and SUMMARY as bytes, both good until the next call."""
        stream = torch.cuda.current_stream(self._device).cuda_stream if self._device.type == "cuda" else 0
        self._kernels.see(image.data_ptr(), [view.data_ptr() for view in self._views], stream)
        made = direct(prompt, *self._views)  # logits of each look, and the leanings
        if not self._kernels.follows:  # the first run, which is not captured, tells their shapes
            self._made = [torch.empty(each.shape, dtype=torch.float32, device=self._device) for each in made]
            *logits, leans = self._made
            self._kernels.follow(
                [
                    LookMade(each.data_ptr(), (each.shape[2], each.shape[3]), leans.data_ptr() + 4 * look)
                    for look, each in enumerate(logits)
                ]
            )
        for own, each in zip(self._made, made, strict=True):
            own.copy_(each)
        results = self._score_map, self._mask, self._summary, self._regions
        self._kernels.judge(rule.data_ptr(), FrameJudged(*(each.data_ptr() for each in results)), stream)
        return self._score_map, self._summary
