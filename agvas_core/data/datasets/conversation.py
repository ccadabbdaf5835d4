"""Conversations about images: LLaVA-Instruct-150K and WebAD.

LLaVA: llava_instruct_150k.json, a list of {"id", "image": "000000033471.jpg", "conversations": [{"from": "human", "value": "<image>\n..."},
{"from": "gpt", "value": "..."}, ...]}; the images are COCO's train2017, here, in coco, in ../coco as in LISA's order, or in ../../coco as in
that of the paper's authors.

WebAD: a JSON file with webad or anomaly_instruct in its name, of the same form, with images relative to the file or in images beside it;
anomalyov_dataset/webad_processed.json with images/webAD in the order of the paper's authors. The published file itself was not at hand.

Entries without an image are left out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from agvas_core.contract.errors import UsageError
from agvas_core.contract.prompts import ANCHOR_TOKENS, ANCHORS, strip_control_tokens
from agvas_core.data.datasets.coco import need, read_json
from agvas_core.data.datasets.record import Adapter, Family, Record, Texts, Turn, first_file, first_folder
from agvas_core.data.instruct.entry import read_instruct

__all__ = ["INSTRUCT", "LLAVA", "WEB_AD"]


_LLAVA_FILES: Final = ("llava_instruct_150k.json", "llava_v1_5_mix665k.json")
_COCO: Final = ("train2017", "coco/train2017", "../coco/train2017", "../../coco/train2017", "images", "")
_BESIDE: Final = ("images", "WebAD", "webad", "")


def _llava_files(root: Path) -> list[Path]:
    found = first_file(root, *_LLAVA_FILES)
    return [found] if found else []


def _web_ad_files(root: Path) -> list[Path]:
    names = ("webad", "anomaly_instruct", "anomaly-instruct")
    return sorted(path for path in root.glob("*.json") if any(name in path.stem.lower() for name in names))


def _records(root: Path, dataset: str, files: list[Path], folders: tuple[str, ...]) -> Iterator[Record]:
    images = first_folder(root, *folders) or root
    for path in files:
        rows = read_json(path)
        if not isinstance(rows, list):
            raise UsageError(f"{path} holds {type(rows).__name__}, not a list of conversations: take the set's own file")
        for number, row in enumerate(rows):
            need(row, ("conversations",), f"{path}: entry {number}")
            if not isinstance(row.get("image"), str):
                continue
            picture = images / row["image"]
            turns = _turns(row["conversations"], f"{path}: entry {number}")
            yield Record(dataset, Family.CONVERSATION, picture, f"{row['image']}#{number}", "train", turns=turns)


def _turns(rows: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(rows, list) or not rows or len(rows) % 2:
        raise UsageError(
            f"{where}: conversations must be pairs of human and gpt, and are {len(rows) if isinstance(rows, list) else rows!r}"
        )
    for row in rows:
        need(row, ("from", "value"), where)
    who = [row["from"] for row in rows]
    if who != ["human", "gpt"] * (len(rows) // 2):
        raise UsageError(f"{where}: human and gpt must take turns, and they are {', '.join(map(str, who[:4]))}")
    said = [_clean(str(row["value"])) for row in rows]
    return tuple(Turn(question, answer) for question, answer in zip(said[::2], said[1::2], strict=True))


def _clean(text: str) -> str:
    """Without the place of the image, and without what would be read as an anchor; lines stay lines where nothing was taken out."""
    clean, removed = strip_control_tokens(text)
    return clean if removed else text.strip()


LLAVA: Final = Adapter(
    "llava-150k",
    Family.CONVERSATION,
    "llava_instruct_150k.json, and COCO's train2017 here, in ../coco or in ../../coco",
    lambda root: bool(_llava_files(root)),
    lambda root: _records(root, "llava-150k", _llava_files(root), _COCO),
)
WEB_AD: Final = Adapter(
    "webad",
    Family.CONVERSATION,
    "webad*.json or anomaly_instruct*.json, images/",
    lambda root: bool(_web_ad_files(root)),
    lambda root: _records(root, "webad", _web_ad_files(root), _BESIDE),
)

# Anomaly-Instruct20K as ``agvas data instruct`` writes it: JSON lines, each an anomalous image with its mask and five texts.
#
# Any *.jsonl whose lines have the field expectation; review logs beside them are applied by their reader, and rejected lines are left out.


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
        raise UsageError(f"{where}: its summary must have {ANCHORS} once, and is {texts.summary!r}: fix it in the review")
    others = f"{texts.expectation} {texts.observation} {texts.diagnosis} {texts.explanation}"
    if any(token in others for token in ANCHOR_TOKENS):
        raise UsageError(f"{where}: an anchor stands outside of the summary: fix it in the review")


INSTRUCT: Final = Adapter(
    "instruct",
    Family.INSTRUCT,
    "*.jsonl, written by agvas data instruct",
    lambda root: bool(_files(root)),
    _instructions_records,
)
