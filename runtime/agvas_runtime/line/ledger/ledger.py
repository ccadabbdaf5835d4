"""The ledger: one row for each trigger, with exactly one verdict, whatever happens to the process.

    with Ledger(Path("line"), sinks=["mqtt"]) as ledger:
        part = ledger.open_part("camera-0", "trigger 4711", deadline_ms=500)
        ledger.settle(part.seq, settlement)

SQLite in WAL mode with full synchronisation. A trigger is on disk before it is looked at, and its verdict before anybody is told. The
row of the outbox is written with the verdict, in one transaction. One process writes to a ledger; any number may read it.
"""

import fcntl
import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from agvas_core.contract.errors import LedgerError
from agvas_runtime.line.ledger.disk_reserve import DiskReserve
from agvas_runtime.line.ledger.part_result import Cause, PartResult, without_verdict
from agvas_runtime.line.ledger.schema import APPLICATION_ID, SCHEMA, VERSION, foreign_words
from agvas_runtime.masks.result import Verdict

__all__ = ["LEDGER_NAME", "Ledger", "OpenedPart", "utc_now"]

LEDGER_NAME: Final = "ledger.sqlite"
LOCK_NAME: Final = "ledger.lock"

Answer = TypeVar("Answer")


class OpenedPart(NamedTuple):
    """A trigger that is in the ledger."""

    seq: int
    new: bool
    """False where this trigger was there before."""
    verdict: Verdict | None = None
    """Of a trigger that was there before, where it has one."""


def utc_now() -> str:
    """UTC, ISO 8601, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Ledger:
    """The one writer of a ledger. Threads may share it."""

    def __init__(self, folder: Path, *, sinks: Sequence[str] = (), reserve: DiskReserve | None = None) -> None:
        """Opens or makes ``folder/ledger.sqlite``, and gives every trigger that a killed process left behind its NO_VERDICT.

        Args:
            sinks: names of those that every verdict goes to from now on.
            reserve: space that is held back; the default size where None.

        Raises:
            LedgerError: another process writes to it, it is no ledger, or it is damaged.
            OutputError: the disk has no room for the reserve.
        """
        self.folder, self.path = folder, folder / LEDGER_NAME
        self._mutex = threading.RLock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise LedgerError(f"{folder} cannot be written ({error.strerror}): choose another --state DIR") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise LedgerError(f"{self.path} is in use by another process: end it, or choose another --state DIR") from error
        self.reserve = reserve or DiskReserve(folder)
        try:
            self._db = self._connect()
            self.sinks = tuple(name for (name,) in self.read("SELECT name FROM sinks WHERE until_seq IS NULL"))
            self.recovered = self._recover()
            self.sinks = tuple(sinks)
            self._register_sinks()
            if not self.reserve.held:
                self.reserve.level()
        except BaseException:
            os.close(self._lock)
            raise

    def _connect(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=10.0)
            (found,) = db.execute("PRAGMA application_id").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (tables,) = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            if tables and (found, version) != (APPLICATION_ID, VERSION):
                raise LedgerError(f"{foreign_words(self.path, found, version)}: choose another --state DIR")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA wal_autocheckpoint = 250")  # pages; a journal of 1 MB leaves the reserve to the rows
            db.execute("PRAGMA journal_size_limit = 4000000")
            if not tables:
                db.executescript(
                    f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"
                    f"INSERT INTO facts VALUES ('ledger', '{uuid.uuid4()}'), ('made_utc', '{utc_now()}'); COMMIT;"
                )
        except sqlite3.Error as error:
            raise LedgerError(
                f"{self.path} cannot be opened ({error}): restore it from a copy, or choose another --state DIR"
            ) from error
        return db

    @property
    def identity(self) -> str:
        """A UUID; with the sequence number it is the key of a message."""
        return str(self._db.execute("SELECT value FROM facts WHERE name = 'ledger'").fetchone()[0])

    def open_part(
        self, station: str, trigger_key: str, *, deadline_ms: float, dropped: int = 0, frame: str | None = None
    ) -> OpenedPart:
        """Writes a trigger down, durably, before anything is done about it.

        ``frame`` is the name of its picture, so that a part which is left by a killed process can be looked at again.
        The same ``trigger_key`` again gives the part that is there already, and its verdict where it has one.

        Raises:
            LedgerError: it cannot be written; the trigger was not taken, and may be sent again.
        """

        def write() -> OpenedPart:
            found = self._db.execute(
                "SELECT seq, verdict FROM parts WHERE station = ? AND trigger_key = ?", (station, trigger_key)
            ).fetchone()
            if found is not None:
                return OpenedPart(found[0], False, Verdict(found[1]) if found[1] else None)
            (seq,) = self._db.execute("SELECT COALESCE(MAX(seq), 0) + 1 FROM parts").fetchone()
            self._db.execute(
                "INSERT INTO parts (seq, station, trigger_key, triggered_utc, deadline_ms, dropped_before, frame) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (seq, station, trigger_key, utc_now(), deadline_ms, dropped, frame),
            )
            return OpenedPart(seq, True)

        return self._durably(write)

    def settle(self, seq: int, end: PartResult) -> None:
        """Gives a part its one verdict, and every sink its message, in one transaction.

        Raises:
            LedgerError: it cannot be written, or the part has a verdict already; then nothing was written.
        """

        def write() -> None:
            changed = self._db.execute(
                "UPDATE parts SET verdict = ?, cause = ?, detail = ?, decided_ms = ?, settled_utc = ?, frame = ?, image_sha256 = ?, "
                "width = ?, height = ?, recipe = ?, bundle = ?, engine = ?, score = ?, findings = ?, broken = ?, timing = ? "
                "WHERE seq = ? AND verdict IS NULL",
                (
                    str(end.verdict), end.cause, end.detail, end.decided_ms, utc_now(), end.frame, end.image_sha256,
                    end.width, end.height, end.recipe, end.bundle, end.engine, end.score,
                    json.dumps(end.findings), json.dumps(end.broken), json.dumps({name: round(ms, 3) for name, ms in end.timing.items()}),
                    seq,
                ),
            ).rowcount  # fmt: skip
            if changed != 1:
                raise LedgerError(f"part {seq} of {self.path} is not there, or has a verdict already: this is a bug in agvas")
            self._db.executemany("INSERT INTO deliveries (sink, seq) VALUES (?, ?)", [(sink, seq) for sink in self.sinks])

        self._durably(write)

    def know_recipe(self, sha256: str, product: str, text: str) -> None:
        """Keeps a recipe's text; must come before a part that was judged by it."""
        self._durably(lambda: self._db.execute("INSERT OR IGNORE INTO recipes VALUES (?, ?, ?)", (sha256, product, text)))

    def know_engine(self, identity: str, facts: Mapping[str, Any]) -> None:
        """Keeps what an engine's identity stands for; must come before a part that was judged by it."""
        row = (identity, json.dumps(facts, sort_keys=True))
        self._durably(lambda: self._db.execute("INSERT OR IGNORE INTO engines VALUES (?, ?)", row))

    def note_image(self, seq: int, state: str, path: str | None = None) -> None:
        """What became of a part's image: ``kept``, ``dropped`` or ``removed``."""
        self._durably(
            lambda: self._db.execute("UPDATE parts SET image_state = ?, image_path = ? WHERE seq = ?", (state, path, seq))
        )

    def event(self, station: str, kind: str, detail: str) -> None:
        """Something that happened beside the parts: a source that was lost, a recipe that was refused."""
        row = (utc_now(), station, kind, detail)
        self._durably(lambda: self._db.execute("INSERT INTO events (utc, station, kind, detail) VALUES (?, ?, ?, ?)", row))

    def read(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query; for the outbox and the tests."""
        with self._mutex:
            return self._db.execute(query, values).fetchall()

    def write(self, query: str, rows: Sequence[Sequence[object]]) -> None:
        """One statement for many rows, in one transaction; for the outbox."""
        self._durably(lambda: self._db.executemany(query, rows))

    def close(self) -> None:
        """Ends the ledger; parts without a verdict get theirs when it is opened again. May be called twice."""
        with self._mutex:
            if self._lock >= 0:
                self._db.close()
                os.close(self._lock)
                self._lock = -1

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _register_sinks(self) -> None:
        """Sinks that are new, or back, get the parts from now on; those that are gone, none after this."""

        def write() -> None:
            (last,) = self._db.execute("SELECT COALESCE(MAX(seq), 0) FROM parts").fetchone()
            known = dict(self._db.execute("SELECT name, until_seq FROM sinks").fetchall())
            for name in self.sinks:
                if name not in known:
                    self._db.execute("INSERT INTO sinks VALUES (?, ?, NULL)", (name, last))
                elif known[name] is not None:
                    self._db.execute("UPDATE sinks SET since_seq = ?, until_seq = NULL WHERE name = ?", (last, name))
            for name in known.keys() - set(self.sinks):
                self._db.execute("UPDATE sinks SET until_seq = ? WHERE name = ? AND until_seq IS NULL", (last, name))

        self._durably(write)

    def _recover(self) -> int:
        """Triggers without a verdict, from a process that ended before it gave one."""
        left = self.read("SELECT seq, frame FROM parts WHERE verdict IS NULL ORDER BY seq")
        for seq, frame in left:
            self.settle(seq, without_verdict(Cause.ENGINE, "the station ended before there was a verdict", 0.0, frame=frame))
        return len(left)

    def _durably(self, write: Callable[[], Answer]) -> Answer:
        """Runs ``write`` in a transaction; where the disk is full, gives up the reserve and tries once more."""
        try:
            return self._in_transaction(write)
        except sqlite3.Error as error:
            if not _is_full(error):
                raise self._error(error) from error
            self.reserve.give_up()
        try:
            with self._mutex:  # what waits in the journal goes to its place, and the journal begins again, as short as can be
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return self._in_transaction(write)
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _in_transaction(self, write: Callable[[], Answer]) -> Answer:
        with self._mutex, self._transaction():
            return write()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _error(self, error: sqlite3.Error) -> LedgerError:
        if _is_full(error):
            return LedgerError(
                f"{self.path} cannot be written: the disk is full, and so is the reserve: free some space, then start again"
            )
        return LedgerError(f"{self.path} cannot be written ({error}): check the disk; what stands in it is whole")


def _is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_FULL", "SQLITE_IOERR"))
