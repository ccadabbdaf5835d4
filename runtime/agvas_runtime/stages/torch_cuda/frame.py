"""Frames of one size from pixels to P: the native core's kernels around the model, all of it on the engine's stream."""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from agvas_runtime.stages.protocol import FramePlan, FrameReferences
from agvas_runtime.stages.reference.distances import TorchReferences
from agvas_runtime.stages.torch_cuda.direct import Direct
from agvas_runtime.stages.torch_cuda.reading import Prompt
from agvas_runtime.stages.whole_frame import MOST_REGIONS, REGION_BYTES, SUMMARY, FrameJudged, FrameKernels, TileMade

__all__ = ["TorchFrame"]


class TorchFrame:
    """Tables, and memory that stays where it is, because a captured graph writes there again and again.

    Args:
        core: the native core, with CUDA.
    """

    def __init__(self, core: ModuleType, plan: FramePlan, device: torch.device) -> None:
        self._kernels, self._device = FrameKernels(core, plan), device
        self._views = [
            tuple(torch.empty(shape, dtype=torch.uint8, device=device) for shape in shapes) for shapes in self._kernels.shapes
        ]
        self._tiles_seen = [
            (semantic.data_ptr(), pixel.data_ptr()) for look in self._views for semantic, pixel in zip(*look, strict=True)
        ]
        self._score_map = torch.empty(plan.size, dtype=torch.float32, device=device)
        self._mask = torch.empty(plan.size, dtype=torch.uint8, device=device)
        self._summary = torch.empty(SUMMARY.itemsize, dtype=torch.uint8, device=device)
        self._regions = torch.empty(MOST_REGIONS * REGION_BYTES, dtype=torch.uint8, device=device)
        self._made: list[Tensor] = []
        # Looks at the whole frame have the same semantic view, so the language model is asked once of all of them; tiles a few at a time.
        whole = tuple(number for number, look in enumerate(plan.looks) if len(look.tiles) == 1)
        most = plan.tiles_at_once
        self._runs: list[tuple[tuple[int, ...], slice]] = [
            ((number,), slice(first, min(first + most, len(look.tiles))))
            for number, look in enumerate(plan.looks)
            if number not in whole
            for first in range(0, len(look.tiles), most)
        ]
        if whole:
            self._runs.append((whole, slice(0, 1)))
        self._compare = None if plan.references is None else self._with_bank(plan.references)

    def _with_bank(self, references: FrameReferences) -> Callable[[int, int], tuple[Tensor, Tensor]]:
        """Measures the frame at a pointer, on a stream: deep and joint distances, [1, h, w] each, good until the next call."""
        stage, shape = references.stage, self._kernels.reference_shape
        assert isinstance(stage, TorchReferences) and shape is not None, "can_see_references() says so"
        view = torch.empty(shape, dtype=torch.uint8, device=self._device)
        bank = torch.from_numpy(references.bank).to(self._device)
        weight = torch.tensor(references.colour_weight, device=self._device)
        own: list[Tensor] = []

        def compare(frame: int, stream: int) -> tuple[Tensor, Tensor]:
            self._kernels.see_reference(frame, view.data_ptr(), stream)
            found = stage.module(view, bank, weight)
            if not own:  # the first run, which is not captured
                own.extend(torch.empty_like(each) for each in (found.deep, found.joint))
            deep, joint = own
            deep.copy_(found.deep)
            joint.copy_(found.joint)
            return deep, joint

        return compare

    def __call__(self, direct: Direct, prompt: Prompt, image: Tensor, rule: Tensor) -> tuple[Tensor, ...]:
        """RGB uint8 [H, W, 3] and RULE as bytes -> P float32 [H, W], SUMMARY as bytes and, where the plan has references, deep and joint
        distances, all good until the next call."""
        stream = torch.cuda.current_stream(self._device).cuda_stream if self._device.type == "cuda" else 0
        self._kernels.see(image.data_ptr(), self._tiles_seen, stream)
        made: list[Tensor] = []  # of each run the logits of its looks, then the leanings
        for looks, tiles in self._runs:
            made += direct(prompt, self._views[looks[0]][0][tiles], *(self._views[number][1][tiles] for number in looks))
        if not self._kernels.follows:  # the first run, which is not captured, tells their shapes
            self._made = [torch.empty(each.shape, dtype=torch.float32, device=self._device) for each in made]
            self._kernels.follow(self._tiles_made())
        for own, each in zip(self._made, made, strict=True):
            own.copy_(each)
        results = self._score_map, self._mask, self._summary, self._regions
        self._kernels.judge(rule.data_ptr(), FrameJudged(*(each.data_ptr() for each in results)), stream)
        distances = () if self._compare is None else self._compare(image.data_ptr(), stream)
        return self._score_map, self._summary, *distances

    def _tiles_made(self) -> list[TileMade]:
        """Of all looks in their order."""
        found: dict[int, list[TileMade]] = {}
        made = iter(self._made)
        for looks, _ in self._runs:
            logits = [next(made) for _ in looks]
            lean = next(made).data_ptr()
            for number, maps in zip(looks, logits, strict=True):
                for tile in maps:  # [3, rows, columns]
                    found.setdefault(number, []).append(TileMade(tile.data_ptr(), (tile.shape[1], tile.shape[2]), lean))
                    lean += 4
        return [tile for number in sorted(found) for tile in found[number]]
