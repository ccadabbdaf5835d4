"""Top-level keys of a recipe's text, replaced; comments and everything else stay as they are."""

from collections.abc import Mapping
from typing import Any

import yaml

__all__ = ["with_keys"]


def with_keys(text: str, values: Mapping[str, Any]) -> str:
    """The text of a valid recipe with these top-level keys at its end, and none of them before."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    lines = text.splitlines(keepends=True)
    if node is None or node.flow_style:  # {product: x}: written out anew
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
