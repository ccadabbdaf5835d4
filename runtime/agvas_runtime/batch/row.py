"""One image's line of the results: its schema, and how a verdict becomes one."""

from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

from agvas_runtime.line.recipe.rules import Finding
from agvas_runtime.line.station.inspector import Inspection
from agvas_runtime.masks.result import Region, Result, Verdict

__all__ = ["SCHEMA", "row_of_inspection", "row_of_result", "row_without"]

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
