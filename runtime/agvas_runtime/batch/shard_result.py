"""The results of one shard as one Parquet file, written atomically, with a summary in its footer.

``OUT/results/part-00000/shard-000000123.parquet``
"""

import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from agvas_core.contract.durable import write_durably
from agvas_core.contract.errors import OutputError
from agvas_runtime.batch.plan import Plan
from agvas_runtime.line.recipe.rules import Finding
from agvas_runtime.line.station.inspector import Inspection
from agvas_runtime.masks.result import Region, Result, Verdict

__all__ = [
    "RESULTS_FOLDER",
    "SCHEMA",
    "Done",
    "read_done",
    "result_path",
    "row_of_inspection",
    "row_of_result",
    "row_without",
    "write_result",
]


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


# One image's line of the results: its schema, and how a verdict becomes one.


Row = dict[str, Any]

_REGION = pa.struct(
    [
        pa.field("kind", pa.string()),
        pa.field("rules", pa.list_(pa.string())),
        pa.field("box", pa.list_(pa.int32(), 4)),
        pa.field("area_px", pa.int64()),
        pa.field("mean_score", pa.float32()),
        pa.field("max_score", pa.float32()),
        pa.field("polygon", pa.list_(pa.list_(pa.int32(), 2))),
        pa.field("holes", pa.list_(pa.list_(pa.list_(pa.int32(), 2)))),
    ]
)

SCHEMA: Final = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("broken", pa.list_(pa.string())),
        pa.field("regions", pa.list_(_REGION)),
        pa.field("answer", pa.string()),
        pa.field("accept", pa.float32()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("image_sha256", pa.string()),
        pa.field("ms", pa.float32()),
    ]
)
"""``score`` is the highest value of the score map, or by a recipe the reject score; ``kind``, ``rules`` and ``broken`` are a recipe's."""


def row_of_result(result: Result, image_sha256: str | None) -> Row:
    """By the bundle's operating point."""
    height, width = result.image.shape[:2] if result.image is not None else (None, None)
    return _row(
        result.index,
        result.name,
        result.verdict,
        error=result.error,
        score=result.score,
        regions=[_region(region) for region in result.regions],
        answer=result.answer,
        accept=result.accept,
        size=(width, height),
        image_sha256=image_sha256,
        timing=result.timing,
    )


def row_of_inspection(index: int, name: str, found: Inspection, size: tuple[int, int], image_sha256: str) -> Row:
    """By the rules of a recipe."""
    judgement = found.judgement
    row = _row(
        index,
        name,
        judgement.verdict,
        score=judgement.reject_score,
        regions=[_finding(one) for one in judgement.findings],
        size=size,
        image_sha256=image_sha256,
        timing=found.timing,
    )
    return row | {"broken": list(judgement.broken)}


def row_without(index: int, name: str, error: str) -> Row:
    """NO_VERDICT, and why."""
    return _row(index, name, Verdict.NO_VERDICT, error=error)


def _row(
    index: int,
    name: str,
    verdict: Verdict,
    *,
    error: str | None = None,
    score: float | None = None,
    regions: list[Row] | None = None,
    answer: str | None = None,
    accept: float | None = None,
    size: tuple[int | None, int | None] = (None, None),
    image_sha256: str | None = None,
    timing: Mapping[str, float] | None = None,
) -> Row:
    return {
        "index": index,
        "name": _text(name),
        "verdict": str(verdict),
        "error": None if error is None else _text(error),
        "score": score,
        "broken": None,
        "regions": regions or [],
        "answer": None if answer is None else _text(answer),
        "accept": accept,
        "width": size[0],
        "height": size[1],
        "image_sha256": image_sha256,
        "ms": (timing or {}).get("total"),
    }


def _region(region: Region) -> Row:
    return {
        "kind": None,
        "rules": None,
        "box": list(region.box),
        "area_px": region.area_px,
        "mean_score": region.mean_score,
        "max_score": region.max_score,
        "polygon": region.polygon,
        "holes": region.holes,
    }


def _finding(finding: Finding) -> Row:
    return _region(finding.region) | {"kind": finding.kind, "rules": list(finding.rules)}


def _text(text: str) -> str:
    """A name that is no valid Unicode keeps its bytes as ``\\udcXX`` escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
