"""The results of one shard as one Parquet file, written atomically, with a summary in its footer.

``OUT/results/part-00000/shard-000000123.parquet``
"""

import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from agvas_core.contract.durable import write_durably
from agvas_core.contract.errors import OutputError
from agvas_runtime.batch.plan import Plan
from agvas_runtime.batch.row import SCHEMA

__all__ = ["RESULTS_FOLDER", "Done", "read_done", "result_path", "write_result"]

RESULTS_FOLDER: Final = "results"
_KEY: Final = b"agvas"


class Done(NamedTuple):
    """A shard that is on disk."""

    shard: int
    images: int
    verdicts: dict[str, int]
    notes: Sequence[tuple[str, str]] = ()
    """(image, note): what its worker noted first in this shard, each kind once."""


def result_path(out: Path, plan: Plan, number: int) -> Path:
    """Where the results of a shard belong."""
    return out / RESULTS_FOLDER / plan.part(number) / f"shard-{number:09d}.parquet"


def write_result(out: Path, plan: Plan, number: int, rows: list[dict[str, Any]], notes: Sequence[tuple[str, str]] = ()) -> Done:
    """Writes the file; it is there, whole and on disk, when this returns.

    Raises:
        OutputError: it cannot be written.
    """
    done = Done(number, len(rows), dict(Counter(row["verdict"] for row in rows)), notes)
    about = {"plan": plan.identity, "bundle": plan.job.bundle, **done._asdict()}
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({_KEY: json.dumps(about)}))
    data = io.BytesIO()
    pq.write_table(table, data, compression="zstd")
    path = result_path(out, plan, number)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, data.getvalue())
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}): free some space, then run the same command again; what is done is kept"
        ) from error
    return done


def read_done(out: Path, plan: Plan, number: int) -> Done | None:
    """What the footer says of a shard; None where it is not done.

    Raises:
        OutputError: what lies in its place is no result of this plan.
    """
    path = result_path(out, plan, number)
    try:
        with pq.ParquetFile(path) as file:
            about = json.loads((file.schema_arrow.metadata or {}).get(_KEY, b"{}"))
            rows = file.metadata.num_rows
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException, ValueError) as error:
        raise OutputError(f"{path} is damaged ({error}): remove it, and run the same command again") from error
    if (about.get("plan"), about.get("shard"), rows) != (plan.identity, number, plan.size(number)):
        raise OutputError(
            f"{path} has {rows} rows of shard {about.get('shard')} and plan {about.get('plan')}; {plan.size(number)} of shard {number} and "
            f"plan {plan.identity} belong there: remove it, and run the same command again"
        )
    return Done(number, rows, about["verdicts"])


def remove_leavings(out: Path) -> None:
    """Takes half files of killed workers away; for the one who holds the batch."""
    for path in (out / RESULTS_FOLDER).glob("part-*/.shard-*.part"):
        path.unlink(missing_ok=True)
    folder = out / "open"
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        os.rmdir(folder)
