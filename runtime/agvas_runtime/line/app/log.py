"""The log of a line: plain text, or JSON lines."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

from agvas_core.contract.command_line import printable
from agvas_runtime.line.station.station import Outcome

__all__ = ["LineLog", "LogFormat", "logging_to"]

LogFormat = Literal["text", "json"]

log = logging.getLogger("agvas.line")
_NAMES: Final = {"WARNING": "warning", "ERROR": "error", "CRITICAL": "error"}


class LineLog:
    """One line for each part; a listener of every station."""

    def __call__(self, outcome: Outcome) -> None:
        """Says how a part ended."""
        end = outcome.result
        fields = {
            "event": "part",
            "seq": outcome.seq,
            "station": outcome.station,
            "frame": outcome.frame.name,
            "verdict": str(end.verdict),
            "cause": end.cause,
            "detail": end.detail,
            "score": None if end.score is None else round(end.score, 5),
            "broken": list(end.broken),
            "findings": len(end.findings),
            "decided_ms": round(end.decided_ms, 1),
            "recipe": outcome.version.identity,
        }
        why = f"  {end.why}" if end.why else ""
        score = "" if end.score is None else f"  {end.score:.3f}"
        log.info(
            "%6d  %s  %-10s%s  %.0f ms%s",
            outcome.seq,
            outcome.station,
            end.verdict,
            score,
            end.decided_ms,
            why,
            extra={"fields": fields},
        )


class _Lines(logging.Handler):
    def __init__(self, stream: TextIO, form: LogFormat) -> None:
        super().__init__(logging.INFO)
        self._stream, self._form = stream, form

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if self._form == "text":
            line = printable(message)
        else:
            at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            fields = getattr(record, "fields", None) or {"event": "log", "message": message}
            line = json.dumps({"utc": at, "level": _NAMES.get(record.levelname, "info"), **fields}, ensure_ascii=True)
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (BrokenPipeError, ValueError):  # the reader is gone; the ledger has everything
            pass


@contextmanager
def logging_to(form: LogFormat, stream: TextIO | None = None) -> Iterator[None]:
    """Sends what the package says to ``stream`` (stderr) while it lasts."""
    top, handler = logging.getLogger("agvas"), _Lines(stream or sys.stderr, form)
    before = top.level
    top.addHandler(handler)
    top.setLevel(logging.INFO)
    try:
        yield
    finally:
        top.removeHandler(handler)
        top.setLevel(before)
