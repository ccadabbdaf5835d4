"""A configuration table -> a pydantic model, with errors that name the key and the nearest one that exists."""

import difflib
import json
from collections.abc import Iterable
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from agvas_core.contract.errors import UsageError

__all__ = ["FiniteModel", "StrictModel", "did_you_mean", "nearest", "validated"]


class StrictModel(BaseModel):
    """The base of every configuration and record: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FiniteModel(StrictModel):
    """The same, and no number is NaN or infinite."""

    model_config = ConfigDict(allow_inf_nan=False)


Table = TypeVar("Table", bound=BaseModel)


def validated(kind: type[Table], table: dict[str, Any], what: str, *, strict: bool = False) -> Table:
    """``table`` as a ``kind``; ``what`` opens the message.

    Args:
        strict: nothing is converted: ``yes`` is no number and ``"0.5"`` is none either.

    Raises:
        UsageError: names the key, and for an unknown key the nearest that exists.
    """
    try:
        if strict:  # as JSON, where a list is a tuple even so
            return kind.model_validate_json(_as_json(table, what), strict=True)
        return kind.model_validate(table)
    except ValidationError as error:
        errors = error.errors()
        # A key that is spelt wrong is also missing under its right name: the first says more.
        first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
        where = ".".join(str(part) for part in first["loc"])
        unknown = first["type"] == "extra_forbidden"
        hint = did_you_mean(str(first["loc"][-1]), _keys_at(kind, first["loc"][:-1])) if unknown else ""
        raise UsageError(
            ": ".join(part for part in (what, where, first["msg"].removeprefix("Value error, ") + hint) if part)
        ) from error


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """End of a message about an unknown key: the nearest that exists, or nothing."""
    near = nearest(key, known)
    return f"; did you mean {near}?" if near else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that was perhaps meant; None where none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)


def _as_json(table: dict[str, Any], what: str) -> str:
    try:
        return json.dumps(table, default=_no_json)
    except ValueError as error:  # an integer of thousands of digits
        raise UsageError(f"{what} has a number that is too long ({error}): write one that can be meant") from error


def _no_json(value: object) -> str:
    """YAML and TOML know dates; the model says where one stands and that it is none of what it takes."""
    return f"{type(value).__name__} {value}"


def _keys_at(kind: type[BaseModel], where: tuple[str | int, ...]) -> Iterable[str]:
    """Keys of the table that ``where`` leads to; an index leads into the rows of a list, a free name into a table of tables."""
    table, named = kind, False
    for part in where:
        if isinstance(part, int) or named:
            named = False
            continue
        annotation = table.model_fields[part].annotation if part in table.model_fields else None
        inner = _table_in(annotation)
        if inner is None:
            return ()
        table, named = inner, _is_free(annotation)
    return table.model_fields


def _table_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := _table_in(one)) is not None), None)


def _is_free(annotation: Any) -> bool:
    """Whether the keys of this table are the user's own: ``dict[str, Kind]``."""
    return getattr(annotation, "__origin__", None) is dict
