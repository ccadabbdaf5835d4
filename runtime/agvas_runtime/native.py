"""The native core, where it was built: views, score maps, masks and regions in C++ (csrc/).

What it does, NumPy and OpenCV do as well, with the same views to the bit, the same masks except for pixels that lie within
``TOLERANCES["native"]`` of a threshold, and slower. So there is no option: it is used where it is built, and ``describe`` says so.
"""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

__all__ = ["core", "describe"]

_NAME = "agvas_runtime._native"

# Looked for, not tried: one that is there and does not load is broken, and that is an error.
core: ModuleType | None = import_module(_NAME) if find_spec(_NAME) is not None else None
"""``agvas_runtime._native``, whose stub says what it has; None where it was not built."""


def describe() -> str:
    """One line for ``agvas doctor`` and for profiles."""
    if core is None:
        return "not built: NumPy and OpenCV do its work, slower"
    return f"{core.instructions()}, {core.cores()} threads, {core.CUDA}"
