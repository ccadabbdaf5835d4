"""A person's word on stored parts, written into a review folder (``agvas_core/contract/review_folder.py``) that the training reads.

A part is good, or it is not and its mask says where. Whether that agrees with the verdict, is a false reject or an escape follows from the two.
Every decision is on disk when it returns: image first, then mask, then the line; the last line of an image counts.
"""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.durable import write_durably
from agvas_core.contract.errors import OutputError, UsageError
from agvas_core.contract.review_folder import IMAGES, MASKS, REVIEW, ReviewLine, add_line
from agvas_runtime.line.ledger.check import open_for_reading
from agvas_runtime.line.ledger.images import drawn, mask_of_findings
from agvas_runtime.line.ledger.ledger import utc_now
from agvas_runtime.line.ledger.reader import PastPart, Which, past_parts
from agvas_runtime.masks.result import Verdict

__all__ = ["Said", "Session", "Shown"]


# Which stored parts a person reviews.


class Shown(StrEnum):
    """By verdict; a part whose image is not kept cannot be shown."""

    rejects = "rejects"
    passes = "passes"
    all = "all"


Mask = NDArray[np.bool_]
SIDE_PX: Final = 2048


class Said(StrEnum):
    """What a person's word means beside the verdict."""

    AGREE = "agree"
    FALSE_REJECT = "false-reject"
    ESCAPE = "escape"
    GOOD = "good"
    """Of a part that had no verdict."""
    BAD = "bad"


def meaning(verdict: Verdict, good: bool) -> Said:
    """Of a person's word."""
    if verdict is Verdict.NO_VERDICT:
        return Said.GOOD if good else Said.BAD
    if (verdict is Verdict.PASS) is good:
        return Said.AGREE
    return Said.FALSE_REJECT if good else Said.ESCAPE


_VERDICTS: Final = {Shown.rejects: {Verdict.FAIL}, Shown.passes: {Verdict.PASS}, Shown.all: set(Verdict)}


@dataclass(frozen=True)
class _Word:
    said: str
    kind: str
    mask: str | None


class Session:
    """One review of one ledger into one folder. Threads may share it."""

    def __init__(self, state: Path, out: Path, *, shown: Shown = Shown.all, station: str | None = None) -> None:
        """Args:
        state: of a station, also while it runs; it is only read.
        shown, station: which parts; those whose image is not kept are never shown.
        out: the review folder; what was said there before is known.

        Raises:
            LedgerError: there is no ledger.
            OutputError: the folder cannot be written.
            UsageError: a line of it that is none.
        """
        self.state, self.out = state, out
        self._mutex = threading.Lock()
        with closing(open_for_reading(state)) as db:
            self._ledger = str(db.execute("SELECT value FROM facts WHERE name = 'ledger'").fetchone()[0])
            parts = [part for part in past_parts(db, Which(station=station, kept=True)) if part.verdict in _VERDICTS[shown]]
        self._parts = {part.seq: part for part in sorted(parts, key=lambda part: -part.seq)}
        try:
            for folder in (out / IMAGES, out / MASKS):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{out} cannot be written ({error.strerror}): choose another --out DIR") from error
        self._words = {word_seq: word for word_seq, word in self._read_words() if word_seq in self._parts}

    def overview(self) -> dict[str, Any]:
        """The numbers of all parts, the newest first, with what was said of each."""
        return {
            "state": str(self.state),
            "out": str(self.out),
            "parts": [[seq, str(part.verdict), self._said(seq)] for seq, part in self._parts.items()],
            "counts": dict(Counter(word.said for word in self._words.values())),
            "kinds": sorted({word.kind for word in self._words.values() if word.kind}),
        }

    def view(self, seq: int) -> dict[str, Any]:
        """What a person must know of a part."""
        part = self._part(seq)
        word = self._words.get(seq)
        return {
            "seq": seq,
            "station": part.station,
            "product": part.product,
            "verdict": str(part.verdict),
            "why": f"{part.cause}: {part.detail}" if part.cause else ", ".join(part.broken),
            "score": part.score,
            "settled_utc": part.settled_utc,
            "recipe": (part.recipe or "")[:12],
            "bundle": part.bundle,
            "said": word.said if word is not None else None,
            "kind": word.kind if word is not None else "",
        }

    def picture(self, seq: int) -> bytes:
        """The part's image as JPEG; its size in pixels is that of the mask unless it is very large."""
        return drawn(self._image(self._part(seq)), None, side_px=SIDE_PX)

    def mask(self, seq: int) -> bytes:
        """What is anomalous: as a person painted it, or else as the model found it; PNG, 0 or 255, of the frame's size."""
        part = self._part(seq)
        word = self._words.get(seq)
        if word is not None and word.mask is not None and (self.out / word.mask).is_file():
            return (self.out / word.mask).read_bytes()
        height, width = self._image(part).shape[:2]
        return _png(mask_of_findings(part.findings, height, width).astype(np.uint8) * 255)

    def decide(self, seq: int, *, good: bool, mask: Mask | None = None, kind: str = "") -> dict[str, Any]:
        """Writes a person's word on a part.

        Args:
            mask: of a part that is not good, bool [H, W]; the model's where None.

        Raises:
            UsageError: there is no such part, or the mask is empty or of another size.
            OutputError: the folder cannot be written.
        """
        part = self._part(seq)
        image = self._image(part)
        if not good:
            mask = mask_of_findings(part.findings, *image.shape[:2]) if mask is None else mask
            if mask.shape != image.shape[:2]:
                raise UsageError(
                    f"the mask has {mask.shape[1]}x{mask.shape[0]} px and part {seq} {image.shape[1]}x{image.shape[0]}: paint it anew"
                )
            if not mask.any():
                raise UsageError(f"part {seq} is not good and its mask is empty: paint what is wrong")
        name = f"{self._ledger[:8]}-{seq:09d}.png"
        said = meaning(part.verdict, good)
        line = ReviewLine(
            image=f"{IMAGES}/{name}", mask=None if good else f"{MASKS}/{name}", good=good, kind="" if good else kind.strip(),
            category=part.product or part.station,
        )  # fmt: skip
        known = {
            "station": part.station,
            "recipe": part.recipe,
            "bundle": part.bundle,
            "engine": part.engine,
            "score": part.score,
        }
        with self._mutex:
            if not (self.out / line.image).is_file():
                _write(self.out / line.image, (self.state / str(part.image_path)).read_bytes())
            if mask is not None and line.mask is not None:
                _write(self.out / line.mask, _png(mask.astype(np.uint8) * 255))
            add_line(
                self.out, line, said=str(said), ledger=self._ledger, seq=seq, verdict=str(part.verdict), image_sha256=part.image_sha256,
                at=utc_now(), **known,
            )  # fmt: skip
            self._words[seq] = _Word(str(said), line.kind, line.mask)
        return self.view(seq)

    def _said(self, seq: int) -> str | None:
        word = self._words.get(seq)
        return word.said if word is not None else None

    def _part(self, seq: int) -> PastPart:
        if seq not in self._parts:
            raise UsageError(f"part {seq} is not among those that are reviewed, or its image is not kept")
        return self._parts[seq]

    def _image(self, part: PastPart) -> NDArray[np.uint8]:
        image, why = part.image(self.state)
        if image is None:
            raise UsageError(f"part {part.seq}: {why}")
        return image

    def _read_words(self) -> Iterator[tuple[int, _Word]]:
        path = self.out / REVIEW
        if not path.is_file():
            return
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(text) if text.strip() else {}
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: {error}; mend the line or remove it") from error
            if row.get("ledger") == self._ledger:  # others may have written to the folder, too
                yield int(row["seq"]), _Word(str(row["said"]), str(row.get("kind", "")), row.get("mask"))


def _png(grey: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".png", grey)
    assert done, f"OpenCV cannot encode {grey.shape} as PNG"
    return data.tobytes()


def _write(path: Path, data: bytes) -> None:
    try:
        write_durably(path, data)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): choose a folder with space and permission") from error
