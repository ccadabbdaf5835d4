"""Sorted scores on disk, and their merge from the highest to the lowest score: exact over all pixels, in bounded memory.

An image leaves one *run*: its scores sorted, apart for normal and for anomalous pixels. ``merge`` walks down all runs at once and
yields distinct scores with their counts; whatever ranks pixels can be summed up from these.

With N pixels in n runs: N log N comparisons per image and again in the merge, 4 bytes of disk per pixel (8 for an anomalous one),
and memory for ``chunk`` pixels, however many there are and however many of them tie.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK", "Run", "Step", "make_run", "merge", "open_run", "remove_run", "run_is_there", "save_run"]

CHUNK = 1 << 22  # pixels in memory at once; about 0.3 GB with what is computed from them

Float = NDArray[np.float32]
_PARTS = ("normal", "anomalous", "area")


@dataclass(frozen=True)
class Run:
    """Scores of one image, ascending; ``area`` has the size in pixels of the region that each anomalous pixel belongs to."""

    normal: Float
    anomalous: Float
    area: NDArray[np.uint32]


@dataclass(frozen=True)
class Step:
    """Distinct scores, descending, with how many pixels have each."""

    scores: Float  # [K]
    normal: NDArray[np.int64]  # [K]
    anomalous: NDArray[np.int64]  # [K]
    weight: NDArray[np.float64]  # [K], sum of 1 / area over the anomalous pixels


def make_run(scores: Float, truth: NDArray[np.bool_], area: NDArray[np.uint32]) -> Run:
    """The run of one image.

    Args:
        scores: float32 [H, W], finite.
        truth: bool [H, W].
        area: [H, W], size of the region at each anomalous pixel; not read elsewhere.
    """
    anomalous = scores[truth]
    order = np.argsort(anomalous, kind="stable")
    return Run(np.sort(scores[~truth]), anomalous[order], area[truth][order].astype(np.uint32))


def save_run(stem: Path, run: Run) -> None:
    """Writes ``stem``.normal.npy and so on; memory-mapped when opened."""
    for part in _PARTS:
        np.save(_file(stem, part), getattr(run, part), allow_pickle=False)


def run_is_there(stem: Path) -> bool:
    """Whether all parts of a run are on disk."""
    return all(_file(stem, part).is_file() for part in _PARTS)


def open_run(stem: Path) -> Run:
    """A run that stays on disk."""
    normal, anomalous, area = (_mapped(_file(stem, part)) for part in _PARTS)
    return Run(normal, anomalous, area)


def remove_run(stem: Path) -> None:
    """Frees the disk."""
    for part in _PARTS:
        _file(stem, part).unlink(missing_ok=True)


def merge(runs: Sequence[Run], chunk: int = CHUNK) -> Iterator[Step]:
    """All runs as one, from the highest score down, about ``chunk`` pixels at a time."""
    streams: list[tuple[Float, NDArray[np.uint32] | None]] = []
    for run in runs:
        streams += [(run.normal, None), (run.anomalous, run.area)]
    streams = [stream for stream in streams if len(stream[0])]
    ends = [len(scores) for scores, _ in streams]  # what lies before the end is still to come
    while any(ends):
        block = max(1, chunk // sum(end > 0 for end in ends))
        # Everything above the highest of the blocks' first scores is in the blocks: no stream can still hold such a score.
        firsts = [scores[end - block] for (scores, _), end in zip(streams, ends, strict=True) if end > block]
        boundary = max(firsts) if firsts else None
        normal, anomalous, areas = [], [], []
        tied = [0, 0, 0.0]
        for index, (scores, area) in enumerate(streams):
            start, end = max(0, ends[index] - block), ends[index]
            cut = start if boundary is None else start + int(np.searchsorted(scores[start:end], boundary, "right"))
            if area is None:
                normal.append(scores[cut:end])
            else:
                anomalous.append(scores[cut:end])
                areas.append(area[cut:end])
            # Pixels that tie at the boundary may be any number: they are counted on disk, never loaded.
            low = cut if boundary is None else int(np.searchsorted(scores[:cut], boundary, "left"))
            tied[area is not None] += cut - low
            if area is not None:
                tied[2] += sum(float((1.0 / area[at : min(at + block, cut)]).sum()) for at in range(low, cut, block))
            ends[index] = low
        step = _counted(normal, anomalous, areas)
        if len(step.scores):
            yield step
        if boundary is not None:
            yield Step(
                np.array([boundary], np.float32),
                np.array([tied[0]], np.int64),
                np.array([tied[1]], np.int64),
                np.array([tied[2]]),
            )


def _counted(normal: list[Float], anomalous: list[Float], areas: list[NDArray[np.uint32]]) -> Step:
    n = np.sort(np.concatenate(normal)) if normal else np.empty(0, np.float32)
    a = np.concatenate(anomalous) if anomalous else np.empty(0, np.float32)
    order = np.argsort(a, kind="stable")
    a = a[order]
    weights = 1.0 / np.concatenate(areas)[order] if areas else np.empty(0)
    scores = np.unique(np.concatenate([n, a]))  # [K], ascending
    below = np.searchsorted(a, scores, "right")  # [K], anomalous pixels up to each score
    summed = np.concatenate([[0.0], np.cumsum(weights)])
    return Step(
        scores[::-1],
        np.diff(np.searchsorted(n, scores, "right"), prepend=0)[::-1],
        np.diff(below, prepend=0)[::-1],
        np.diff(summed[below], prepend=0.0)[::-1],
    )


def _file(stem: Path, part: str) -> Path:
    return stem.with_name(f"{stem.name}.{part}.npy")


def _mapped(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
