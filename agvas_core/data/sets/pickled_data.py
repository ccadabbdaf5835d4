"""Plain data out of a pickle, without running the pickle.

The referring sets are published as pickles, and a pickle is a program: loading one runs whatever its author, or whoever changed the
download, put into it. Telling users to convert the file themselves would only move that risk to them. So the file is read here as what
it is, a list of instructions: those that make lists, dictionaries, text and numbers are followed, and at the first other one (importing a
name, calling something) the file is refused. Nothing of it is ever imported or called, and the pickle module is not used.

    refs = read_plain(Path("refcoco/refs(unc).p"))
"""

import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from agvas_core.contract.errors import UsageError

__all__ = ["read_plain"]

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
