"""What a page shows of a line: for each station the newest part, the last rejects, counts; for all of them disk and sinks.

A listener of every station. It keeps references and counts, and draws nothing but rejects, in a thread of its own; the newest part is
drawn when the page is open. What was before this run comes from the ledger, over a connection that no verdict waits for.
"""

import json
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from agvas_core.contract.errors import UsageError
from agvas_runtime.line.ledger.check import open_for_reading
from agvas_runtime.line.ledger.images import SIDE_PX, THUMB_PX, drawn, mask_of_findings, read_kept
from agvas_runtime.line.ledger.part_result import Cause
from agvas_runtime.line.station.station import Outcome
from agvas_runtime.masks.result import Verdict

__all__ = ["BOUNDS_MS", "MINUTES", "LineFacts", "LineStatus", "SinkFacts", "StationFacts", "StationStats"]


# What a person beside the line wants to know of a station's last parts: how many, how fast, which share is good.


MINUTES: Final = 60
PARTS: Final = 1000  # whose times make the histogram
RATE_S: Final = 60.0
ORDER: Final = (Verdict.PASS, Verdict.FAIL, Verdict.NO_VERDICT)
BOUNDS_MS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
"""Upper ends of the histogram's bars; one more is for what took longer."""


class StationStats:
    """Counts the parts of one station. Not for several threads at once."""

    def __init__(self, clock: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        """``clock``: Unix time. ``steady``: monotonic seconds, for the rate."""
        self._clock, self._steady = clock, steady
        self._began_s = steady()
        self._run: Counter[Verdict] = Counter()
        self._causes: Counter[Cause] = Counter()
        self._minutes: dict[int, list[int]] = {}  # Unix minute -> parts by ORDER
        self._times_ms: deque[float] = deque(maxlen=PARTS)
        self._recent_s: deque[float] = deque()

    def add(self, verdict: Verdict, cause: Cause | None, decided_ms: float) -> None:
        """Counts a part that has its verdict now."""
        self._run[verdict] += 1
        if cause is not None:
            self._causes[cause] += 1
        self._recent_s.append(self._steady())
        self._forget()
        self.add_earlier(verdict, decided_ms, self._clock())

    def add_earlier(self, verdict: Verdict, decided_ms: float, at_s: float) -> None:
        """Counts a part of a run before, for the hour and the histogram alone."""
        minute = int(at_s // 60)
        self._minutes.setdefault(minute, [0] * len(ORDER))[ORDER.index(verdict)] += 1
        self._times_ms.append(decided_ms)

    def figures(self) -> dict[str, Any]:
        """All of it, for the page: counts in the order PASS, FAIL, NO_VERDICT."""
        self._forget()
        last = int(self._clock() // 60)
        minutes = [self._minutes.get(minute, [0] * len(ORDER)) for minute in range(last - MINUTES + 1, last + 1)]
        hour = [sum(minute[index] for minute in minutes) for index in range(len(ORDER))]
        times = np.array(self._times_ms)
        return {
            "run": [self._run[verdict] for verdict in ORDER],
            "causes": {str(cause): count for cause, count in sorted(self._causes.items())},
            "hour": hour,
            "yield": hour[0] / sum(hour) if sum(hour) else None,
            "minutes": minutes,
            "per_minute": len(self._recent_s) * 60 / max(1.0, min(RATE_S, self._steady() - self._began_s)),
            "latency": {
                "bounds_ms": BOUNDS_MS,
                "counts": np.bincount(np.searchsorted(BOUNDS_MS, times), minlength=len(BOUNDS_MS) + 1).tolist(),
                **{f"p{share}_ms": float(np.percentile(times, share)) if len(times) else None for share in (50, 99)},
            },
        }

    def _forget(self) -> None:
        while self._recent_s and self._recent_s[0] < self._steady() - RATE_S:
            self._recent_s.popleft()
        if len(self._minutes) > 2 * MINUTES:
            oldest = int(self._clock() // 60) - MINUTES
            self._minutes = {minute: counts for minute, counts in self._minutes.items() if minute > oldest}


REJECTS: Final = 12
EARLIER_PARTS: Final = 50_000  # of a run before that are looked at, at most
TREND: Final = 120  # parts whose scores are drawn
EVENTS: Final = 8
UNDRAWN: Final = 32


@dataclass(frozen=True)
class StationFacts:
    """A station at this moment."""

    recipe: str
    engine: str
    deadline_ms: float
    source_up: bool
    dropped: int
    """Frames of the camera that were not taken, since the start."""
    waiting: int
    """Parts that wait for the engine, of ``queue_parts``."""
    queue_parts: int
    drift: str | None = None
    """What has drifted, in words."""
    dirty: bool = False
    failure: str | None = None
    concern: str | None = None
    """What a person must know of the recipe: its thresholds are not its product's."""


@dataclass(frozen=True)
class SinkFacts:
    """A sink at this moment."""

    name: str
    pending: int
    error: str | None = None


@dataclass(frozen=True)
class LineFacts:
    """What all stations share."""

    disk_free_mb: float
    disk_level: int
    """0 fine, 1 no images, 2 no verdicts."""
    sinks: tuple[SinkFacts, ...] = ()


@dataclass
class _Shown:
    facts: Callable[[], StationFacts]
    stats: StationStats = field(default_factory=StationStats)
    newest: Outcome | None = None
    newest_row: dict[str, Any] | None = None
    rejects: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=REJECTS))
    trend: deque[tuple[float, float, str]] = field(default_factory=lambda: deque(maxlen=TREND))
    """Score, threshold and verdict of the last parts that were judged, oldest first."""
    pictures: dict[tuple[int, bool, int], bytes] = field(default_factory=dict)


class LineStatus:
    """The stations of one line, in the order in which they were added. Threads may share it."""

    def __init__(self, folder: Path, line: Callable[[], LineFacts]) -> None:
        """Args:
        folder: of the ledger, which is there.
        line: asked each time for what all stations share.
        """
        self._folder, self._line = folder, line
        self._mutex = threading.Lock()
        self._stations: dict[str, _Shown] = {}
        self._undrawn: queue.Queue[Outcome | None] = queue.Queue(UNDRAWN)
        self.version = 0
        """Counts what has changed."""
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._draw_rejects, name="agvas-status", daemon=True)
        self._thread.start()

    def add_station(self, name: str, facts: Callable[[], StationFacts]) -> None:
        """Shows a station from now on, with what the ledger knows of its last hour."""
        shown = _Shown(facts)
        self._recall(name, shown)
        with self._mutex:
            self._stations[name] = shown
            self.version += 1

    def __call__(self, outcome: Outcome) -> None:
        """Takes one part."""
        end = outcome.result
        threshold = outcome.inspection.threshold if outcome.inspection is not None else None
        row = {
            "seq": outcome.seq,
            "at_s": time.time(),
            "frame": outcome.frame.name,
            "verdict": str(end.verdict),
            "why": end.why,
            "score": end.score,
            "threshold": threshold,
            "findings": len(end.findings),
            "decided_ms": end.decided_ms,
            "recipe": outcome.version.identity,
            "picture": outcome.frame.image is not None,
        }
        with self._mutex:
            shown = self._stations.get(outcome.station)
            if shown is None:
                return
            shown.stats.add(end.verdict, end.cause, end.decided_ms)
            shown.newest, shown.newest_row = outcome, row
            if end.score is not None and threshold is not None:
                shown.trend.append((end.score, threshold, str(end.verdict)))
            if end.verdict is Verdict.FAIL:
                shown.rejects.appendleft(row)
            self.version += 1
        if end.verdict is Verdict.FAIL and outcome.frame.image is not None:
            with suppress(queue.Full):  # its picture is on disk then, where the recipe keeps rejects
                self._undrawn.put_nowait(outcome)

    def state(self) -> dict[str, Any]:
        """All that the page shows but pictures, as JSON has it."""
        facts = {name: asdict(shown.facts()) for name, shown in list(self._stations.items())}
        with closing(open_for_reading(self._folder)) as db:
            events = db.execute("SELECT utc, station, kind, detail FROM events ORDER BY id DESC LIMIT ?", (EVENTS,)).fetchall()
        line = asdict(self._line())
        with self._mutex:
            return {
                "version": self.version,
                "now_s": time.time(),
                "line": line,
                "stations": [
                    {
                        "name": name,
                        "facts": facts[name],
                        "newest": shown.newest_row,
                        "rejects": list(shown.rejects),
                        "trend": list(shown.trend),
                        **shown.stats.figures(),
                    }
                    for name, shown in self._stations.items()
                    if name in facts
                ],
                "events": [dict(zip(("utc", "station", "kind", "detail"), row, strict=True)) for row in events],
            }

    def newest(self, station: str, *, masked: bool, thumb: bool = False) -> tuple[dict[str, Any], bytes | None]:
        """The newest part and its picture as JPEG; None where it has none.

        Raises:
            UsageError: there is no such station, or it had no part yet.
        """
        with self._mutex:
            shown = self._shown(station)
            outcome, row = shown.newest, shown.newest_row
        if outcome is None or row is None:
            raise UsageError(f"station {station} has had no part yet")
        return row, self._picture(shown, outcome, masked=masked, side_px=THUMB_PX if thumb else SIDE_PX, keep=False)

    def picture(self, station: str, seq: int, *, masked: bool, thumb: bool = False) -> bytes:
        """A part's picture as JPEG: of this run's rejects at once, of others from the images that are kept.

        Raises:
            UsageError: it is not kept.
        """
        side_px = THUMB_PX if thumb else SIDE_PX
        with self._mutex:
            shown = self._shown(station)
            found = shown.pictures.get((seq, masked, side_px))
            outcome = shown.newest
        if found is not None:
            return found
        if outcome is not None and outcome.seq == seq:
            picture = self._picture(shown, outcome, masked=masked, side_px=side_px, keep=False)
            if picture is not None:
                return picture
        return self._from_disk(station, seq, masked=masked, side_px=side_px)

    def close(self) -> None:
        """Ends the thread."""
        if self._thread.is_alive():
            self._undrawn.put(None)
            self._thread.join()

    def _shown(self, station: str) -> _Shown:
        if station not in self._stations:
            raise UsageError(f"there is no station {station!r}; there is {', '.join(self._stations) or 'none yet'}")
        return self._stations[station]

    def _picture(self, shown: _Shown, outcome: Outcome, *, masked: bool, side_px: int, keep: bool) -> bytes | None:
        key, image = (outcome.seq, masked, side_px), outcome.frame.image
        if image is None:
            return None
        with self._mutex:
            if (found := shown.pictures.get(key)) is not None:
                return found
        mask = outcome.inspection.judgement.mask if masked and outcome.inspection is not None else None
        picture = drawn(image, mask, side_px=side_px)
        if keep:
            with self._mutex:
                shown.pictures[key] = picture
        return picture

    def _draw_rejects(self) -> None:
        try:
            while (outcome := self._undrawn.get()) is not None:
                shown = self._stations[outcome.station]
                for masked, side_px in ((True, THUMB_PX), (True, SIDE_PX), (False, SIDE_PX)):
                    self._picture(shown, outcome, masked=masked, side_px=side_px, keep=True)
                with self._mutex:
                    current = {row["seq"] for row in shown.rejects}
                    shown.pictures = {key: picture for key, picture in shown.pictures.items() if key[0] in current}
        except BaseException as error:  # raised again in the line's main thread
            self.failure = error

    def _from_disk(self, station: str, seq: int, *, masked: bool, side_px: int) -> bytes:
        with closing(open_for_reading(self._folder)) as db:
            row = db.execute(
                "SELECT image_path, findings FROM parts WHERE seq = ? AND station = ? AND image_state = 'kept'", (seq, station)
            ).fetchone()
        image = read_kept(self._folder, row[0]) if row is not None else None
        if image is None:
            raise UsageError(f"the image of part {seq} is not kept: see keep in the recipe")
        return drawn(image, mask_of_findings(row[1], *image.shape[:2]) if masked else None, side_px=side_px)

    def _recall(self, station: str, shown: _Shown) -> None:
        now = time.time()
        with closing(open_for_reading(self._folder)) as db:
            since = "station = ? AND verdict IS NOT NULL AND seq > (SELECT COALESCE(MAX(seq), 0) FROM parts) - ?"
            for settled, verdict, decided_ms in db.execute(
                f"SELECT settled_utc, verdict, decided_ms FROM parts WHERE {since} ORDER BY seq", (station, EARLIER_PARTS)
            ):
                at_s = datetime.fromisoformat(settled).timestamp()
                if now - at_s < 60 * (MINUTES - 1):
                    shown.stats.add_earlier(Verdict(verdict), decided_ms, at_s)
            for row in db.execute(
                f"SELECT seq, settled_utc, frame, broken, score, json_array_length(findings), decided_ms, image_state FROM parts WHERE {since} "
                "AND verdict = 'FAIL' ORDER BY seq DESC LIMIT ?",
                (station, EARLIER_PARTS, REJECTS),
            ):
                shown.rejects.append(_earlier_reject(row))


def _earlier_reject(row: tuple[Any, ...]) -> dict[str, Any]:
    seq, settled, frame, broken, score, findings, decided_ms, image_state = row
    return {
        "seq": seq,
        "at_s": datetime.fromisoformat(settled).timestamp(),
        "frame": frame,
        "verdict": "FAIL",
        "why": ", ".join(json.loads(broken)),
        "score": score,
        "threshold": None,
        "findings": findings,
        "decided_ms": decided_ms,
        "picture": image_state == "kept",
    }
