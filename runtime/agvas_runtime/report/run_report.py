"""The report of a run: one HTML file that opens from disk, on any screen, without a network.

Thumbnails are made as results stream by, so that no frame of an earlier result is held. The page is the common document
with ``report_template.html``, ``report_style.css`` and ``report_script.js``.
"""

import heapq
import json
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from importlib import resources
from statistics import median
from typing import Any, Final, Generic, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.pages.document import data_uri, document, escaped
from agvas_runtime.masks.overlay import shrink
from agvas_runtime.masks.result import Region, Result, Verdict

__all__ = ["MAX_ROWS", "MAX_THUMBNAILS", "Report", "headline", "reason"]

MAX_THUMBNAILS = 500  # about 15 KB each: the page stays under 15 MB
MAX_ROWS = 20_000  # a table beyond that is no longer read by people; results.jsonl has all
MAX_ERRORS = 200
MAX_REGIONS_SHOWN = 6  # per frame, in the enlarged view
MAX_ANSWER_CHARS = 600  # results.jsonl has all of it
RECENT_TIMINGS = 10_000

MAX_OUTLINES = 400  # the largest ones; a frame of pure noise has thousands

THUMBNAIL_PX = 360
FEW = 60
THUMBNAIL_PX_FEW = 720  # a run of few frames can afford pictures that bear enlarging
THUMBNAIL_JPEG_QUALITY = 80
SCORE_MAP_PX = 112
OUTLINE_STEP_PX = 0.8  # corners closer than this to the line, in pixels of the thumbnail, are left out

STAGES: Final = ("read", "preprocess", "vision", "lmm", "decoder", "postprocess")
_ROW_RANK = {Verdict.NO_VERDICT: 2, Verdict.FAIL: 1, Verdict.PASS: 0}

T = TypeVar("T")


class Best(Generic[T]):
    """The ``capacity`` items with the highest keys of all that were offered."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._heap: list[tuple[tuple[float, ...], T]] = []

    def accepts(self, key: tuple[float, ...]) -> bool:
        """Whether an item with this key would be kept; keys are never equal, they end with the frame's index."""
        return len(self._heap) < self.capacity or key > self._heap[0][0]

    def offer(self, key: tuple[float, ...], item: T) -> None:
        """Keeps the item, and drops the lowest when there are too many."""
        if len(self._heap) < self.capacity:
            heapq.heappush(self._heap, (key, item))
        elif self.accepts(key):
            heapq.heapreplace(self._heap, (key, item))

    def items(self) -> list[T]:
        """What is kept, in no order."""
        return [item for _, item in self._heap]


class Report:
    """Collects what the page shows, result by result.

    Args:
        facts: what was run, label -> value, in the order of showing.
        total: number of frames to come, where known; few frames get larger thumbnails.
    """

    def __init__(self, facts: Mapping[str, str], *, total: int | None = None) -> None:
        self.facts = dict(facts)
        self.counts: Counter[Verdict] = Counter()
        self.thumbnail_px = THUMBNAIL_PX_FEW if total is not None and total <= FEW else THUMBNAIL_PX
        self.threshold: float | None = None
        self.timings: dict[str, deque[float]] = {}
        self.errors: list[tuple[str, str]] = []
        self._rows: Best[dict[str, Any]] = Best(MAX_ROWS)
        self._thumbnails: Best[tuple[int, dict[str, Any]]] = Best(MAX_THUMBNAILS)
        self._pictures = 0

    def add(self, result: Result, files: Mapping[str, str] | None = None) -> None:
        """Takes note of one result; ``files`` are its saved images, kind -> path relative to the report."""
        self.counts[result.verdict] += 1
        self.threshold = result.seed_threshold  # what a score must exceed to FAIL
        for stage, ms in result.timing.items() if result.image is not None else ():
            self.timings.setdefault(stage, deque(maxlen=RECENT_TIMINGS)).append(ms)
        if result.error is not None and len(self.errors) < MAX_ERRORS:
            self.errors.append((result.name, reason(result)))
        score = result.score if result.score is not None else -1.0
        row_key = (_ROW_RANK[result.verdict], score, -result.index)
        if self._rows.accepts(row_key):
            self._rows.offer(row_key, _row(result, files or {}))
        if result.image is None:
            return
        self._pictures += 1
        key = (float(result.verdict == Verdict.FAIL), score, -result.index)
        if self._thumbnails.accepts(key):
            self._thumbnails.offer(key, (result.index, _thumbnail(result, self.thumbnail_px)))

    def stage_medians(self) -> dict[str, float]:
        """Median milliseconds per stage, in the order of the data path; ``total`` comes last."""
        order = [*STAGES, *(stage for stage in self.timings if stage not in (*STAGES, "total")), "total"]
        return {stage: median(self.timings[stage]) for stage in order if self.timings.get(stage)}

    def render(self, *, elapsed_s: float, notes: Sequence[str] = ()) -> str:
        """The whole page.

        Args:
            elapsed_s: time from the first frame to the last.
            notes: what else the reader must know, such as that the run was interrupted.
        """
        total = sum(self.counts.values())
        rows = sorted(self._rows.items(), key=lambda row: int(row["i"]))
        thumbnails = dict(self._thumbnails.items())
        notes = list(notes)
        if self._pictures > len(thumbnails):
            notes.append(
                f"Pictures are shown for {len(thumbnails):,} of {self._pictures:,} frames, "
                "those with a verdict of FAIL and the highest scores first; the table has the others."
            )
        if total > len(rows):
            notes.append(f"The table has {len(rows):,} of {total:,} results, the conspicuous ones first; results.jsonl has all.")
        words = headline(self.counts)
        data: dict[str, Any] = {
            "headline": words,
            "counts": {str(verdict): self.counts[verdict] for verdict in Verdict},
            "facts": self.facts,
            "notes": notes,
            "threshold": self.threshold,
            "rate": total / elapsed_s if total and elapsed_s > 0 else None,
            "stages": self.stage_medians(),
            "errors": self.errors,
            "errors_total": self.counts[Verdict.NO_VERDICT],
            "rows": rows,
            "thumbnails": thumbnails,
        }
        package = resources.files("agvas_runtime.report")
        template, style, script = (
            package.joinpath(f"report_{name}").read_text(encoding="utf-8") for name in ("template.html", "style.css", "script.js")
        )
        # The data comes last: nothing in it is looked at for placeholders again.
        body = template.replace("@@TITLE@@", escaped(words), 1).replace("@@DATA@@", _script_safe(data), 1)
        return document(words, body, style=style, script=script, header=False)


def headline(counts: Mapping[Verdict, int]) -> str:
    """The outcome in one sentence, for readers who do not know the software."""
    failed, total = counts.get(Verdict.FAIL, 0), sum(counts.values())
    unjudged = counts.get(Verdict.NO_VERDICT, 0)
    if total == 0:
        return "Nothing was inspected"
    frames = "1 image" if total == 1 else f"{total:,} images"
    if total == unjudged:
        words = f"None of {frames} could be judged" if total > 1 else "The image could not be judged"
        return words
    if failed == 0:
        words = f"No anomaly found in {frames}" if not unjudged else f"No anomaly found in {total - unjudged:,} of {frames}"
    elif total == 1:
        words = "An anomaly was found"
    else:
        words = f"Anomalies found in {failed:,} of {frames}"
    return words + (f"; {unjudged:,} could not be judged" if unjudged else "")


def reason(result: Result) -> str:
    """Why there is no verdict, without the name where the message begins with it: it stands beside it."""
    return (result.error or "").removeprefix(f"{result.name}: ")


def _row(result: Result, files: Mapping[str, str]) -> dict[str, Any]:
    height, width = result.image.shape[:2] if result.image is not None else (0, 0)
    area = float(np.count_nonzero(result.mask)) / result.mask.size if result.mask is not None else None
    row: dict[str, Any] = {
        "i": result.index,
        "n": result.name,
        "v": str(result.verdict),
        "s": None if result.score is None else round(result.score, 5),
        "r": len(result.regions),
        "a": None if area is None else round(area, 7),
        "w": width,
        "h": height,
        "ms": round(result.timing["total"], 2) if "total" in result.timing else None,
    }
    if result.error is not None:
        row["e"] = reason(result)
    if result.answer is not None:
        row["t"] = result.answer if len(result.answer) <= MAX_ANSWER_CHARS else f"{result.answer[:MAX_ANSWER_CHARS]}…"
    if files:
        row["f"] = dict(files)
    return row


def _thumbnail(result: Result, side_px: int) -> dict[str, Any]:
    """JPEG of the frame, outline of its regions as an SVG path in thumbnail pixels, and a coarse score map."""
    assert result.image is not None
    small = shrink(result.image, side_px)
    height, width = small.shape[:2]
    scale = width / result.image.shape[1], height / result.image.shape[0]
    picture: dict[str, Any] = {
        "w": width,
        "h": height,
        "src": data_uri(small[:, :, ::-1], side_px, THUMBNAIL_JPEG_QUALITY),
        "d": "".join(_outline(region, scale) for region in result.regions[:MAX_OUTLINES]),
        "r": [[*region.box, region.area_px, round(region.mean_score, 3)] for region in result.regions[:MAX_REGIONS_SHOWN]],
    }
    if result.score_map is not None:
        picture["p"] = data_uri(_coarse(result.score_map), side_px, 75)
    return picture


def _outline(region: Region, scale: tuple[float, float]) -> str:
    parts = []
    for contour in (region.polygon, *region.holes):
        points = (np.asarray(contour, np.float32).reshape(-1, 2) + 0.5) * np.asarray(scale, np.float32)
        if len(points) > 3:
            points = np.asarray(cv2.approxPolyDP(points, OUTLINE_STEP_PX, True), np.float32).reshape(-1, 2)
        parts.append("M" + "L".join(f"{x:.4g} {y:.4g}" for x, y in points) + "Z")
    return "".join(parts)


def _coarse(score_map: NDArray[np.float32]) -> NDArray[np.uint8]:
    """8 bits, for the eye only; the highest score of each cell, so that a hairline crack survives the shrinking."""
    height, width = score_map.shape
    step = max(1, round(max(height, width) / SCORE_MAP_PX))
    size = (max(1, width // step), max(1, height // step))
    cells = cv2.resize(cv2.dilate(score_map, np.ones((step, step), np.uint8)), size, interpolation=cv2.INTER_AREA)
    return np.round(np.clip(cells, 0, 1) * 255).astype(np.uint8)


def _script_safe(data: Mapping[str, Any]) -> str:
    """JSON that may stand inside a script element: no ``<``, so no end tag and no comment can begin."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
