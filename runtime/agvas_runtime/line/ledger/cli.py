"""``agvas ledger verify|show|export``."""

import csv
import json
import sqlite3
import sys
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from agvas_core.contract.command_line import printable
from agvas_core.contract.errors import EXIT_OK, LedgerError
from agvas_runtime.line.ledger.check import check_ledger, open_for_reading

__all__ = ["export", "show", "verify"]

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The --state folder of a station, also while it runs.")]
STATE = Path("line")
FAULTY = 3


class Format(StrEnum):
    """Of an export."""

    jsonl = "jsonl"
    csv = "csv"


def verify(
    folder: Folder = STATE,
    images: Annotated[bool, typer.Option("--images", help="Also compare every kept image with its hash.")] = False,
    delivered: Annotated[
        bool, typer.Option("--delivered", help="A message that waits, or that its JSONL file does not hold, is a fault, too.")
    ] = False,
) -> None:
    """Counts a ledger: triggers = verdicts = messages, none late, none lost; ends with 3 where that is not so."""
    check = check_ledger(folder, images=images, delivered=delivered)
    for line in check.lines():
        typer.echo(line)
    typer.echo("verified" if not check.faults else f"{len(check.faults)} faults")
    raise typer.Exit(EXIT_OK if not check.faults else FAULTY)


def show(
    folder: Folder = STATE,
    last: Annotated[int, typer.Option(min=1, metavar="N", help="So many parts, the newest last.")] = 20,
    events: Annotated[bool, typer.Option("--events", help="What happened beside the parts, instead.")] = False,
    refused: Annotated[bool, typer.Option("--refused", help="Messages that a sink refused permanently, instead.")] = False,
) -> None:
    """Shows the last parts of a ledger."""
    if events:
        query = "SELECT utc, station, kind, detail FROM events ORDER BY id DESC LIMIT ?"
    elif refused:
        query = "SELECT done_utc, sink, seq, detail FROM deliveries WHERE state = 'refused' ORDER BY seq DESC LIMIT ?"
    else:
        query = (
            "SELECT seq, triggered_utc, station, COALESCE(verdict, 'under way'), ROUND(score, 3), ROUND(decided_ms), cause, detail, broken "
            "FROM parts ORDER BY seq DESC LIMIT ?"
        )
    for row in reversed(_rows(folder, query, (last,))[1]):
        typer.echo(printable("  ".join("" if value is None or value == "[]" else str(value) for value in row).rstrip()))


def export(
    folder: Folder = STATE,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="stdout by default.")] = None,
    form: Annotated[Format, typer.Option("--format", help="JSON lines, or CSV for a spreadsheet.")] = Format.jsonl,
    since: Annotated[int, typer.Option(min=0, metavar="SEQ", help="Parts after this one.")] = 0,
) -> None:
    """Writes the parts of a ledger as JSON lines or CSV."""
    names, rows = _rows(folder, "SELECT * FROM parts WHERE seq > ? ORDER BY seq", (since,))
    try:
        file = out.open("w", encoding="utf-8", newline="") if out is not None else sys.stdout
    except OSError as error:
        raise LedgerError(f"{out} cannot be written ({error.strerror}): choose another --out FILE") from error
    try:
        if form is Format.csv:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows([_no_formula(value) for value in row] for row in rows)
        else:
            for row in rows:
                file.write(json.dumps(_record(names, row), ensure_ascii=False) + "\n")
    finally:
        if out is not None:
            file.close()


def _no_formula(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula, with an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _record(names: list[str], row: tuple[Any, ...]) -> dict[str, Any]:
    record = dict(zip(names, row, strict=True))
    for name in ("findings", "broken", "timing"):
        record[name] = json.loads(record[name])
    return record


def _rows(folder: Path, query: str, values: tuple[Any, ...]) -> tuple[list[str], list[tuple[Any, ...]]]:
    with closing(open_for_reading(folder)) as db:
        try:
            cursor = db.execute(query, values)
            return [column[0] for column in cursor.description], cursor.fetchall()
        except sqlite3.Error as error:
            raise LedgerError(f"{folder} cannot be read ({error}): restore it from a copy") from error
