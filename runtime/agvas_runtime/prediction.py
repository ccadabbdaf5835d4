"""The runtime as a predictor for ``agvas eval``, which finds it by its entry point (group ``agvas.predictors``).

predictor = open_predictor("nano")
score_map, mask, verdict = predictor.predict(Path("part.png"))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import ImageError
from agvas_core.contract.prompts import Mode
from agvas_runtime.frame import Frame
from agvas_runtime.image_file import read_image
from agvas_runtime.segmenter import Segmenter
from agvas_runtime.stages.protocol import Features, LmmStage, Reply, Turn

__all__ = ["BundlePredictor", "open_predictor"]


class BundlePredictor:
    """A segmenter, one file at a time."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.name = segmenter.bundle.manifest.name
        self.identity = segmenter.bundle.identity

    def predict(self, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_], str]:
        """Score map float32 [H, W] in 0..1 and mask bool [H, W] at the image's own resolution, and the verdict.

        Raises:
            ImageError: there is no verdict on this image.
        """
        image = read_image(path, max_pixels=self.segmenter.max_pixels)
        result = self.segmenter.segment(Frame(name=str(path), index=0, image=image, path=path))
        if result.score_map is None or result.mask is None:
            raise ImageError(f"{path}: {result.error}")
        return result.score_map, result.mask, str(result.verdict)

    def reply(
        self,
        image: NDArray[np.uint8],
        instruction: str | None = None,
        mode: str = "direct",
        zero_anchors: bool = False,
        normal_look: str | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], str | None, float]:
        """What the model makes of words: score map float32 [H, W], mask bool [H, W], its answer where it gave one, and acceptance 0..1.

        Args:
            image: RGB uint8 [H, W, 3].
            instruction: what to look for; the mode's own where None.
            mode: how the model answers (``Mode``).
            zero_anchors: gives the decoder zeros in place of the anchors' states: what is left is what the words do not give.
            normal_look: how a good part looks, for ``describe-plus``.

        Raises:
            ImageError: there is no verdict on this image.
            UsageError: an instruction or mode that cannot be meant.
        """
        segmenter = self.segmenter.with_lmm(_Silenced(self.segmenter.lmm)) if zero_anchors else self.segmenter
        result = segmenter.segment(
            Frame(name="image", index=0, image=image), prompt=instruction, mode=mode, normal_look=normal_look
        )
        if result.score_map is None or result.mask is None or result.accept is None:
            raise ImageError(str(result.error))
        return result.score_map, result.mask, result.answer, result.accept


class _Silenced:
    """A language model whose anchors carry nothing."""

    def __init__(self, lmm: LmmStage) -> None:
        self.lmm = lmm

    def __call__(self, features: Features, instruction: str, mode: Mode = Mode.DIRECT, history: Sequence[Turn] = ()) -> Reply:
        reply = self.lmm(features, instruction, mode, history)
        return reply._replace(anchor_states=np.zeros_like(reply.anchor_states))


def open_predictor(model: str | Path = "nano", **options: Any) -> BundlePredictor:
    """Opens a bundle, on ONNX Runtime where nothing else is named.

    Args:
        model: a bundled name, or the folder or zip of a bundle.
        options: of ``Segmenter.load``: vision, lmm, decoder, settings, threads, operating_point, threshold, prompt, tiling, max_pixels.

    Raises:
        UsageError: no such model, or an option out of range.
        BundleError: a bundle that is broken, foreign or too new.
    """
    return BundlePredictor(Segmenter.load(model, **options))
