"""Waits before something that is away is tried again."""

import threading

from agvas_runtime.back_off import BackOff


class Watched(threading.Event):
    """Notes how long it is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        return False


def test_waits_double_up_to_the_longest_and_begin_anew_once_it_was_there() -> None:
    back_off, stop = BackOff(1.0, 5.0), Watched()
    for _ in range(5):
        back_off.wait(stop)
    back_off.reset()
    back_off.wait(stop)
    for waited, whole in zip(stop.waits, (1, 2, 4, 5, 5, 1), strict=True):
        assert whole / 2 <= waited <= whole
