"""What two recipes differ in, key by key; comments and order do not count."""

import json
from typing import Any

from agvas_runtime.line.recipe import Recipe

__all__ = ["differences"]


def differences(old: Recipe, new: Recipe) -> list[str]:
    """One line per key: ``deadline_ms: 2000.0 -> 1500.0``; ``(none)`` where one of the two has nothing there."""
    before, after = _leaves(old.model_dump(mode="json")), _leaves(new.model_dump(mode="json"))
    return [
        f"{key}: {before.get(key, '(none)')} -> {after.get(key, '(none)')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _leaves(value: Any, where: str = "") -> dict[str, str]:
    """Dotted key -> the value as JSON. Lists of numbers, polygons among them, are one value."""
    if isinstance(value, dict) and value:
        return {
            key: leaf
            for name, inner in value.items()
            for key, leaf in _leaves(inner, f"{where}.{name}" if where else name).items()
        }
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {key: leaf for number, inner in enumerate(value, 1) for key, leaf in _leaves(inner, f"{where}[{number}]").items()}
    return {} if value is None or value == {} or value == [] else {where: json.dumps(value, ensure_ascii=False)}
