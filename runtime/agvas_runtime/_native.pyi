"""The compiled core (csrc/module.cpp). Callers own every buffer; the interpreter's lock is let go while it works."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CUDA: str
"""What was built and why: ``CUDA 13.0.88 for 80-real, 90-real``, ``without CUDA: no nvcc was found``."""

_Part = tuple[
    NDArray[np.float32],
    NDArray[np.float32],
    tuple[int, int],
    tuple[int, int, int, int],
    float,
    NDArray[np.float32] | None,
    NDArray[np.float32] | None,
]
_Rule = tuple[float, float, float, bool]
_Region = tuple[tuple[int, int, int, int], int, tuple[float, float], float, float, tuple[float, float], NDArray[np.uint8]]
_Plan = tuple[NDArray[np.uint8], int, int, Sequence[int]]

def instructions() -> str:
    """Which instruction set is in use: ``baseline``, ``avx2``, ``avx512``."""

def use_instructions(name: str) -> bool:
    """Uses another one from now on, for tests; False where it is not there."""

def cores() -> int:
    """Cores that this process may use."""

def score_map(parts: Sequence[_Part], alpha: float, rest: float, score_map: NDArray[np.float32], threads: int = 0) -> float:
    """Fills P; returns its highest value.

    A part: l_seg and l_ano - l_nor [h, w]; the size they are enlarged to; top, left, height, width in the frame; share; weights of the rows
    and of the columns of a tile.
    """

def judge_parts(
    parts: Sequence[_Part],
    alpha: float,
    rest: float,
    rule: _Rule,
    score_map: NDArray[np.float32],
    mask: NDArray[np.uint8],
    threads: int = 0,
) -> tuple[float, list[_Region]]:
    """Fills P and M in one pass; returns the highest of P, and each region: box, area, centroid, mean and highest score, length and breadth,
    its pixels within the box.

    The rule: threshold, seed threshold, least area in pixels, and whether the gate is open.
    """

def judge_map(
    score_map: NDArray[np.float32], rule: _Rule, mask: NDArray[np.uint8], threads: int = 0
) -> tuple[float, list[_Region]]:
    """The same of a P that is there."""

def make_views(
    frame: NDArray[np.uint8],
    format: str,
    height: int,
    width: int,
    crop: tuple[int, int, int, int],
    plans: Sequence[_Plan],
    rgb: NDArray[np.uint8] | None = None,
    table: NDArray[np.uint8] | None = None,
    threads: int = 0,
) -> None:
    """Fills views of a crop (top, left, height, width) of a frame (its bytes, [rows, bytes of a row]), and its RGB.

    A plan: the view, uint8 [H, W, 3]; rows and columns that the crop fills; RGB of the rest.
    """

# Only where CUDA was built in; pointers and streams are integers, of whoever made them.

def cuda_devices() -> int:
    """GPUs that can be used now."""

class CudaViews:
    """Views on a GPU, one launch for each; cuda/device_views.h has its use.

    A frame: format (by its place in camera_rows.h), height, width, bytes from row to row. A plan: height, width, height and width that
    the crop fills, padding. For Mono16 the address of its table, 65536 bytes in the host's memory.
    """

    def __init__(
        self, frame: tuple[int, int, int, int], crop: tuple[int, int, int, int], plans: Sequence[tuple[Any, ...]], table: int = 0
    ) -> None: ...
    def run(self, frame: int, outputs: Sequence[int], stream: int) -> None: ...

class CudaVerdict:
    """Acceptance, P, mask and regions on a GPU; cuda/device_verdict.h has its use and the layout of what goes in and comes out.

    A tile: number of its look; pointers to l_nor, l_ano, l_seg; to the logits of the first words of answer and refusal, or 0; rows, columns
    and floats from row to row of the cells; the size they are enlarged to; top, left, height, width in the frame; share; pointers of the host
    to the weights of rows and columns, or 0. Tiles of a look stand together.
    """

    def __init__(
        self, tiles: Sequence[tuple[Any, ...]], height: int, width: int, alpha: float, rest: float, max_regions: int
    ) -> None: ...
    def run(self, rule: int, score_map: int, mask: int, summary: int, regions: int, stream: int) -> None: ...

CUDA_RULE_BYTES: int
CUDA_REGION_BYTES: int
CUDA_SUMMARY_BYTES: int
