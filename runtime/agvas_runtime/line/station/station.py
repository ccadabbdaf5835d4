"""A station: each trigger gets exactly one verdict, at the latest at its deadline.

    station = Station("camera-0", ledger, inspector, follower.current)
    pending = station.offer(frame, key="trigger 4711")
    pending.wait().verdict

Three threads meet in a part: the one that offers it, the worker that looks at it, and the clock that gives it NO_VERDICT at its
deadline. The first to claim the part settles it. A verdict is published only after it is in the ledger.
"""

import heapq
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from agvas_core.contract.errors import AgvasError, LedgerError, SourceError, UnlikeError
from agvas_runtime.images.frame import Frame
from agvas_runtime.line.ledger.disk_reserve import DiskLevel
from agvas_runtime.line.ledger.images import ImageStore, hash_of_image, wanted
from agvas_runtime.line.ledger.ledger import Ledger
from agvas_runtime.line.ledger.part_result import Cause, PartResult, without_verdict
from agvas_runtime.line.recipe.file import RecipeVersion
from agvas_runtime.line.station.inspector import Inspection, Inspector, frame_fault
from agvas_runtime.masks.result import Verdict

__all__ = ["LatencyEstimate", "Outcome", "PendingPart", "Station"]


# How fast an engine has been, and so whether a part that waits can still have its verdict in time.


PARTS: Final = 20  # the fastest of the last so many says whether there is time left
FEWEST: Final = 3  # before so many are known, all are tried
DECAY: Final = 0.9  # a part given up for lack of time makes the next one more likely to be tried


class LatencyEstimate:
    """Of one station; for its worker alone."""

    def __init__(self) -> None:
        self._took_ms: deque[float] = deque(maxlen=PARTS)

    def took(self, milliseconds: float) -> None:
        """One part more was looked at."""
        self._took_ms.append(milliseconds)

    def has_time(self, elapsed_ms: float, deadline_ms: float) -> bool:
        """Whether a verdict in time is possible for a part that was triggered so long ago."""
        if len(self._took_ms) < FEWEST or elapsed_ms + min(self._took_ms) <= deadline_ms:
            return True
        self._took_ms.append(min(self._took_ms) * DECAY)
        return False


# A part on its way to its verdict, and what listeners get afterwards.


@dataclass(frozen=True)
class Outcome:
    """A part that has its verdict, for listeners."""

    seq: int
    station: str
    frame: Frame
    version: RecipeVersion
    result: PartResult
    inspection: Inspection | None = None


@dataclass
class PendingPart:
    """A part on its way to its verdict."""

    seq: int
    key: str
    """What asked for this part."""
    frame: Frame
    version: RecipeVersion
    began_s: float
    """Of ``time.monotonic``."""
    deadline_s: float
    known: dict[str, Any] = field(default_factory=dict)
    number: int = 0
    """Counts the parts of its station."""
    result: PartResult | None = None
    claimed: bool = False
    awaited: bool = False
    """Its frame is still to come; until then ``frame`` says so."""
    done: threading.Event = field(default_factory=threading.Event)

    def wait(self, timeout_s: float | None = None) -> PartResult | None:
        """The verdict once it is in the ledger; None where it took longer than ``timeout_s``, or its station failed."""
        self.done.wait(timeout_s)
        return self.result

    @property
    def elapsed_ms(self) -> float:
        """Since the trigger."""
        return (time.monotonic() - self.began_s) * 1000


QUEUE_PARTS: Final = 64  # that wait for the engine, with their images in memory


class Station:
    """Takes triggers with their frames. Threads may share it."""

    def __init__(
        self,
        name: str,
        ledger: Ledger,
        inspector: Inspector,
        recipe: Callable[[], RecipeVersion],
        *,
        images: ImageStore | None = None,
        queue_parts: int = QUEUE_PARTS,
        listeners: tuple[Callable[[Outcome], None], ...] = (),
    ) -> None:
        """Args:
        recipe: gives the recipe for a part that comes now; the inspector is ready for it.
        listeners: called with each part after it is in the ledger, by the thread that settled it; they must be quick.
        """
        self.name = name
        self.failure: BaseException | None = None
        """What the station failed of: a bug, or a ledger that cannot be written. It takes no more triggers then."""
        self._ledger, self._inspector, self._recipe, self._images = ledger, inspector, recipe, images
        self._listeners = listeners
        self.queue_parts = queue_parts
        """How many may wait."""
        self._changed, self._offering = threading.Condition(), threading.Lock()
        self._queue: deque[PendingPart] = deque()
        self._deadlines: list[tuple[float, int]] = []
        self._open: dict[int, PendingPart] = {}
        self._latency = LatencyEstimate()
        self._closing = False
        self._count = int(ledger.read("SELECT COUNT(*) FROM parts WHERE station = ?", (name,))[0][0])
        ledger.know_engine(inspector.identity, inspector.facts)
        self._threads = [
            threading.Thread(target=self._guarded, args=(target,), name=f"agvas-{name}-{what}", daemon=True)
            for what, target in (("worker", self._work), ("clock", self._watch_deadlines))
        ]
        for thread in self._threads:
            thread.start()

    def offer(
        self, frame: Frame, *, key: str, began_s: float | None = None, dropped: int = 0, block: bool = False
    ) -> PendingPart:
        """Takes a trigger; it is in the ledger when this returns.

        Args:
            key: what asked for this part, unique at this station; offered again, the same part comes back.
            began_s: ``time.monotonic`` of the trigger, now where None.
            dropped: frames of the camera that were not taken since the part before.
            block: wait while the queue is full; else such a part has NO_VERDICT at once.

        Raises:
            LedgerError: it cannot be written down, so it was not taken; or the station has failed.
        """
        self._refuse_if_ended()
        began_s = time.monotonic() if began_s is None else began_s
        version = self._recipe()
        known = self._known_of(frame, version)
        pending, new = self._opened(frame, version, known, key, began_s, dropped)
        if new:
            self._admit(pending, block=block)
        return pending

    def expect(self, key: str, *, began_s: float | None = None) -> PendingPart:
        """Takes a trigger whose frame is still to come; it is in the ledger, and its deadline runs, when this returns.

        ``supply`` brings the frame. Without one the part is NO_VERDICT at its deadline, its source being the cause. Arguments, errors and
        what comes of a key that was there before are as in ``offer``.
        """
        self._refuse_if_ended()
        began_s = time.monotonic() if began_s is None else began_s
        none_yet = Frame(key, 0, error=SourceError("no frame came for this trigger"), trigger=key)
        version = self._recipe()
        known = {"frame": key, "recipe": version.sha256, "engine": self._inspector.identity}
        return self._opened(none_yet, version, known, key, began_s, 0, awaited=True)[0]

    def supply(self, pending: PendingPart, frame: Frame) -> None:
        """Brings the frame of a part that was expected; too late, it is for nothing."""
        known = self._known_of(frame, pending.version)
        with self._changed:
            if pending.claimed or not pending.awaited:
                return
            pending.frame, pending.known, pending.awaited = frame, known, False
        self._admit(pending, block=False)

    def _refuse_if_ended(self) -> None:
        if self.failure is not None or self._closing:
            raise LedgerError(f"station {self.name} takes no more parts: {self.failure or 'it is closing'}") from self.failure

    def _opened(
        self,
        frame: Frame,
        version: RecipeVersion,
        known: dict[str, Any],
        key: str,
        began_s: float,
        dropped: int,
        awaited: bool = False,
    ) -> tuple[PendingPart, bool]:
        """The part of a trigger, and whether it is a new one."""
        with self._offering:
            opened = self._ledger.open_part(
                self.name, key, deadline_ms=version.recipe.deadline_ms, dropped=dropped, frame=known["frame"]
            )
            if not opened.new:
                return self._earlier(opened.seq, key, frame, version, began_s), False
            deadline_s = began_s + version.recipe.deadline_ms / 1000
            pending = PendingPart(opened.seq, key, frame, version, began_s, deadline_s, known, awaited=awaited)
            with self._changed:
                self._count += 1
                pending.number = self._count
                self._open[pending.seq] = pending
                heapq.heappush(self._deadlines, (pending.deadline_s, pending.seq))
                self._changed.notify_all()
        return pending, True

    def _known_of(self, frame: Frame, version: RecipeVersion) -> dict[str, Any]:
        """What the ledger stores of a part, with or without a verdict."""
        known: dict[str, Any] = {"frame": frame.name, "recipe": version.sha256, "engine": self._inspector.identity}
        if frame.image is not None:
            height, width = frame.image.shape[:2]
            known |= {"image_sha256": hash_of_image(frame.image), "height": height, "width": width}
        return known

    def _admit(self, pending: PendingPart, *, block: bool) -> None:
        """Into the queue, or to its NO_VERDICT where it need not be looked at."""
        fault = frame_fault(pending.frame, pending.version)
        if fault is not None:
            self._settle_without(pending, Cause.SOURCE, fault)
        elif self._ledger.reserve.level() is DiskLevel.NO_VERDICTS:
            free = self._ledger.reserve.free_mb
            self._settle_without(pending, Cause.DISK, f"{free:.0f} MB are free, which is kept for the ledger: free some space")
        else:
            with self._changed:
                while block and len(self._queue) >= self.queue_parts and not pending.claimed and self.failure is None:
                    self._changed.wait(0.1)
                full = len(self._queue) >= self.queue_parts
                if not full:
                    self._queue.append(pending)
                    self._changed.notify_all()
            if full:
                self._settle_without(
                    pending, Cause.DEADLINE, f"{self.queue_parts} parts wait already: they come faster than the engine"
                )

    def _earlier(self, seq: int, key: str, frame: Frame, version: RecipeVersion, began_s: float) -> PendingPart:
        """The part of a trigger that came before: still under way, or with the verdict that stands."""
        with self._changed:
            if (pending := self._open.get(seq)) is not None:
                return pending
        ((verdict, cause, detail, decided_ms, score, findings, broken),) = self._ledger.read(
            "SELECT verdict, cause, detail, decided_ms, score, findings, broken FROM parts WHERE seq = ?", (seq,)
        )
        pending = PendingPart(seq, key, frame, version, began_s, began_s, claimed=True)
        pending.result = PartResult(
            Verdict(verdict),
            decided_ms,
            Cause(cause) if cause else None,
            detail,
            score=score,
            findings=tuple(json.loads(findings)),
            broken=tuple(json.loads(broken)),
        )
        pending.done.set()
        return pending

    @property
    def waiting(self) -> int:
        """Parts in the queue."""
        return len(self._queue)

    def close(self) -> None:
        """Takes no more triggers, gives all that were taken their verdict, and ends. May be called twice."""
        with self._changed:
            self._closing = True
            awaited = [pending for pending in self._open.values() if pending.awaited]
            self._changed.notify_all()
        for pending in awaited:
            self._settle_without(pending, Cause.SOURCE, "the station ended before a frame came for this trigger")
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (pending := self._next()) is not None:
            if pending.claimed or not self._has_time(pending):
                continue
            began = time.perf_counter()
            try:
                inspection = self._inspector.inspect(pending.frame, pending.version)
            except AgvasError as error:
                # What is unlike the product is no fault of the engine: the part, the camera or the light is not what it was.
                cause = Cause.SOURCE if isinstance(error, UnlikeError) else Cause.ENGINE
                self._settle_without(pending, cause, str(error))
                continue
            self._latency.took((time.perf_counter() - began) * 1000)
            self._settle_with(pending, inspection)

    def _next(self) -> PendingPart | None:
        with self._changed:
            while not self._queue:
                if self._closing or self.failure is not None:
                    return None
                self._changed.wait()
            pending = self._queue.popleft()
            self._changed.notify_all()
            return pending

    def _has_time(self, pending: PendingPart) -> bool:
        """Whether a verdict in time is possible. Where others wait, a part that would be late is left to the clock: looking at it even so
        would make the next one late, too."""
        return not self._queue or self._latency.has_time(pending.elapsed_ms, pending.version.recipe.deadline_ms)

    def _watch_deadlines(self) -> None:
        while True:
            with self._changed:
                while self._deadlines and (first := self._open.get(self._deadlines[0][1])) is None:
                    heapq.heappop(self._deadlines)
                if not self._deadlines:
                    if self._closing or self.failure is not None:
                        return
                    self._changed.wait()
                    continue
                left_s = self._deadlines[0][0] - time.monotonic()
                if left_s > 0 and self.failure is None:
                    self._changed.wait(left_s)
                    continue
                first = self._open[heapq.heappop(self._deadlines)[1]]
            if self.failure is not None:
                self._settle_without(first, Cause.ENGINE, f"the station failed: {self.failure}")
            elif first.awaited:
                deadline_ms = first.version.recipe.deadline_ms
                self._settle_without(first, Cause.SOURCE, f"the camera gave no frame within {deadline_ms:g} ms of the trigger")
            else:
                self._settle_without(first, Cause.DEADLINE, f"no verdict within {first.version.recipe.deadline_ms:g} ms")

    def _settle_with(self, pending: PendingPart, inspection: Inspection) -> None:
        recipe, judgement = pending.version.recipe, inspection.judgement
        with self._changed:
            decided_ms = pending.elapsed_ms
            if pending.claimed or decided_ms > recipe.deadline_ms:
                return  # the clock has it, or will have it at once
            pending.claimed = True
        end = PartResult(
            judgement.verdict,
            decided_ms,
            score=judgement.reject_score,
            findings=tuple(finding.to_dict(recipe.mm_per_px) for finding in judgement.findings),
            broken=judgement.broken,
            bundle=inspection.bundle,
            timing=inspection.timing,
            **pending.known,
        )
        self._write_down(pending, end, inspection)

    def _settle_without(self, pending: PendingPart, cause: Cause, detail: str) -> None:
        with self._changed:
            if pending.claimed:
                return
            pending.claimed = True
        self._write_down(pending, without_verdict(cause, detail, pending.elapsed_ms, **pending.known), None)

    def _write_down(self, pending: PendingPart, end: PartResult, inspection: Inspection | None) -> None:
        try:
            self._ledger.settle(pending.seq, end)
        except BaseException as error:
            self._fail(error)
            pending.done.set()
            raise
        finally:
            with self._changed:
                self._open.pop(pending.seq, None)
                if self._closing or self.failure is not None:
                    self._changed.notify_all()  # the clock need not wait for this part's deadline
        image, keep = pending.frame.image, pending.version.recipe.keep
        if self._images is not None and image is not None and wanted(keep, end.verdict, pending.number):
            self._images.offer(pending.seq, image, end.verdict, max_gb=keep.max_gb)
        pending.result = end
        pending.done.set()
        for listener in self._listeners:
            listener(Outcome(pending.seq, self.name, pending.frame, pending.version, end, inspection))

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:  # ends the line; the deadline thread gives open parts their NO_VERDICT
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self.failure = self.failure or error
            self._changed.notify_all()
