"""Measures the fastest batch sizes: tiles per launch on a tiled frame, passes ahead on whole frames.

All are tried in every round, each round beginning with another one, so that whatever else the machine does disturbs all alike. Ratios are
those within a round. A larger count is taken where it is faster by more than chance and a little: memory grows with it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle, islice
from math import floor
from statistics import median
from typing import Final, Literal, NamedTuple

from agvas_core.contract.command_line import printable
from agvas_core.contract.errors import ImageError
from agvas_core.contract.manifest import Manifest
from agvas_core.contract.preprocess import scaled_views
from agvas_runtime.images.frame import Frame
from agvas_runtime.images.tiling import plan_scales
from agvas_runtime.pipeline.batching import Counts, Tried, Tuning, make_folder, place_here
from agvas_runtime.pipeline.options import SegmentOptions
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.profile.machine import load_average, peak_memory_mb
from agvas_runtime.profile.session import frames_in_words, generated_frame
from agvas_runtime.this_machine import free_memory_bytes

__all__ = ["ROUNDS", "Found", "fastest", "frame_in_tiles", "tune", "tune_here"]


TILES: Final = (1, 2, 4, 8, 16)
AHEAD: Final = (0, 1, 2)
ROUNDS: Final = 7
FRAMES_A_ROUND: Final = 8  # whole ones, for each count of passes ahead
MARGIN: Final = 0.03  # so much faster a larger count has to be
SURE: Final = 0.75  # in so many of the rounds it has to be the faster one
ENOUGH_TILES: Final = 4  # a frame of the user's that has so many is taken in place of a generated one
LARGE_PX: Final = 25_000_000  # of a generated frame; beyond it, it has half the tiles

Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """What was measured, and what is the fastest."""

    counts: Counts
    tried: tuple[Tried, ...]
    frames: str
    rounds: int


class _Trial(NamedTuple):
    what: Literal["tiles", "ahead"]
    value: int
    frames: int
    run: Callable[[], None]


def tune(
    segmenter: Segmenter,
    frames: Sequence[Frame],
    *,
    rounds: int = ROUNDS,
    frames_a_round: int = FRAMES_A_ROUND,
    say: Say = lambda step: None,
) -> Found:
    """Measures in direct mode, whose frames alone are tiled.

    Args:
        frames: with an image each; the largest is looked at in tiles, where it has enough of them.

    Raises:
        ImageError: a frame that cannot be judged.
    """
    large = frame_in_tiles(segmenter.bundle.manifest, frames)
    say("which counts fit into memory")
    trials = [
        _Trial("tiles", count, 1, lambda count=count: _judge(segmenter, Counts(tiles=count, ahead=0), [large]))  # type: ignore[misc]
        for count in _tiles_that_fit(segmenter, large)
    ]
    shown = list(islice(cycle(frames), frames_a_round))
    trials += [
        _Trial("ahead", count, len(shown), lambda count=count: _judge(segmenter, Counts(ahead=count), shown))  # type: ignore[misc]
        for count in AHEAD
    ]
    seconds: dict[str, dict[int, list[float]]] = {"tiles": {}, "ahead": {}}
    trials[-1].run()  # warm-up; the larger frame has had its own
    for number in range(rounds):
        first = number % len(trials)
        for trial in (*trials[first:], *trials[:first]):
            say(f"round {number + 1} of {rounds}: {trial.what} {trial.value}")
            began = time.perf_counter()
            trial.run()
            seconds[trial.what].setdefault(trial.value, []).append(time.perf_counter() - began)
    return Found(
        Counts(tiles=fastest(seconds["tiles"]), ahead=fastest(seconds["ahead"])),
        tuple(_tried(trial, seconds[trial.what]) for trial in trials),
        f"in tiles {frames_in_words([large])}; whole {frames_in_words(list(frames))}",
        rounds,
    )


def fastest(seconds: Mapping[int, Sequence[float]]) -> int:
    """The smallest count that no larger one beats; ``seconds`` has for each the times of the same rounds in order."""
    best, *larger = sorted(seconds)
    for count in larger:
        ratios = [before / after for before, after in zip(seconds[best], seconds[count], strict=True)]
        if median(ratios) >= 1 + MARGIN and sum(ratio > 1 for ratio in ratios) >= SURE * len(ratios):
            best = count
    return best


def frame_in_tiles(manifest: Manifest, frames: Sequence[Frame]) -> Frame:
    """The frame with the most tiles; a generated one of sixteen, or of eight where views are large, if none has enough."""
    most = max(frames, key=lambda frame: _tiles(manifest, frame))
    if _tiles(manifest, most) >= ENOUGH_TILES:
        return most
    finest = scaled_views(manifest.pixel_view, manifest.scales, 1, 1)[0]
    longest, overlap = floor(finest.size_px * manifest.tiling.max_downscale), manifest.tiling.overlap
    two, four = (floor(longest * (overlap + (1 - overlap) * (count - 1))) + 1 for count in (2, 4))  # px that just need so many
    return generated_frame(four if four * four <= LARGE_PX else two, four)


def _tiles(manifest: Manifest, frame: Frame) -> int:
    assert frame.image is not None
    height, width = frame.image.shape[:2]
    looks = plan_scales(height, width, scaled_views(manifest.pixel_view, manifest.scales, height, width), manifest.tiling)
    return max(len(look.tiles) for look in looks)


def _tiles_that_fit(segmenter: Segmenter, large: Frame) -> list[int]:
    """Counts that bundle, engines and the frame allow, as long as the next one, which takes twice as much, has memory."""
    able: list[int] = []
    engines = (getattr(getattr(stage, "engine", None), "max_batch", None) for stage in segmenter.stages)
    limit = min([_tiles(segmenter.bundle.manifest, large), *(most for most in engines if most)])
    for count in TILES:
        if count > 1 and (count > limit or segmenter.with_counts(Counts(tiles=count)).counts.tiles < count):
            break
        before = peak_memory_mb()
        try:
            _judge(segmenter, Counts(tiles=count, ahead=0), [large])
        except ImageError:  # the memory of a GPU, say
            if not able:
                raise
            break
        able.append(count)
        free = free_memory_bytes()
        if free is not None and free / 1e6 < 2 * (peak_memory_mb() - before):
            break
    return able


def _judge(segmenter: Segmenter, counts: Counts, frames: Sequence[Frame]) -> None:
    for result in segmenter.with_counts(counts).stream(frames):
        if result.error is not None:
            raise ImageError(f"{result.name}: {result.error}: tune with pictures that can be judged")


def _tried(trial: _Trial, seconds: Mapping[int, Sequence[float]]) -> Tried:
    own, smallest = seconds[trial.value], seconds[min(seconds)]
    return Tried(
        what=trial.what,
        count=trial.value,
        frames_per_s=trial.frames / median(own),
        least_per_s=trial.frames / max(own),
        most_per_s=trial.frames / min(own),
        times_faster=median(before / after for before, after in zip(smallest, own, strict=True)),
    )


# A bundle on its backends, tuned on this machine: what ``agvas profile --tune`` keeps.


def tune_here(options: SegmentOptions, frames: Sequence[Frame], *, command: str, say: Callable[[str], None]) -> Tuning:
    """Opens the bundle and measures.

    Raises:
        UsageError, OutputError: there is nowhere to keep what is found.
        ImageError: a frame that cannot be judged.
    """
    make_folder()  # before minutes of measuring
    load_before = load_average()
    segmenter = Segmenter.open(options, counts=Counts())
    found = tune(segmenter, frames, say=say)
    return Tuning(
        place=place_here(segmenter.bundle.identity, options.backends, options.threads),
        tiles=found.counts.tiles,
        ahead=found.counts.ahead,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=printable(command),
        frames=found.frames,
        rounds=found.rounds,
        load_before=round(load_before, 2),
        tried=found.tried,
    )
