"""Feeds a station from a source: every frame is a part, or the one after a trigger; a lost source is reopened until it works."""

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from typing import Final

from agvas_core.contract.errors import ImageError, SourceError
from agvas_runtime.back_off import BackOff
from agvas_runtime.images.frame import Frame
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.station.station import PendingPart, Station
from agvas_runtime.sources.folder_watch import file_key
from agvas_runtime.sources.protocol import Source

__all__ = ["QueuePolicy", "SourceLoop"]


# What happens while frames come faster than they are judged, by name.


class QueuePolicy(StrEnum):
    """Whatever goes unseen is counted, and stands in the ledger with the part that follows."""

    EVERY = "every"
    """Each frame is a part. One that finds no room is NO_VERDICT; files wait. For files and triggers."""
    LATEST = "latest"
    """The newest frame counts, and those that it replaces are dropped. For a camera that runs free."""
    BLOCK = "block"
    """The source, or the trigger, waits."""


log = logging.getLogger("agvas.line")

BACK_OFF_S: Final = (0.1, 0.7)  # first and longest wait for a source that was lost
LOOK_S: Final = 0.1  # how often a wait looks whether it is to stop


class SourceLoop:
    """One source and its station. One thread runs it; any may ``fire``."""

    def __init__(
        self,
        station: Station,
        ledger: Ledger,
        open_source: Callable[[], Source],
        *,
        policy: QueuePolicy | None = None,
        triggered: bool = False,
    ) -> None:
        """Args:
        open_source: called again after the source was lost.
        policy: ``latest`` for a camera that runs free, ``every`` for all else, where None.
        triggered: frames count only where ``fire`` asked for one.
        """
        self.frames = 0
        self.parts = 0
        """Frames that became parts."""
        self.dropped = 0
        """Frames of the camera that were not taken."""
        self.lost = False
        """Whether the source is away at this moment."""
        self.triggered = triggered
        self._station, self._ledger, self._open_source, self._policy = station, ledger, open_source, policy
        self._session = uuid.uuid4().hex[:12]
        self._format: tuple[int, int, str | None] | None = None
        self._openings = 0
        self._mutex = threading.Lock()
        self._expected: deque[PendingPart] = deque()
        self._source: Source | None = None
        self._unwritten = 0  # frames dropped since the last part

    def run(self, stop: threading.Event, *, limit: int | None = None) -> None:
        """Until ``stop`` is set, ``limit`` parts were given their frame, or a source that ends has ended.

        Raises:
            LedgerError: the station takes no more triggers.
        """
        back_off = BackOff(*BACK_OFF_S)
        while not stop.is_set():
            before = self.frames
            try:
                self._openings += 1
                with self._open_source() as source:
                    self._source = source
                    self._drain(source, stop, limit)
                    if not source.live or (limit is not None and self.parts >= limit):
                        break
                continue
            except SourceError as error:
                if not self.lost:
                    self.lost = True
                    self._note("source-lost", str(error))
            finally:
                self._source = None
            if self.frames > before:
                back_off.reset()
            back_off.wait(stop)
        if self._unwritten:
            self._note("dropped", f"{self._unwritten} frames after the last part")

    def fire(self, key: str | None = None) -> PendingPart:
        """Asks for a part: the first frame that arrives from now on is its own alone.

        Args:
            key: what asks, unique at this station; sent again, the part is the one that is there. A random one where None.

        Raises:
            LedgerError: it cannot be written down, so it was not taken.
        """
        began_s = time.monotonic()
        while self._policy is QueuePolicy.BLOCK and self._station.waiting and self._station.failure is None:
            time.sleep(0.005)
        pending = self._station.expect(uuid.uuid4().hex if key is None else key, began_s=began_s)
        with self._mutex:
            if not pending.awaited or any(pending is other for other in self._expected):
                return pending
            self._expected.append(pending)
        source = self._source
        if source is not None and hasattr(source, "fire"):
            source.fire()
        return pending

    def _drain(self, source: Source, stop: threading.Event, limit: int | None) -> None:
        dropped_here = 0
        before: PendingPart | None = None
        policy = self._policy or (QueuePolicy.LATEST if source.live else QueuePolicy.EVERY)
        for frame in self._until(source, stop):
            if self.lost:
                self.lost = False
                self._note("source-back", frame.name)
            self.frames += 1
            frame = self._as_before(frame, source)
            if self.triggered:
                self._give(frame)
            else:
                dropped = getattr(source, "dropped", 0)
                self.dropped += dropped - dropped_here
                self._unwritten += dropped - dropped_here
                dropped_here = dropped
                waits = policy is QueuePolicy.BLOCK or not source.live
                if waits and before is not None:
                    self._wait_for(before)
                key = self._key(frame)
                before = self._station.offer(frame, key=key, began_s=frame.taken_s, dropped=self._unwritten, block=waits)
                self.parts += 1
                self._unwritten = 0
                if policy is QueuePolicy.LATEST and source.live:
                    self._wait_for(before)  # the next frame is taken when this one is done
            if limit is not None and self.parts >= limit:
                return

    def _wait_for(self, pending: PendingPart) -> None:
        while not pending.done.wait(LOOK_S) and self._station.failure is None:
            pass

    def _give(self, frame: Frame) -> None:
        """A frame to the part that has waited longest, if it was asked for before the frame came."""
        taken_s = time.monotonic() if frame.taken_s is None else frame.taken_s
        with self._mutex:
            while self._expected and self._expected[0].claimed:  # given up at its deadline
                self._expected.popleft()
            if not self._expected or self._expected[0].began_s > taken_s:
                return
            pending = self._expected.popleft()
        self.parts += 1
        self._station.supply(pending, frame)

    def _until(self, source: Source, stop: threading.Event) -> Iterator[Frame]:
        """Frames until ``stop``; a camera that is silent at that moment is closed from beside."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(LOOK_S):
                if stop.is_set():
                    source.close()
                    return

        watcher = threading.Thread(target=watch, name="agvas-stop", daemon=True)
        watcher.start()
        try:
            for frame in source:
                if stop.is_set():
                    return
                yield frame
        finally:
            ended.set()
            watcher.join()

    def _key(self, frame: Frame) -> str:
        """What makes this trigger one and the same, when it is offered again after a kill."""
        if frame.trigger is not None:
            return frame.trigger
        if frame.path is not None and frame.error is None:
            with suppress(OSError):  # gone since it was read
                found = frame.path.stat()
                return file_key(frame.path, (found.st_mtime_ns, found.st_size))
        return f"{self._session}/{self._openings}/{frame.name}"

    def _as_before(self, frame: Frame, source: Source) -> Frame:
        """A camera that comes back with other pixels, or another picture size, is at fault: its frame is an error."""
        if frame.image is None or frame.path is not None:
            return frame
        height, width = frame.image.shape[:2]
        found = (width, height, getattr(source, "format", None))
        self._format = self._format or found
        if found == self._format:
            return frame
        now, then = (f"{wide}x{high} px" + (f" {pixels}" if pixels else "") for wide, high, pixels in (found, self._format))
        error = ImageError(f"{frame.name} is {now} and the camera began with {then}: set it back, or start the station again")
        return replace(frame, image=None, error=error)

    def _note(self, kind: str, detail: str) -> None:
        log.warning("%s: %s: %s", self._station.name, kind, detail)
        self._ledger.event(self._station.name, kind, detail)
