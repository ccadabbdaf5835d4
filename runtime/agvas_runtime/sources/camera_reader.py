"""The thread that reads a camera, and the place for frames that nobody has taken yet."""

import threading
import time
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError, SourceError
from agvas_runtime.images.frame import Sent
from agvas_runtime.sources.grabber import Grabber

__all__ = ["CameraReader", "Shot"]

CLOSE_GRACE_S = 1.0
GRABBER_GRACE_S = 0.25
SILENT_GRACE_S = 0.05
WAIT_S = 0.1  # for room; so often it is looked whether the reader was stopped


class Shot(NamedTuple):
    """A frame as it came."""

    number: int
    """Counts what the camera sent."""
    picture: NDArray[np.uint8] | Sent | ImageError
    read_ms: float
    taken_s: float
    """``time.monotonic`` of its arrival."""


class CameraReader:
    """Reads until it is stopped or the camera is lost."""

    def __init__(
        self, grabber: Grabber, *, every: int, keep: int, block: bool, open_timeout_s: float, stall_timeout_s: float
    ) -> None:
        """Args:
        keep: so many frames wait at most; beyond that the oldest is dropped.
        block: nothing is dropped, and the camera is not read while ``keep`` frames wait.
        """
        self.dropped = 0
        """Frames that came, or should have, and that nobody will take."""
        self._grabber, self._every, self._keep, self._block = grabber, every, keep, block
        self._open_timeout_s, self._stall_timeout_s = open_timeout_s, stall_timeout_s
        self._changed = threading.Condition()
        self._frames: deque[Shot] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._opened = self._silent = False
        self._grabbed = 0
        self._heard_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="agvas-camera", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._grabber.open()
            with self._changed:
                self._opened, self._heard_s = True, time.monotonic()
                self._changed.notify_all()
            while self._has_room():
                there = self._grabber.grab()
                if there is None:
                    continue
                taken_s = time.monotonic()
                start = time.perf_counter()
                picture = self._grabber.retrieve() if there and self._grabbed % self._every == 0 else None
                self._put(there, picture, (time.perf_counter() - start) * 1000, taken_s)
        except BaseException as caught:  # carried over to the consumer, which raises it
            error = caught
        finally:
            self._grabber.close()
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _has_room(self) -> bool:
        """Waits for room where it must; False once the reader is stopped."""
        with self._changed:
            while self._block and len(self._frames) >= self._keep and not self._closed:
                self._changed.wait(WAIT_S)
                self._heard_s = time.monotonic()  # its silence is ours
            return not self._closed

    def _put(self, there: bool, picture: NDArray[np.uint8] | Sent | ImageError | None, read_ms: float, taken_s: float) -> None:
        missed, self._grabber.missed = self._grabber.missed, 0
        with self._changed:
            self._heard_s = time.monotonic()
            self.dropped += missed
            if picture is not None:
                while len(self._frames) >= self._keep:
                    self._frames.popleft()
                    self.dropped += 1
                self._frames.append(Shot(self._grabbed, picture, read_ms, taken_s))
            self._grabbed += there
            self._changed.notify_all()

    def take(self) -> Shot | None:
        """The oldest frame that waits, waited for; None after ``stop``.

        Raises:
            SourceError: there is no camera, or it stopped and its frames are all taken.
        """
        with self._changed:
            while not self._frames and not self._closed:
                if self._error is not None:
                    self._raise_end(self._error)
                limit_s = self._stall_timeout_s if self._opened else self._open_timeout_s
                # The clock starts anew with each frame; a bit more than the grabber's own limit, whose reason says more.
                left_s = self._heard_s + limit_s + GRABBER_GRACE_S - time.monotonic()
                if left_s <= 0:
                    self._silent = True
                    self._raise_end(SourceError("it is silent"))
                self._changed.wait(left_s)
            if self._closed:
                return None
            shot = self._frames.popleft()
            self._changed.notify_all()
            return shot

    def fire(self) -> None:
        """Asks for a frame, where the camera waits to be asked."""
        self._grabber.fire()

    @property
    def format(self) -> str | None:
        """What the camera says of its pixels; None where it says nothing."""
        return getattr(self._grabber, "format", None) or None

    def _raise_end(self, error: BaseException) -> None:
        if not isinstance(error, SourceError):
            raise error
        if not self._opened:
            raise SourceError(
                f"not there: {error} (waited at most {self._open_timeout_s:g} s): check power, cable and address, "
                "and that no other program holds it"
            ) from error
        raise SourceError(
            f"stopped after {self._grabbed} frames: {error} (waited at most {self._stall_timeout_s:g} s): check cable and power; "
            "a station goes on by itself, a run is to be started again"
        ) from error

    def stop(self) -> None:
        """Ends the thread. A read under way ends by its own timeout; past that, the thread is left to end by itself, and so is one that
        hangs in a camera that fell silent: the camera may be back by then."""
        with self._changed:
            again, self._closed = self._closed, True
            self._changed.notify_all()
        if again:  # it was waited for once; a camera that hangs is not worth twice the time
            return
        if self._thread is not threading.current_thread():
            self._thread.join(SILENT_GRACE_S if self._silent else self._stall_timeout_s + CLOSE_GRACE_S)
