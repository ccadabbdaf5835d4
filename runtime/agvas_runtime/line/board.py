"""What a page shows of a line: for each station the newest part, the last rejects, counts; for all of them disk and sinks.

A listener of every station. It keeps references and counts, and draws nothing but rejects, in a thread of its own; the newest part is
drawn when somebody looks. What was before this run comes from the ledger, over a connection that no verdict waits for.
"""

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from agvas_core.contract.errors import UsageError
from agvas_runtime.line.image_store import read_kept
from agvas_runtime.line.ledger_check import open_for_reading
from agvas_runtime.line.part_picture import SIDE_PX, THUMB_PX, drawn, mask_of_findings
from agvas_runtime.line.station import Outcome
from agvas_runtime.line.tally import MINUTES, Tally
from agvas_runtime.result import Verdict

__all__ = ["Board", "LineFacts", "SinkFacts", "StationFacts"]

REJECTS: Final = 12
EARLIER_PARTS: Final = 50_000  # of a run before that are looked at, at most
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
    """Frames that the camera gave and nobody took, since the start."""
    waiting: int
    """Parts that wait for the engine, of ``queue_parts``."""
    queue_parts: int
    drift: str | None = None
    """What has drifted, in words."""
    dirty: bool = False
    failure: str | None = None


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
    tally: Tally = field(default_factory=Tally)
    newest: Outcome | None = None
    newest_row: dict[str, Any] | None = None
    rejects: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=REJECTS))
    pictures: dict[tuple[int, bool, int], bytes] = field(default_factory=dict)


class Board:
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
        self._thread = threading.Thread(target=self._draw_rejects, name="agvas-board", daemon=True)
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
        end = outcome.settlement
        row = {
            "seq": outcome.seq,
            "at_s": time.time(),
            "frame": outcome.frame.name,
            "verdict": str(end.verdict),
            "why": f"{end.cause}: {end.detail}" if end.cause else ", ".join(end.broken),
            "score": end.score,
            "findings": len(end.findings),
            "decided_ms": end.decided_ms,
            "recipe": outcome.version.identity,
            "picture": outcome.frame.image is not None,
        }
        with self._mutex:
            shown = self._stations.get(outcome.station)
            if shown is None:
                return
            shown.tally.add(end.verdict, end.cause, end.decided_ms)
            shown.newest, shown.newest_row = outcome, row
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
                        **shown.tally.figures(),
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
        except BaseException as error:  # whoever runs the line sees it
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
                    shown.tally.add_earlier(Verdict(verdict), decided_ms, at_s)
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
        "findings": findings,
        "decided_ms": decided_ms,
        "picture": image_state == "kept",
    }
