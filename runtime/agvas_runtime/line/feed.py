"""From a source to a station: every frame a trigger, and a source that is lost is opened again for as long as it takes."""

import logging
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from agvas_core.contract.errors import ImageError, SourceError
from agvas_runtime.frame import Frame
from agvas_runtime.line.ledger import Ledger
from agvas_runtime.line.station import Station
from agvas_runtime.sources.protocol import Source

__all__ = ["Feed"]

log = logging.getLogger("agvas.line")

BACK_OFF_S: Final = (0.1, 1.5)  # first and longest wait; each time twice as long, and a random half of it
LOOK_S: Final = 0.1  # how often a wait looks whether it is to stop


class Feed:
    """One source and its station."""

    def __init__(self, station: Station, ledger: Ledger, open_source: Callable[[], Source]) -> None:
        """``open_source`` is called again after the source was lost."""
        self.frames = 0
        self.dropped = 0
        """Frames that the camera gave and nobody took."""
        self.lost = False
        """Whether the source is away at this moment."""
        self._station, self._ledger, self._open_source = station, ledger, open_source
        self._session = uuid.uuid4().hex[:12]
        self._size: tuple[int, int] | None = None
        self._openings = 0
        self._random = random.Random()

    def run(self, stop: threading.Event, *, limit: int | None = None) -> None:
        """Until ``stop`` is set, ``limit`` frames came, or a source that is not live ends.

        Raises:
            LedgerError: the station takes no more triggers.
        """
        wait_s = BACK_OFF_S[0]
        while not stop.is_set():
            before = self.frames
            try:
                self._openings += 1
                with self._open_source() as source:
                    self._drain(source, stop, limit)
                    if not source.live or (limit is not None and self.frames >= limit):
                        return
                continue
            except SourceError as error:
                if not self.lost:
                    self.lost = True
                    self._note("source-lost", str(error))
            if self.frames > before:
                wait_s = BACK_OFF_S[0]
            stop.wait(wait_s * self._random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, BACK_OFF_S[1])

    def _drain(self, source: Source, stop: threading.Event, limit: int | None) -> None:
        dropped_here = 0
        for frame in self._until(source, stop):
            if self.lost:
                self.lost = False
                self._note("source-back", frame.name)
            dropped = getattr(source, "dropped", 0)
            new, dropped_here = dropped - dropped_here, dropped
            self.dropped += new
            self.frames += 1
            ticket = self._station.offer(
                self._same_size(frame), key=self._key(frame), began_s=frame.taken_s, dropped=new, block=not source.live
            )
            if (
                source.live and frame.trigger is None
            ):  # free-running: the newest frame counts, so the next is taken when this one is done
                while not ticket.done.wait(LOOK_S) and self._station.failure is None:
                    pass
            if limit is not None and self.frames >= limit:
                return

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
            found = frame.path.stat()
            return f"{frame.path.resolve()} {found.st_mtime_ns} {found.st_size}"
        return f"{self._session}/{self._openings}/{frame.name}"

    def _same_size(self, frame: Frame) -> Frame:
        """A camera that comes back with another picture is at fault: its frame is an error."""
        if frame.image is None or frame.path is not None:
            return frame
        size = (frame.image.shape[1], frame.image.shape[0])
        self._size = self._size or size
        if size == self._size:
            return frame
        error = ImageError(
            f"{frame.name} is {size[0]}x{size[1]} px and the camera began with {self._size[0]}x{self._size[1]}: set it back, or "
            "start the station again"
        )
        return replace(frame, image=None, error=error)

    def _note(self, kind: str, detail: str) -> None:
        log.warning("%s: %s: %s", self._station.name, kind, detail)
        self._ledger.event(self._station.name, kind, detail)
