"""Presets: TOML files in ``agvas_core/presets``, those of the paper's tables in its folder ``ablations``; or files of one's own.

A preset that ``extends`` another one holds only what differs::

    extends = "ov-7b"

    [model]
    name = "ov-7b-no-spam"
    spam = false

Tables are merged key by key. Only one that names another model (``pretrained``, ``kind`` or ``family``), or trains on other ``examples``,
takes the place of the whole table: the numbers of one encoder mean nothing to another.
"""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Final

from agvas_core.contract.errors import UsageError
from agvas_core.contract.validation import did_you_mean

__all__ = ["ablation_names", "load_preset", "preset_names"]

ABLATIONS: Final = "ablations"
_WHOSE: Final = ("pretrained", "kind", "family", "examples")  # keys that say what a table is about


def preset_names() -> list[str]:
    """Names of the presets that ship with the package, without the ablations."""
    return _names("")


def ablation_names() -> list[str]:
    """Names of the paper's ablations and baselines, each with its folder: ``ablations/no-spam``."""
    return [f"{ABLATIONS}/{name}" for name in _names(ABLATIONS)]


def load_preset(name: str | Path) -> dict[str, Any]:
    """The tables of a preset, by name or as a path of a TOML file, with those that it extends.

    Raises:
        UsageError: no such preset, not TOML, or one that extends itself.
    """
    return _load(str(name), Path(), ())


def _load(name: str, folder: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    """``folder`` is that of the file that said ``extends``: a path in it is relative to it."""
    own = name.endswith(".toml")
    path = folder / name
    key = str(path.resolve()) if own else name
    if key in seen:
        raise UsageError(f"{name} extends itself ({' -> '.join((*seen, key))}): break the circle")
    table = _parse(_read(path) if own else _read_packaged(name), name)
    parent = table.pop("extends", None)
    if parent is None:
        return table
    if not isinstance(parent, str):
        raise UsageError(f"{name}: extends is {parent!r}: give the name of one preset, or the path of a .toml file")
    return _merged(_load(parent, path.parent if own else Path(), (*seen, key)), table)


def _read(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"no configuration {path}: give a preset ({', '.join(preset_names())}) or an existing .toml file")
    return path.read_text(encoding="utf-8")


def _read_packaged(name: str) -> str:
    known = [*preset_names(), *ablation_names()]
    if name not in known:
        raise UsageError(
            f"no preset {name!r}; there are {', '.join(preset_names())}{did_you_mean(name, known)}"
            + (f"; and {', '.join(ablation_names())}" if name.startswith(ABLATIONS) else "")
        )
    return (resources.files("agvas_core.presets") / f"{name}.toml").read_text(encoding="utf-8")


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name} is not TOML: {error}") from error


def _merged(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(table)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict) and not _is_another(old, value)
        result[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _is_another(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return any(key in new and new[key] != old.get(key) for key in _WHOSE)


def _names(folder: str) -> list[str]:
    files = (resources.files("agvas_core.presets") / folder).iterdir()
    return sorted(path.name.removesuffix(".toml") for path in files if path.name.endswith(".toml"))
