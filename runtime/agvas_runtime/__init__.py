"""Bundle -> verdicts. Runs without torch.

from agvas_runtime import Segmenter
for result in Segmenter.load("nano").predict("parts/", stream=True):
    print(result.name, result.verdict, len(result.regions))
"""

from importlib import import_module
from typing import TYPE_CHECKING

import agvas_core  # noqa: F401 - before ONNX Runtime, whose reports it turns off

if TYPE_CHECKING:
    from agvas_runtime.images.frame import Frame
    from agvas_runtime.masks.result import Region, Result, Verdict
    from agvas_runtime.pipeline.options import SegmentOptions
    from agvas_runtime.pipeline.segmenter import Segmenter

__all__ = ["Frame", "Region", "Result", "SegmentOptions", "Segmenter", "Verdict"]

_HOMES = {
    "Frame": "images.frame",
    "Region": "masks.result",
    "Result": "masks.result",
    "SegmentOptions": "pipeline.options",
    "Segmenter": "pipeline.segmenter",
    "Verdict": "masks.result",
}


def __getattr__(name: str) -> object:
    """Imports a name when it is first used: `agvas-run --help` must not wait for OpenCV."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
