"""All sets that there are adapters for, and finding them in folders.

for found in find_training_sets(Path("datasets")):
    for record in found.records():
        ...
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agvas_core.contract.errors import UsageError
from agvas_core.data.datasets.anomalies import (
    CRACK_FOREST,
    DTD_SYNTHETIC,
    GC10,
    GOODS_AD,
    LISTED,
    LISTS,
    MIAD,
    MVTEC,
    REAL_IAD,
    REVIEWED,
    ZJU_LEAPER,
)
from agvas_core.data.datasets.conversation import INSTRUCT, LLAVA, WEB_AD
from agvas_core.data.datasets.general import ADE20K, COCO_STUFF, PACO, PART_IMAGENET, PASCAL_PART_JSON
from agvas_core.data.datasets.mat_file import PASCAL_PART
from agvas_core.data.datasets.record import Adapter, Record
from agvas_core.data.datasets.referring import REFCLEF, REFCOCO, REFCOCO_PLUS, REFCOCOG
from agvas_core.files import folders

__all__ = ["ADAPTERS", "OPT_IN", "FoundSet", "find_training_sets", "named_set", "set_names"]

log = logging.getLogger("agvas")

# Where two adapters know one set, the first that fits reads it. Any folder in MVTec's layout is taken last: many follow it.
ADAPTERS: Final[tuple[Adapter, ...]] = (
    ADE20K, COCO_STUFF, PACO, PART_IMAGENET, PASCAL_PART_JSON, PASCAL_PART, REFCLEF, REFCOCO, REFCOCO_PLUS, REFCOCOG,
    REAL_IAD, DTD_SYNTHETIC, GOODS_AD, CRACK_FOREST, MIAD, GC10, ZJU_LEAPER, LLAVA, WEB_AD, INSTRUCT, REVIEWED, MVTEC,
    *LISTS, LISTED,
)  # fmt: skip
OPT_IN: Final[tuple[Adapter, ...]] = (MVTEC, REVIEWED)
"""What any folder of parts may look like, test sets among them: trained on only where that folder itself is named."""
_DEPTH: Final = 2  # folders below the one that was named: LISA's order has vlpart/paco


@dataclass(frozen=True)
class FoundSet:
    """One set where it lies."""

    adapter: Adapter
    root: Path

    def records(self) -> Iterator[Record]:
        """All its records; raises UsageError where the listing is broken."""
        return self.adapter.records(self.root)


def set_names() -> list[str]:
    """Names of the sets, each once."""
    return list(dict.fromkeys(adapter.name for adapter in ADAPTERS))


def named_set(root: Path, name: str) -> FoundSet:
    """The set of that name in ``root`` itself.

    Raises:
        UsageError: no such name, no such folder, or the folder has another layout.
    """
    adapters = [adapter for adapter in ADAPTERS if adapter.name == name]
    if not adapters:
        raise UsageError(f"there is no set {name!r}; known are {', '.join(set_names())}")
    if not root.exists():
        raise UsageError(f"{root} is not there: name the folder of {name}, or its list (meta_SET.json)")
    for adapter in adapters:
        if adapter.matches(root):
            return FoundSet(adapter, root)
    layouts = ", or ".join(adapter.layout for adapter in adapters)
    if root.is_file():
        raise UsageError(f"{root} is a file, and none that lists {name}: it needs {layouts}")
    raise UsageError(f"{root} does not look like {name}: it needs {layouts}; it has {_listing(root)}")


def find_training_sets(data: Path, name: str | None = None, *, everything: bool = False) -> list[FoundSet]:
    """The sets in a folder: it is one itself, or they lie up to two folders below.

    Args:
        name: sets of this name alone.
        everything: also those below ``data`` that must be named to be trained on (``OPT_IN``), for who only looks at them.

    Raises:
        UsageError: no such folder, no such name, or nothing found.
    """
    if name is not None and name not in set_names():
        raise UsageError(f"--set is {name!r}; it can be {', '.join(set_names())}")
    if not data.is_dir():
        raise UsageError(f"{data} is {'a file' if data.exists() else 'not there'}: name the folder of a set, or of several")
    found = [one for one in _below(data, _DEPTH) if name in (None, one.adapter.name)]
    if not everything and name is None:
        found = _without_opt_in(data, found)
    if not found and name is not None:
        return [named_set(data, name)]
    if not found:
        raise UsageError(
            f"{data} has none of the sets {', '.join(set_names())} in a layout that is known; it has {_listing(data)}. --set NAME says what "
            "a set needs"
        )
    return found


def _without_opt_in(data: Path, found: list[FoundSet]) -> list[FoundSet]:
    kept = [one for one in found if one.adapter not in OPT_IN or one.root == data]
    for one in found:
        if one not in kept:
            log.warning(
                'left out of training: %s has the layout %s, as test sets have; to train on it name it ([mixture] sets = [{ name = "%s", '
                'path = "%s" }], or --sets %s)',
                one.root, one.adapter.name, one.adapter.name, one.root, one.root,
            )  # fmt: skip
    if found and not kept:
        raise UsageError(
            f"{data} has only folders that are not taken unless they are named: {', '.join(str(one.root) for one in found)}; name one "
            "with --sets, or list it under [mixture] sets"
        )
    return kept


def _below(folder: Path, depth: int) -> list[FoundSet]:
    here: dict[str, FoundSet] = {}
    for adapter in ADAPTERS:
        if not (adapter is MVTEC and here) and adapter.name not in here and adapter.matches(folder):
            here[adapter.name] = FoundSet(adapter, folder)
    if not here:  # the authors' order: lists of all sets beside their folders
        for path in sorted(folder.glob("meta_*.json")):
            found = next((FoundSet(adapter, path) for adapter in LISTS if adapter.matches(path)), None)
            if found is not None and found.adapter.name not in here:
                here[found.adapter.name] = found
    if here or depth == 0:
        return list(here.values())
    return [one for below in folders(folder) for one in _below(below, depth - 1)]


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{', '.join(names[:8])}{more}" if names else "nothing"
