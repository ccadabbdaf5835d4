"""From a folder to sets: which layout it has, which images it lists, and a seeded choice of them."""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol, cast

from agvas_core.contract.errors import UsageError
from agvas_core.evaluation.item import DataSet, Item
from agvas_core.evaluation.layouts import btad, cvc, isic, ksdd2, meta, mvtec, review, rsdd, visa
from agvas_core.files import folders

__all__ = ["LAYOUT_NAMES", "find_sets", "limited"]


class Layout(Protocol):
    """A module of ``layouts``. One that keeps good images apart for training also has ``train_items(root)``."""

    NAME: str

    def matches(self, root: Path) -> bool:
        """Whether the folder has this layout."""
        ...

    def items(self, root: Path) -> Iterator[Item]:
        """Its test images."""
        ...


# The particular ones first: BTAD would pass for MVTec-AD, whose layout everyone follows. A list (meta_*.json) comes before all.
LAYOUTS: Final = tuple(cast(Layout, module) for module in (review, btad, visa, ksdd2, rsdd, isic, cvc, mvtec))
LAYOUT_NAMES: Final = (meta.NAME, *(layout.NAME for layout in LAYOUTS))
ALIASES: Final = {"mpdd": "mvtec", "colondb": "cvc", "clinicdb": "cvc"}


def find_sets(data: Path, *, only: str | None = None, layout: str | None = None, train: bool = False) -> list[DataSet]:
    """The sets in a folder: the folder itself is one, or each of its folders is.

    Args:
        data: the folder.
        only: take the set of this name.
        layout: take the folders for this layout; found out where None.
        train: list the good images of the training half, too.

    Raises:
        UsageError: no such folder or set, no layout fits, or a set lists no image.
    """
    if not data.is_dir():
        raise UsageError(
            f"{data} is {'a file' if data.exists() else 'not there'}; --data takes the folder of a set, or of several"
        )
    if layout is not None and ALIASES.get(layout, layout) not in LAYOUT_NAMES:
        raise UsageError(f"--layout is {layout!r}; it can be {', '.join((*LAYOUT_NAMES, *ALIASES))}")
    wanted = ALIASES.get(layout, layout) if layout else None
    found = _sets_of(data, wanted, train)
    if not found:
        found = [one for folder in folders(data) for one in _sets_of(folder, wanted, train)]
    if not found:
        names = ", ".join(LAYOUT_NAMES) if wanted is None else wanted
        raise UsageError(f"{data} has none of the layouts {names}, nor have its folders: see docs, or write a meta_<set>.json")
    known = [one.name for one in found]
    if only is not None:
        found = [one for one in found if one.name == only]
        if not found:
            raise UsageError(f"--set is {only!r}; {data} has {', '.join(known)}")
    if empty := [one.name for one in found if not one.items]:
        raise UsageError(f"the set {empty[0]} in {data} lists no image: copy it again, or name another --layout")
    if len({one.name for one in found}) < len(found):
        raise UsageError(f"{data} has two sets of one name ({', '.join(sorted(known))}): rename a folder")
    return found


def limited(data: DataSet, per_kind: int, seed: int) -> DataSet:
    """At most ``per_kind`` images of each kind of each category; the same ones for the same seed on every machine."""
    kinds: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in data.items:
        kinds[item.category, item.specie].append(item)
    kept: set[str] = set()
    for (category, specie), items in kinds.items():
        # A string seeds Random by its bytes, not by the salted hash.
        chance = random.Random(f"{seed}/{data.name}/{category}/{specie}")
        names = sorted(item.name for item in items)
        kept.update(chance.sample(names, min(per_kind, len(names))))
    return replace(data, items=tuple(item for item in data.items if item.name in kept))


def _sets_of(folder: Path, layout: str | None, train: bool) -> list[DataSet]:
    if layout in (None, meta.NAME) and (lists := meta.meta_files(folder)):
        return [
            _set(meta.set_name(path), meta.NAME, folder, meta.items(path), meta.train_items(path) if train else ())
            for path in lists
        ]
    for module in LAYOUTS:
        if layout in (None, module.NAME) and module.matches(folder):
            listed = getattr(module, "train_items", None)
            good = listed(folder) if train and listed is not None else ()
            return [_set(folder.resolve().name, module.NAME, folder, module.items(folder), good)]
    return []


def _set(name: str, layout: str, root: Path, items: Iterable[Item], train: Iterable[Item]) -> DataSet:
    return DataSet(name, layout, root, tuple(items), tuple(train))
