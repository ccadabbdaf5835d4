"""AG-VAS: visual anomaly segmentation that a production line can run.

    from agvas import Segmenter

    for result in Segmenter.load("nano").predict("parts/", stream=True):
        print(result.name, result.verdict, result.score)

This package is the top floor: the command ``agvas`` with its verbs, and ``fit``. It alone may import all three packages below it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from agvas_core import __version__

if TYPE_CHECKING:
    from agvas.fitting.fit import fit
    from agvas_runtime import Frame, Region, Result, Segmenter, SegmentOptions, Verdict

__all__ = ["Frame", "Region", "Result", "SegmentOptions", "Segmenter", "Verdict", "__version__", "fit"]

_HOMES = dict.fromkeys(("Frame", "Region", "Result", "SegmentOptions", "Segmenter", "Verdict"), "agvas_runtime")
_HOMES["fit"] = "agvas.fitting.fit"


def __getattr__(name: str) -> object:
    """Imports a name when it is first used, so that ``agvas --help`` does not wait for OpenCV."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
