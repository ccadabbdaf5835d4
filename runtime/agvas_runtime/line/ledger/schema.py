"""The ledger's tables. What must never happen is forbidden here, in the database, for every writer."""

from pathlib import Path
from typing import Final

__all__ = ["APPLICATION_ID", "SCHEMA", "VERSION", "foreign_words"]

APPLICATION_ID: Final = 0x41475653  # "AGVS"
VERSION: Final = 1

SCHEMA: Final = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE parts (
    seq            INTEGER PRIMARY KEY,              -- 1, 2, 3 ... without a gap
    station        TEXT NOT NULL,
    trigger_key    TEXT NOT NULL,                    -- what asked for the part; asked again, it gets the same verdict
    triggered_utc  TEXT NOT NULL,
    deadline_ms    REAL NOT NULL,
    dropped_before INTEGER NOT NULL DEFAULT 0,       -- frames the camera gave and nobody took, since the part before
    verdict        TEXT CHECK (verdict IN ('PASS', 'FAIL', 'NO_VERDICT')),
    cause          TEXT CHECK (cause IN ('deadline', 'source', 'engine', 'disk', 'recipe')),
    detail         TEXT,
    decided_ms     REAL,                             -- after the trigger
    settled_utc    TEXT,
    frame          TEXT,
    image_sha256   TEXT,
    width          INTEGER,
    height         INTEGER,
    recipe         TEXT REFERENCES recipes,
    bundle         TEXT,
    engine         TEXT REFERENCES engines,
    score          REAL,
    findings       TEXT NOT NULL DEFAULT '[]',
    broken         TEXT NOT NULL DEFAULT '[]',
    timing         TEXT NOT NULL DEFAULT '{}',
    image_path     TEXT,
    image_state    TEXT NOT NULL DEFAULT 'none' CHECK (image_state IN ('none', 'kept', 'dropped', 'removed')),
    UNIQUE (station, trigger_key),
    CHECK ((verdict IS 'NO_VERDICT') = (cause IS NOT NULL)),
    CHECK (verdict IS NULL OR decided_ms IS NOT NULL),
    -- a verdict on a part has all that it takes to come to it again, and came in time
    CHECK (verdict IS NULL OR verdict = 'NO_VERDICT'
           OR (image_sha256 IS NOT NULL AND recipe IS NOT NULL AND bundle IS NOT NULL AND engine IS NOT NULL
               AND score IS NOT NULL AND decided_ms <= deadline_ms))
);
CREATE INDEX unsettled ON parts (seq) WHERE verdict IS NULL;
CREATE INDEX with_image ON parts (seq) WHERE image_state = 'kept';

CREATE TRIGGER a_verdict_stands BEFORE UPDATE OF seq, station, trigger_key, triggered_utc, deadline_ms, verdict, cause, decided_ms,
    frame, image_sha256, recipe, bundle, engine, score, findings, broken ON parts WHEN OLD.verdict IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'a verdict that was given stands'); END;
CREATE TRIGGER a_part_stays BEFORE DELETE ON parts BEGIN SELECT RAISE(ABORT, 'parts are never removed'); END;
CREATE TRIGGER without_a_gap BEFORE INSERT ON parts WHEN NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM parts)
BEGIN SELECT RAISE(ABORT, 'sequence numbers have no gap'); END;

CREATE TABLE recipes (sha256 TEXT PRIMARY KEY, product TEXT NOT NULL, text TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE engines (identity TEXT PRIMARY KEY, facts TEXT NOT NULL) WITHOUT ROWID;

-- The outbox: one row for each part and sink, made in the transaction that gives the verdict.
CREATE TABLE sinks (name TEXT PRIMARY KEY, since_seq INTEGER NOT NULL, until_seq INTEGER) WITHOUT ROWID;
CREATE TABLE deliveries (
    sink     TEXT NOT NULL REFERENCES sinks,
    seq      INTEGER NOT NULL REFERENCES parts,
    state    TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'delivered', 'refused')),
    attempts INTEGER NOT NULL DEFAULT 0,
    done_utc TEXT,
    detail   TEXT,
    PRIMARY KEY (sink, seq)
) WITHOUT ROWID;
CREATE INDEX pending ON deliveries (sink, seq) WHERE state = 'pending';
CREATE TRIGGER a_delivery_stands BEFORE UPDATE ON deliveries WHEN OLD.state = 'delivered' AND NEW.state <> 'delivered'
BEGIN SELECT RAISE(ABORT, 'a delivery that was acknowledged stands'); END;

CREATE TABLE events (
    id      INTEGER PRIMARY KEY,
    utc     TEXT NOT NULL,
    station TEXT NOT NULL,
    kind    TEXT NOT NULL,
    detail  TEXT NOT NULL
);
"""


def foreign_words(path: Path, application: int, version: int) -> str:
    """What is said of a file that is no ledger, or one of another schema; the remedy is the caller's."""
    if application != APPLICATION_ID:
        return f"{path} is no ledger of agvas (application {application:#x}; a ledger has {APPLICATION_ID:#x})"
    return f"{path} is a ledger of schema {version}, and this agvas reads schema {VERSION}"
