"""A whole frame on a GPU: the native core's kernels before the model, from pixels to views, and after it, from logits to P and the verdict.

An engine that has all three stages puts them between the two, so that a frame is one launch and what goes up is the frame, what comes
down P and a few numbers. Regions are measured on the host, of those frames alone in which one counts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.decision import OperatingPoint
from agvas_core.contract.errors import ImageError, StageError
from agvas_core.contract.preprocess import View, frame_cells
from agvas_core.contract.prompts import Anchor
from agvas_runtime import native
from agvas_runtime.images.views import PIXEL_FORMAT_PLACES, shrinks, view_layout
from agvas_runtime.masks.regions import native_rule
from agvas_runtime.stages.protocol import FramePlan, FrameSeen

__all__ = [
    "LOGITS_BROKEN",
    "MOST_REGIONS",
    "REGION_BYTES",
    "RULE",
    "SUMMARY",
    "FrameJudged",
    "FrameKernels",
    "LookShapes",
    "TileMade",
    "can_see_references",
    "kernels",
    "packed_rule",
    "read_summary",
]

Shape = tuple[int, int, int, int]

LOGITS_BROKEN: Final = (
    "the model gave logits that are NaN or infinite on this image: try another prompt, or report image and bundle"
)

# As csrc/cuda/device_verdict.h has them; a test on a GPU compares the sizes.
RULE: Final = np.dtype([("threshold", "f4"), ("seed", "f4"), ("min_area", "f8"), ("gate", "f8")], align=True)
SUMMARY: Final = np.dtype(
    [("count", "i4"), ("counting", "i4"), ("overflow", "i4"), ("broken", "i4"), ("score", "f4"), ("accept", "f8")], align=True
)
REGION_BYTES: Final = 56
MOST_REGIONS: Final = 4096
"""Room on the GPU; those beyond count, so a frame with more is never a good one."""


class TileMade(NamedTuple):
    """Where the engine puts what it makes of one tile, on the device."""

    logits: int
    """Pointer to float32 [3, rows, columns], in anchor order."""
    cells: tuple[int, int]
    """(rows, columns)."""
    answer: int
    """Pointer to the float32 logit of the answer's first word."""
    refusal: int = 0
    """And of the refusal's; 0 where ``answer`` is the difference of the two."""


class LookShapes(NamedTuple):
    """The views of one look: so many of each as it has tiles."""

    semantic: Shape
    """[tiles, Hs, Ws, 3]."""
    pixel: Shape
    """[tiles, H, W, 3]."""


class FrameJudged(NamedTuple):
    """Where a verdict goes: pointers to memory of the device."""

    score_map: int
    """float32 [H, W]."""
    mask: int
    """uint8 [H, W]."""
    summary: int
    """SUMMARY."""
    regions: int
    """MOST_REGIONS times REGION_BYTES."""


def kernels() -> ModuleType | None:
    """The native core, where it was built with CUDA and finds a GPU."""
    core = native.core
    return core if core is not None and hasattr(core, "CudaViews") and core.cuda_devices() else None


def packed_rule(point: OperatingPoint, pixels: int) -> NDArray[np.uint8]:
    """An operating point as the kernels read it, for a frame of so many pixels; uint8 [RULE.itemsize]."""
    threshold, seed, min_area, _ = native_rule(point, 1.0, pixels)
    return np.array([(threshold, seed, min_area, point.gate)], RULE).view(np.uint8)


def can_see_references(plan: FramePlan, kind: type) -> bool:
    """Whether the plan has no references, or those of a stage of ``kind`` with an encoder of its own and a view that the kernels can
    make: they only shrink."""
    references = plan.references
    if references is None:
        return True
    return isinstance(references.stage, kind) and not references.takes_features and shrinks(references.view, *plan.size)


def read_summary(summary: NDArray[np.uint8], score_map: NDArray[np.float32], *distances: NDArray[np.float32]) -> FrameSeen:
    """What the kernels say of a frame.

    Args:
        distances: deep and joint, [1, h, w] each, where the plan has references.

    Raises:
        ImageError: a logit is NaN or infinite.
    """
    told = summary.view(SUMMARY)[0]
    if told["broken"]:
        raise ImageError(LOGITS_BROKEN)
    return FrameSeen(
        score_map, float(told["score"]), float(told["accept"]), bool(told["counting"]), *(each[0] for each in distances)
    )


class FrameKernels:
    """The kernels of one plan. Their tables lie on the GPU; nothing more is allocated once ``follow`` was called.

    Raises:
        ImageError: out of GPU memory.
        StageError: the GPU fails.
    """

    def __init__(self, core: ModuleType, plan: FramePlan) -> None:
        self.plan, self._core = plan, core
        self._layouts = [[view_layout(spec, *look.tiles.size) for spec in (plan.semantic, look.view)] for look in plan.looks]
        self.shapes = [
            LookShapes(*((len(look.tiles), *layout.whole, 3) for layout in layouts))
            for look, layouts in zip(plan.looks, self._layouts, strict=True)
        ]
        """Of the views, for each look."""
        height, width = plan.size
        frame = (PIXEL_FORMAT_PLACES["RGB8"], height, width, 3 * width)
        self._views: list[Any] = []  # one for each tile, of all looks
        for look, layouts in zip(plan.looks, self._layouts, strict=True):
            plans = [(*layout.whole, *layout.content, layout.padding) for layout in layouts]
            for tile in look.tiles:
                crop = (tile.rows.start, tile.columns.start, *look.tiles.size)
                with _told():
                    self._views.append(core.CudaViews(frame, crop, plans))
        self._reference_view: Any = None
        self.reference_shape: Shape | None = None
        """[1, H, W, 3] of the view for the references, where the plan has them."""
        if plan.references is not None:
            layout = view_layout(plan.references.view, height, width)
            self.reference_shape = (1, *layout.whole, 3)
            views = [(*layout.whole, *layout.content, layout.padding)]
            with _told():
                self._reference_view = core.CudaViews(frame, (0, 0, height, width), views)
        self._verdict: Any = None

    def see_reference(self, frame: int, view: int, stream: int) -> None:
        """RGB uint8 [H, W, 3] at ``frame`` to the view for the references at ``view``."""
        with _told():
            self._reference_view.run(frame, (view,), stream)

    def see(self, frame: int, views: Sequence[tuple[int, int]], stream: int) -> None:
        """RGB uint8 [H, W, 3] at ``frame`` to views at ``views``: for each tile, of all looks, pointers to the semantic one and the pixel one."""
        with _told():
            for tile, pointers in zip(self._views, views, strict=True):
                tile.run(frame, pointers, stream)

    @property
    def follows(self) -> bool:
        """Whether ``follow`` was called."""
        return self._verdict is not None

    def follow(self, made: Sequence[TileMade]) -> None:
        """From where the logits of each tile, of all looks, will be read; they must lie there as long as this is used."""
        height, width = self.plan.size
        tiles = [
            (number, look, tile, layouts[1]) for number, (look, layouts) in enumerate(zip(self.plan.looks, self._layouts, strict=True))
            for tile in look.tiles
        ]  # fmt: skip
        given, kept = [], []
        for (number, look, tile, layout), (logits, (rows, columns), *said) in zip(tiles, made, strict=True):
            shown = View(np.empty((*layout.whole, 3), np.uint8), layout.content)
            (high, wide), enlarged = frame_cells(shown, (rows, columns), look.tiles.size)
            layers = tuple(logits + 4 * anchor * rows * columns for anchor in (Anchor.NOR, Anchor.ANO, Anchor.SEG))
            weights = [np.ascontiguousarray(each, np.float32) for each in (tile.row_weight, tile.column_weight)]
            kept.append(weights)  # the kernels copy them
            place = (tile.rows.start, tile.columns.start, *look.tiles.size)
            seams = (0, 0) if tile.whole else tuple(each.ctypes.data for each in weights)
            given.append((number, layers, tuple(said), (high, wide, columns), enlarged, place, look.share, seams))
        alpha = self.plan.alpha
        with _told():
            self._verdict = self._core.CudaVerdict(given, height, width, alpha, 1.0 - alpha, MOST_REGIONS)

    def judge(self, rule: int, judged: FrameJudged, stream: int) -> None:
        """By RULE at ``rule``, of the logits that are followed."""
        with _told():
            self._verdict.run(rule, *judged, stream)


@contextmanager
def _told() -> Iterator[None]:
    """What the native core raises of CUDA, as what it means for a frame."""
    try:
        yield
    except RuntimeError as error:
        raise (ImageError if "out of memory" in str(error) else StageError)(f"a frame on the GPU: {error}") from error
