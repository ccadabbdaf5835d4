"""Referring sets: refCLEF, refCOCO, refCOCO+, refCOCOg, as their authors publish them.

refcoco/refs(unc).p, refcoco/instances.json, and the images in images/mscoco/images/train2014/COCO_train2014_000000581857.jpg; refclef has
images/saiapr_tc-12/19/images/19579.jpg. refCOCOg has the split umd, which keeps the images of its halves apart, besides google; the others
unc. One folder holds one set or all four. The list of references is a pickle, from which only plain data is taken (``read_plain``);
refs(unc).json, the same list as JSON, comes first where it is there. Layout and fields are those of the authors' own reader (refer.py).
"""

import pickletools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from agvas_core.contract.errors import UsageError
from agvas_core.data.datasets.coco import CocoAnnotations, CocoMask, need, read_coco, read_json
from agvas_core.data.datasets.record import Adapter, Family, Record, Target, first_file, first_folder

__all__ = ["REFCLEF", "REFCOCO", "REFCOCOG", "REFCOCO_PLUS", "read_plain"]


# Plain data out of a pickle, without running the pickle.
#
# The referring sets are published as pickles, and a pickle is a program: loading one runs whatever its author, or anyone who changed the
# download, put into it. Telling users to convert the file themselves would only move that risk to them. So the file is read here as what
# it is, a list of instructions: those that make lists, dictionaries, text and numbers are followed, and at the first other one (importing a
# name, calling something) the file is refused. Nothing of it is ever imported or called, and the pickle module is not used.
#
#     refs = read_plain(Path("refcoco/refs(unc).p"))


_PUSH_ARGUMENT: Final = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_PUSH: Final[dict[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_NOTHING: Final = {"PROTO", "FRAME"}


def read_plain(path: Path) -> Any:
    """The lists, dictionaries, tuples, text, numbers, booleans and None that a pickle of protocol 0 to 5 describes.

    Raises:
        UsageError: the file is missing, cut short, or would do more than make plain data.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return _follow(data, path)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} ({len(data):,} bytes) is no whole pickle of plain data ({error}): download it again") from error


def _follow(data: bytes, path: Path) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        at = marks.pop()
        items = stack[at:]
        del stack[at:]
        return items

    for opcode, argument, position in pickletools.genops(data):
        name = opcode.name
        if name in _PUSH_ARGUMENT:
            stack.append(argument)
        elif name in _PUSH:
            stack.append(_PUSH[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("LIST", "TUPLE"):
            stack.append((list if name == "LIST" else tuple)(since_mark()))
        elif name == "DICT":
            stack.append(_pairs(since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else since_mark()
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else since_mark()
            stack[-1].update(_pairs(items))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "STOP":
            return stack.pop()
        elif name not in _NOTHING:
            raise UsageError(
                f"{path} would do more than hold data ({name} at byte {position}: {argument!r}): it was not opened; get the set's own file"
            )
    raise ValueError("it has no end")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


_SPLIT_BY: Final = {
    "refclef": ("unc", "berkeley"),
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
}
_COCO_FOLDERS: Final = ("images/mscoco/images/train2014", "../coco/train2014", "../../coco/train2014", "train2014")
_CLEF_FOLDERS: Final = ("images/saiapr_tc-12", "saiapr_tc-12")


def _refs_file(root: Path, dataset: str) -> Path | None:
    names = [f"{dataset}/refs({by}).{kind}" for by in _SPLIT_BY[dataset] for kind in ("json", "p")]
    return first_file(root, *names)


def _records(root: Path, dataset: str) -> Iterator[Record]:
    path = _refs_file(root, dataset)
    if path is None:
        raise UsageError(f"{root / dataset} has no refs({_SPLIT_BY[dataset][0]}).p: unpack {dataset}.zip again")
    refs = read_json(path) if path.suffix == ".json" else read_plain(path)
    if not isinstance(refs, list):
        raise UsageError(f"{path} holds {type(refs).__name__}, not a list of references: take the set's own file")
    tables = read_coco(root / dataset / "instances.json")
    annotations = {row.get("id"): row for rows in tables.annotations.values() for row in rows}
    places = _CLEF_FOLDERS if dataset == "refclef" else _COCO_FOLDERS
    images = first_folder(root, *places) or root / places[0]
    for number, ref in enumerate(refs):
        where = f"{path}: reference {number}"
        need(ref, ("ann_id", "image_id", "sentences", "split"), where)
        if ref["ann_id"] not in annotations or ref["image_id"] not in tables.images:
            raise UsageError(
                f"{where} is about annotation {ref['ann_id']}, which instances.json lacks: the two are of different versions"
            )
        yield _record(images, dataset, ref, annotations[ref["ann_id"]], tables)


def _record(images: Path, dataset: str, ref: dict[str, Any], annotation: dict[str, Any], tables: CocoAnnotations) -> Record:
    image = tables.images[ref["image_id"]]
    file_name = str(image["file_name"])
    words = tuple(dict.fromkeys(" ".join(str(sentence["sent"]).split()).lower() for sentence in ref["sentences"]))
    size = (int(image["height"]), int(image["width"]))
    mask = CocoMask((annotation.get("segmentation") or [],), size, f"reference {ref.get('ref_id')} in {file_name}")
    return Record(
        dataset,
        Family.REFERRING,
        images / file_name,
        f"{file_name}#{ref.get('ref_id', ref['ann_id'])}",
        str(ref["split"]),
        category=tables.categories.get(annotation["category_id"], ""),
        targets=(Target(tuple(word for word in words if word), mask),),
    )


def _adapter(dataset: str, published_images: int | None = None) -> Adapter:
    images = " or ".join((_CLEF_FOLDERS if dataset == "refclef" else _COCO_FOLDERS)[:2])
    return Adapter(
        dataset,
        Family.REFERRING,
        f"{dataset}/refs({_SPLIT_BY[dataset][0]}).p, {dataset}/instances.json, {images}",
        lambda root: _refs_file(root, dataset) is not None or (root / dataset / "instances.json").is_file(),
        partial(_records, dataset=dataset),
        parts=(f"{dataset}/instances.json", "|".join(_CLEF_FOLDERS if dataset == "refclef" else _COCO_FOLDERS)),
        published_images=published_images,
    )


REFCLEF: Final = _adapter("refclef")
REFCOCO: Final = _adapter("refcoco", 19_994)
REFCOCO_PLUS: Final = _adapter("refcoco+", 19_992)
REFCOCOG: Final = _adapter("refcocog", 25_799)
