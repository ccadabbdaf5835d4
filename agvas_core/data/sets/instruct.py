"""Anomaly-Instruct20K as ``agvas data instruct`` writes it: JSON lines, each an anomalous image with its mask and five texts.

Any *.jsonl whose lines have the field expectation; review logs beside them are applied by their reader, and rejected lines are left out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agvas_core.contract.anchors import ANCHOR_TOKENS
from agvas_core.contract.errors import UsageError
from agvas_core.contract.prompts import ANCHORS
from agvas_core.data.instruct.reading import read_instruct
from agvas_core.data.sets.adapter import Adapter
from agvas_core.data.sets.record import Family, Record, Texts

__all__ = ["INSTRUCT"]


def _files(root: Path) -> list[Path]:
    return [path for path in sorted(root.glob("*.jsonl")) if not path.stem.endswith(".review") and _is_instruct(path)]


def _is_instruct(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    try:
        row = json.loads(first)
    except ValueError:
        return False
    return isinstance(row, dict) and "expectation" in row


def _instructions_records(root: Path) -> Iterator[Record]:
    for path in _files(root):
        for number, record in enumerate(read_instruct(path)):
            if record.texts is not None:
                _check_anchors(record.texts, f"{path}: record {number} ({record.name})")
            yield record


def _check_anchors(texts: Texts, where: str) -> None:
    if texts.summary.count(ANCHORS) != 1 or any(texts.summary.count(token) != 1 for token in ANCHOR_TOKENS):
        raise UsageError(f"{where}: its summary must have {ANCHORS} once, and is {texts.summary!r}: mend it in the review")
    others = f"{texts.expectation} {texts.observation} {texts.diagnosis} {texts.explanation}"
    if any(token in others for token in ANCHOR_TOKENS):
        raise UsageError(f"{where}: an anchor stands outside of the summary: mend it in the review")


INSTRUCT: Final = Adapter(
    "instruct",
    Family.INSTRUCT,
    "*.jsonl, written by agvas data instruct",
    lambda root: bool(_files(root)),
    _instructions_records,
)
