"""Checks of a ledger: triggers = frames and reasons = verdicts = deliveries, and every kept image is the one that was judged.

The tables forbid most of it already; this counts it again, from another process if need be, and while the line runs.
"""

import glob
import gzip
import json
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agvas_core.contract.errors import LedgerError
from agvas_runtime.line.ledger.images import hash_of_image, read_kept
from agvas_runtime.line.ledger.ledger import LEDGER_NAME
from agvas_runtime.line.ledger.schema import APPLICATION_ID, VERSION, foreign_words

__all__ = ["LedgerCheck", "check_ledger", "open_for_reading"]


JSONL = "jsonl:"
"""How sinks begin that write lines into a file."""


@dataclass
class LedgerCheck:
    """What was counted."""

    triggers: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    causes: dict[str, int] = field(default_factory=dict)
    unsettled: int = 0
    """Triggers under way, or left by a process that was killed; opening the ledger again gives them NO_VERDICT."""
    dropped: int = 0
    deliveries: dict[str, dict[str, int]] = field(default_factory=dict)
    """Sink -> pending, delivered, refused."""
    images: dict[str, int] = field(default_factory=dict)
    events: int = 0
    faults: list[str] = field(default_factory=list)
    """What must not be; empty where the ledger verifies."""

    def lines(self) -> list[str]:
        """For a person."""
        found = [f"triggers   {self.triggers}"]
        found += [
            f"verdicts   {sum(self.verdicts.values())}: "
            + _counts(self.verdicts)
            + (f"; under way {self.unsettled}" if self.unsettled else "")
        ]
        if self.causes:
            found.append("causes     " + _counts(self.causes))
        found += [f"sink       {sink}: " + _counts(states) for sink, states in self.deliveries.items()]
        found += [
            f"images     {_counts(self.images)}",
            f"dropped    {self.dropped} frames that were not taken",
            f"events     {self.events}",
        ]
        return found + [f"FAULT      {fault}" for fault in self.faults]


def open_for_reading(folder: Path) -> sqlite3.Connection:
    """A ledger, also while a station writes to it.

    Raises:
        LedgerError: there is none, or it is foreign or damaged.
    """
    try:
        path = folder / LEDGER_NAME if folder.is_dir() else folder
        there = path.is_file()
    except OSError as error:
        raise LedgerError(f"{folder} may not be looked at ({error.strerror}): ask as root or as the station's user") from error
    if not there:
        raise LedgerError(f"{folder} has no {LEDGER_NAME}: give the --state folder of a station")
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=10.0, isolation_level=None)
        found = (db.execute("PRAGMA application_id").fetchone()[0], db.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error as error:
        # Without its -wal and -shm, that is after a good end, SQLite reads a ledger only where it may make them.
        denied = error.sqlite_errorname.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN"))
        remedy = (
            "ask as root or as the station's user, or copy the folder to where you may write"
            if denied
            else "restore it from a copy"
        )
        raise LedgerError(f"{path} cannot be read ({error}): {remedy}") from error
    if found != (APPLICATION_ID, VERSION):
        db.close()
        raise LedgerError(f"{foreign_words(path, *found)}: give the --state folder of a station that this agvas runs")
    return db


def check_ledger(folder: Path, *, images: bool = False, delivered: bool = False) -> LedgerCheck:
    """Counts a ledger.

    Args:
        images: also read every kept image and compare it with its hash.
        delivered: a message that waits is a fault, too, and so is one that its JSONL file, or what logrotate made of it, does not hold.

    Raises:
        LedgerError: there is none, or it cannot be read.
    """
    check = LedgerCheck()
    with closing(open_for_reading(folder)) as db:
        try:
            db.execute("BEGIN")  # one moment of a ledger that goes on
            _check_tables(db, check)
            _check_parts(db, check)
            _check_deliveries(db, check)
            if delivered:
                _check_delivered(db, check)
            if images:
                _check_images(db, folder if folder.is_dir() else folder.parent, check)
        except sqlite3.Error as error:
            raise LedgerError(f"{folder} cannot be read to its end ({error}): restore it from a copy") from error
    return check


def _check_tables(db: sqlite3.Connection, check: LedgerCheck) -> None:
    check.faults += [f"the file is damaged: {row[0]}" for row in db.execute("PRAGMA integrity_check(5)") if row[0] != "ok"]
    check.faults += [
        f"table {row[0]} refers to what is not there: row {row[1]}" for row in db.execute("PRAGMA foreign_key_check")
    ]


def _check_parts(db: sqlite3.Connection, check: LedgerCheck) -> None:
    check.triggers, last = _one(db, "SELECT COUNT(*), COALESCE(MAX(seq), 0) FROM parts")
    if check.triggers != last:
        check.faults.append(f"{check.triggers} parts and the last has number {last}: numbers are missing")
    rows = db.execute("SELECT COALESCE(verdict, ''), COUNT(*) FROM parts GROUP BY 1")
    check.verdicts = dict(rows.fetchall())
    check.unsettled = check.verdicts.pop("", 0)
    check.causes = dict(db.execute("SELECT cause, COUNT(*) FROM parts WHERE cause IS NOT NULL GROUP BY 1").fetchall())
    check.images = dict(db.execute("SELECT image_state, COUNT(*) FROM parts GROUP BY 1").fetchall())
    (check.dropped,) = _one(db, "SELECT COALESCE(SUM(dropped_before), 0) FROM parts")
    (check.events,) = _one(db, "SELECT COUNT(*) FROM events")
    for what, condition in (
        ("came after their deadline", "verdict IN ('PASS', 'FAIL') AND decided_ms > deadline_ms"),
        ("have a verdict and no image hash, recipe, bundle or engine",
         "verdict IN ('PASS', 'FAIL') AND (image_sha256 IS NULL OR recipe IS NULL OR bundle IS NULL OR engine IS NULL)"),
        ("have no verdict and no cause", "verdict = 'NO_VERDICT' AND cause IS NULL"),
        ("are PASS and break a rule", "verdict = 'PASS' AND broken <> '[]'"),
    ):  # fmt: skip
        (count,) = _one(db, f"SELECT COUNT(*) FROM parts WHERE {condition}")
        if count:
            check.faults.append(f"{count} parts {what}")


def _check_deliveries(db: sqlite3.Connection, check: LedgerCheck) -> None:
    for name, since, until in db.execute("SELECT name, since_seq, until_seq FROM sinks ORDER BY name").fetchall():
        states = db.execute("SELECT state, COUNT(*) FROM deliveries WHERE sink = ? GROUP BY 1", (name,)).fetchall()
        check.deliveries[name] = dict(states)
        (missing,) = _one(
            db,
            "SELECT COUNT(*) FROM parts WHERE verdict IS NOT NULL AND seq > ? AND seq <= ? "
            "AND NOT EXISTS (SELECT 1 FROM deliveries WHERE sink = ? AND deliveries.seq = parts.seq)",
            (since, until if until is not None else 2**62, name),
        )
        if missing:
            check.faults.append(f"{missing} verdicts have no message for sink {name}")
        if refused := check.deliveries[name].get("refused"):
            check.faults.append(f"sink {name} refused {refused} messages permanently: see agvas ledger show --refused")


def _check_delivered(db: sqlite3.Connection, check: LedgerCheck) -> None:
    (identity,) = _one(db, "SELECT value FROM facts WHERE name = 'ledger'")
    for sink, states in check.deliveries.items():
        if waiting := states.get("pending"):
            check.faults.append(f"{waiting} messages wait for sink {sink}")
        if not sink.startswith(JSONL):
            continue
        path = Path(sink.removeprefix(JSONL))
        lying = _lines_of(path, identity)
        rows = db.execute("SELECT seq FROM deliveries WHERE sink = ? AND state = 'delivered'", (sink,))
        missing = [seq for (seq,) in rows if seq not in lying]
        if missing:
            check.faults.append(
                f"{len(missing)} delivered messages are not in {path}, nor in {path.name}.* or {path.name}-* beside it: parts {_spans(missing)}"
            )


def _lines_of(path: Path, identity: str) -> set[int]:
    """Numbers of the parts of this ledger whose line lies in ``path``, or in what a rotation made of it."""
    found: set[int] = set()
    beside = [other for mark in ".-" for other in sorted(path.parent.glob(f"{glob.escape(path.name)}{mark}*"))]
    for each in (path, *beside):
        if not each.is_file():
            continue
        try:
            with gzip.open(each, "rb") if each.suffix == ".gz" else each.open("rb") as file:
                for line in file:
                    with suppress(ValueError, TypeError, KeyError):
                        ledger, _, seq = str(json.loads(line)["key"]).rpartition("/")
                        if ledger == identity:
                            found.add(int(seq))
        except (OSError, EOFError) as error:
            raise LedgerError(f"{each} cannot be read ({error}): ask as the user who may, or leave --delivered out") from error
    return found


def _spans(numbers: list[int]) -> str:
    return ", ".join(map(str, sorted(numbers)[:10])) + (", ..." if len(numbers) > 10 else "")


def _check_images(db: sqlite3.Connection, folder: Path, check: LedgerCheck) -> None:
    for seq, relative, sha256 in db.execute("SELECT seq, image_path, image_sha256 FROM parts WHERE image_state = 'kept'"):
        image = read_kept(folder, relative)
        if image is None:
            check.faults.append(f"the image of part {seq}, {relative}, is gone or cannot be read")
        elif hash_of_image(image) != sha256:
            check.faults.append(f"the image of part {seq}, {relative}, is not the one that was judged")


def _one(db: sqlite3.Connection, query: str, values: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    row: tuple[Any, ...] = db.execute(query, values).fetchone()
    return row


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"
