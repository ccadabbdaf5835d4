"""Frames whose halves overlap give what they give one after the other: the same results, in the same order."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, SourceError
from agvas_runtime.frame import Frame
from agvas_runtime.overlap import overlapped
from agvas_runtime.read_ahead import ReadAhead
from agvas_runtime.result import Result
from agvas_runtime.segmenter import Segmenter

MakePart = Callable[..., NDArray[np.uint8]]


def threads_of_ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("agvas-")]


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


def test_the_first_half_of_the_next_frame_runs_beside_the_second_half_of_this_one() -> None:
    begun = threading.Event()

    def first(frame: int) -> Iterator[str]:
        if frame == 1:
            begun.set()
        yield f"seen {frame}"

    seen = []
    for frame, items in overlapped([0, 1], first):
        seen += list(items)
        if frame == 0:
            assert begun.wait(10), "frame 1 waited for frame 0 to be judged"
    assert seen == ["seen 0", "seen 1"]


def test_what_a_frame_raises_is_raised_at_that_frame_and_the_next_one_is_taken() -> None:
    def first(frame: int) -> Iterator[int]:
        yield frame
        if frame == 1:
            raise ImageError("frame 1 is at fault")
        yield frame

    found: list[object] = []
    for frame, items in overlapped([0, 1, 2], first):
        try:
            found.append(list(items))
        except ImageError as error:
            found.append((frame, str(error)))
    assert found == [[0, 0], (1, "frame 1 is at fault"), [2, 2]]


def test_items_that_nobody_wanted_do_not_reach_the_next_frame() -> None:
    found = [(frame, next(items)) for frame, items in overlapped([0, 1], lambda frame: iter([frame, frame, frame]))]
    assert found == [(0, 0), (1, 1)]


def test_a_source_that_is_lost_ends_after_the_frames_it_gave() -> None:
    def frames() -> Iterator[int]:
        yield 0
        raise SourceError("the camera stopped")

    found = []
    with pytest.raises(SourceError, match="camera stopped"):
        for frame, items in overlapped(frames(), lambda frame: iter([frame])):
            found += [frame, *items]
    assert found == [0, 0] and threads_of_ours() == []


def test_leaving_early_ends_the_thread_and_closes_what_it_read() -> None:
    closed = []

    def frames() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.append(threading.current_thread().name)

    halves = overlapped(frames(), lambda frame: iter([frame] * 10))
    next(halves)
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
