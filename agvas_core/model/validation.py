"""A configuration table -> a pydantic model, with errors that name the key and the nearest one that exists."""

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from agvas_core.contract.errors import UsageError

__all__ = ["did_you_mean", "validated"]

Table = TypeVar("Table", bound=BaseModel)


def validated(kind: type[Table], table: dict[str, Any], what: str) -> Table:
    """``table`` as a ``kind``; ``what`` opens the message.

    Raises:
        UsageError: names the key, and for an unknown key the nearest that exists.
    """
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        unknown = first["type"] == "extra_forbidden"
        hint = did_you_mean(str(first["loc"][-1]), _keys_at(kind, first["loc"][:-1])) if unknown else ""
        raise UsageError(f"{what}: {where}: {first['msg']}{hint}") from error


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """End of a message about an unknown key: the nearest that exists, or nothing."""
    near = difflib.get_close_matches(key, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _keys_at(kind: type[BaseModel], where: tuple[str | int, ...]) -> Iterable[str]:
    """Keys of the table that ``where`` leads to; an index leads into the rows of a list."""
    table = kind
    for part in where:
        if isinstance(part, int):
            continue
        annotation = table.model_fields[part].annotation
        inner = next(
            (one for one in (annotation, *get_args(annotation)) if isinstance(one, type) and issubclass(one, BaseModel)), None
        )
        if inner is None:
            return ()
        table = inner
    return table.model_fields
