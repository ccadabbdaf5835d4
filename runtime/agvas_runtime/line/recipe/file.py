"""A recipe's YAML text -> a Recipe and its version, which is the sha256 of the bytes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from agvas_core.contract.errors import RecipeError, UsageError
from agvas_core.contract.validation import validated
from agvas_runtime.line.recipe.recipe import Recipe

__all__ = ["RecipeVersion", "parse_recipe", "read_recipe", "with_keys"]

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
PREFIX_LENGTH = 12
"""Digits of a version's sha256 that name it."""


@dataclass(frozen=True)
class RecipeVersion:
    """A valid recipe with the text it came from."""

    recipe: Recipe
    text: str

    @cached_property
    def sha256(self) -> str:
        """Of the file, as ``sha256sum`` says it."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def identity(self) -> str:
        """``bracket-42@0123456789ab``."""
        return f"{self.recipe.product}@{self.sha256[:12]}"


def read_recipe(path: Path) -> RecipeVersion:
    """The recipe in a file.

    Raises:
        RecipeError: it is not there, no YAML, or wrong; the message names the key and what is possible.
    """
    try:
        if path.is_dir():
            raise RecipeError(f"{path} is a folder, a recipe is a file: give FILE.yaml, or a store with an active recipe")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"the recipe {path} cannot be read ({reason}): make one with agvas recipe new PRODUCT") from error
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{path} is larger than {MAX_BYTES / 1e6:g} MB, which no recipe is: check the name")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is no UTF-8 text (byte {error.start}): save it as UTF-8") from error
    return parse_recipe(text, str(path))


def parse_recipe(text: str, what: str) -> RecipeVersion:
    """The recipe in ``text``; ``what`` opens the messages.

    Raises:
        RecipeError: as for ``read_recipe``.
    """
    try:
        table = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{what} is no valid YAML: {' '.join(str(error).split())}") from error
    except (RecursionError, ValueError) as error:  # brackets without end; a date that no calendar has
        raise RecipeError(f"{what} cannot be read as YAML ({error}): check its brackets, dates and numbers") from error
    if not isinstance(table, dict):
        raise RecipeError(f"{what} holds {_kind_of(table)}; a recipe is a table that begins with product: NAME")
    _check_keys(table, what, 0)
    try:
        return RecipeVersion(validated(Recipe, table, what, strict=True), text)
    except RecipeError:
        raise
    except UsageError as error:
        raise RecipeError(str(error)) from error


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """YAML without what makes two readers see two things: a key given twice, an alias."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(None, None, "an alias (*name) is not allowed: write it out", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen if isinstance(key.value, str) else False:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        table: dict[Any, Any] = super().construct_mapping(node, deep)
        return table


def _check_keys(value: object, what: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise RecipeError(f"{what} is nested more than {MAX_DEPTH} deep, which no recipe is")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise RecipeError(f"{what}: the key {key!r} is {_kind_of(key)}, and keys are words: put it in quotes")
            _check_keys(inner, what, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_keys(inner, what, depth + 1)


def _kind_of(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


# Top-level keys of a recipe's text, replaced; comments and everything else stay as they are.


def with_keys(text: str, values: Mapping[str, Any]) -> str:
    """The text of a valid recipe with these top-level keys at its end, and none of them before."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    lines = text.splitlines(keepends=True)
    if node is None or node.flow_style:  # {product: x}: written out again
        table = yaml.safe_load(text) or {}
        return "".join(_block(key, value) for key, value in {**table, **values}.items())
    for key, value in reversed(node.value):
        if key.value in values:
            first = key.start_mark.line
            end = value.end_mark.line + (value.end_mark.column > 0)
            while end > first + 1 and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
                end -= 1
            del lines[first : max(end, first + 1)]
    kept = "".join(lines).rstrip("\n")
    return kept + "\n\n" + "".join(_block(key, value) for key, value in values.items())


def _block(key: str, value: Any) -> str:
    """One key; of a table each inner key on a line of its own."""
    if isinstance(value, dict) and value:
        return f"{key}:\n" + "".join(f"  {name}: {_flow(inner)}\n" for name, inner in value.items())
    return f"{key}: {_flow(value)}\n"


def _flow(value: Any) -> str:
    text = str(yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf")))
    return text.removesuffix("\n").removesuffix("\n...")
