"""Bundle -> verdicts. Runs without torch.

from agvas_runtime import Segmenter
for result in Segmenter.load("nano").predict("parts/", stream=True):
    print(result.name, result.verdict, len(result.regions))
"""

from agvas_runtime.frame import Frame
from agvas_runtime.result import Region, Result, Verdict
from agvas_runtime.segmenter import Segmenter

__all__ = ["Frame", "Region", "Result", "Segmenter", "Verdict"]
