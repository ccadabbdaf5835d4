"""The frame ring hands over every frame once, whole and in order, or says how many it dropped."""

import threading
from types import ModuleType

import numpy as np
import pytest


def test_frames_arrive_once_whole_and_in_order(core: ModuleType) -> None:
    ring, count = core.FrameRing(3, 5000), 300
    got: list[int] = []

    def grab() -> None:
        for number in range(count):
            slot = ring.claim(10_000, False)
            ring.array(slot)[:] = number % 251
            ring.publish(slot)

    grabber = threading.Thread(target=grab)
    grabber.start()
    for _ in range(count):
        slot = ring.take(10_000)
        frame = ring.array(slot)
        assert (frame == frame[0]).all()
        got.append(int(frame[0]))
        ring.release(slot)
    grabber.join()
    assert got == [number % 251 for number in range(count)]
    assert ring.dropped == 0


def test_a_full_ring_drops_the_oldest_frame_where_it_may(core: ModuleType) -> None:
    ring = core.FrameRing(2, 8)
    for number in range(3):
        slot = ring.claim(0, True)
        ring.array(slot)[:] = number
        ring.publish(slot)
    assert ring.dropped == 1
    first = ring.take(0)
    assert ring.array(first)[0] == 1
    assert ring.claim(0, False) == -1
    assert ring.claim(0, True) >= 0  # the one that was published goes; the one that is read stays
    assert ring.array(first)[0] == 1


def test_an_empty_ring_says_so_in_time(core: ModuleType) -> None:
    assert core.FrameRing(1, 1).take(1) == -1


def test_slots_go_round_in_one_direction(core: ModuleType) -> None:
    ring = core.FrameRing(2, 8)
    slot = ring.claim(0, False)
    with pytest.raises(ValueError, match="not taken"):
        ring.release(slot)
    ring.discard(slot)
    with pytest.raises(ValueError, match="not claimed"):
        ring.publish(slot)
    with pytest.raises(ValueError):
        ring.array(2)
    with pytest.raises(ValueError):
        core.FrameRing(0, 8)


def test_an_array_keeps_the_ring_alive(core: ModuleType) -> None:
    ring = core.FrameRing(1, 4096)
    held = ring.array(ring.claim(0, False))
    del ring
    held[:] = 3
    assert int(held.sum()) == 3 * 4096
    assert held.ctypes.data % 4096 == 0
    assert held.dtype == np.uint8
