"""Frames whose halves overlap give what they give one after the other: the same results, in the same order."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, SourceError
from agvas_runtime.images.frame import Frame
from agvas_runtime.masks.result import Result
from agvas_runtime.pipeline.overlap import overlapped
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.sources.prefetch import ReadAhead
from agvas_runtime.stages.protocol import Features

MakePart = Callable[..., NDArray[np.uint8]]


EARLIER: set[threading.Thread] = set()
"""Threads that tests of other files left in this process."""


@pytest.fixture(autouse=True)
def earlier_threads() -> None:
    EARLIER.clear()
    EARLIER.update(threading.enumerate())


def threads_of_ours() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("agvas-") and one not in EARLIER]


def told(results: list[Result]) -> list[dict[str, object]]:
    return [{key: value for key, value in result.to_dict().items() if key != "timing_ms"} for result in results]


@pytest.mark.parametrize("mode", ["direct", "describe"])
def test_overlapping_changes_no_result_and_no_order(tiny_bundle: Path, make_part: MakePart, mode: str) -> None:
    segmenter = Segmenter.load(tiny_bundle, mode=mode)
    frames = [
        Frame("small.png", 0, image=make_part(64, 64, [(20, 30, 6)])),
        Frame("broken.png", 1, error=ImageError("broken.png: cut short")),
        Frame("tiled.png", 2, image=make_part(400, 500, [(300, 200, 9), (40, 50, 12)])),
        Frame("empty.png", 3),
        Frame("good.png", 4, image=make_part(90, 120)),
    ]
    one_by_one = list(segmenter.stream(frames, overlap=False))
    overlapping = list(segmenter.stream(frames, overlap=True))
    assert told(overlapping) == told(one_by_one)
    assert [result.name for result in overlapping] == [frame.name for frame in frames]
    for a, b in zip(overlapping, one_by_one, strict=True):
        assert a.score_map is b.score_map is None or np.array_equal(a.score_map, b.score_map)  # type: ignore[arg-type]
    assert threads_of_ours() == []


def test_vision_looks_at_the_next_frame_while_the_decoder_works_on_this_one(tiny_bundle: Path, make_part: MakePart) -> None:
    looked: list[threading.Event] = [threading.Event() for _ in range(3)]
    loaded = Segmenter.load(tiny_bundle)
    vision, lmm, decoder = loaded.stages
    calls = {"vision": 0, "decoder": 0}

    def see(*views: NDArray[np.uint8]) -> Features:
        looked[calls["vision"]].set()
        calls["vision"] += 1
        return vision(*views)

    def decode(anchors: NDArray[np.float32], features: Features) -> NDArray[np.float32]:
        calls["decoder"] += 1
        assert looked[min(calls["decoder"], 2)].wait(10), "vision waited for this frame to be judged"
        return decoder(anchors, features)

    segmenter = Segmenter(loaded.bundle, see, lmm, decode)
    frames = [Frame(f"{index}.png", index, image=make_part(64, 64)) for index in range(3)]
    assert [result.error for result in segmenter.stream(frames)] == [None] * 3


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_so_many_items_are_made_ahead_and_no_more(ahead: int) -> None:
    made, most = 0, 0

    def first(frame: int) -> Iterator[int]:
        nonlocal made
        for _ in range(2 if frame % 3 else 1):
            made += 1
            yield frame

    used = 0
    for _, items in overlapped(range(30), first, ahead=ahead):
        for _ in items:
            used += 1
            time.sleep(0.002)
            most = max(most, made - used)
    assert used == made and most == ahead


def test_frames_that_cannot_be_used_are_not_read_without_bound() -> None:
    taken: list[int] = []

    def frames() -> Iterator[int]:
        for frame in range(1000):
            taken.append(frame)
            yield frame

    def first(frame: int) -> Iterator[int]:
        raise ImageError("it is broken")
        yield frame

    halves = overlapped(frames(), first, ahead=1)
    next(halves)
    time.sleep(0.1)
    assert len(taken) < 10
    halves.close()


def test_what_a_frame_raises_is_raised_at_that_frame_and_the_next_one_is_taken() -> None:
    def first(frame: int) -> Iterator[int]:
        yield frame
        if frame == 1:
            raise ImageError("frame 1 is at fault")
        yield frame

    found: list[object] = []
    for frame, items in overlapped([0, 1, 2], first, ahead=1):
        try:
            found.append(list(items))
        except ImageError as error:
            found.append((frame, str(error)))
    assert found == [[0, 0], (1, "frame 1 is at fault"), [2, 2]]


def test_items_that_nobody_wanted_do_not_reach_the_next_frame() -> None:
    found = [(frame, next(items)) for frame, items in overlapped([0, 1], lambda frame: iter([frame, frame, frame]), ahead=1)]
    assert found == [(0, 0), (1, 1)]


def test_a_source_that_is_lost_ends_after_the_frames_it_gave() -> None:
    def frames() -> Iterator[int]:
        yield 0
        raise SourceError("the camera stopped")

    found = []
    with pytest.raises(SourceError, match="camera stopped"):
        for frame, items in overlapped(frames(), lambda frame: iter([frame]), ahead=1):
            found += [frame, *items]
    assert found == [0, 0] and threads_of_ours() == []


@pytest.mark.parametrize("wait_s", [0.0, 0.05])
def test_leaving_early_ends_the_thread_and_closes_what_it_read(wait_s: float) -> None:
    closed = []

    def frames() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(threading.current_thread().name)

    halves = overlapped(frames(), lambda frame: iter([frame] * 10), ahead=1)
    next(halves)
    time.sleep(wait_s)  # until the thread has no more room, or not
    halves.close()
    assert closed == ["agvas-vision"] and threads_of_ours() == []


def test_reading_ahead_is_bounded() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    ahead = ReadAhead(items(), 2, name="agvas-test")
    try:
        assert next(iter(ahead)) == 0
        assert max(taken) <= 4  # one given, two ready, one waiting for room
    finally:
        ahead.stop()
