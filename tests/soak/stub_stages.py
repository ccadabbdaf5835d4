"""Three stages that cost next to nothing, behind which everything of the runtime is real: views, tiles, fusion, regions, rules.

    inspector = stub_inspector()

What is dark is anomalous, as the bundle's own decoder would say it in logits of the bundle's shapes. A backend is a line in
``BACKENDS`` and a module with ``open_stage``; so these are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.prompts import Mode
from agvas_runtime.bundle import load_bundle
from agvas_runtime.line.station.inspector import SegmenterInspector
from agvas_runtime.pipeline.options import SegmentOptions
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.stages.open import BACKENDS
from agvas_runtime.stages.protocol import Features, Reply, Turn


class StubVision:
    """Darkness at half the pixel view's resolution, and tokens that say nothing."""

    def __call__(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Features:
        tokens = np.zeros((len(pixel_image), 1, 1), np.float32)
        return Features(tokens, tokens, {"darkness": 1.0 - pixel_image[:, ::2, ::2, 1].astype(np.float32) / 255.0})


class StubLmm:
    """Answers at once, with three anchors."""

    def __call__(self, features: Features, instruction: str, mode: Mode = Mode.DIRECT, history: Sequence[Turn] = ()) -> Reply:
        views = len(features.f_s)
        said = None if mode is Mode.DIRECT else ["There is something dark."] * views
        return Reply(np.zeros((views, 3, 1), np.float32), np.ones(views, np.float32), np.ones(views, bool), said)


class StubDecoder:
    """Logits of -16 where a pixel is white and 16 where it is black."""

    def __call__(self, anchor_states: NDArray[np.float32], features: Features) -> NDArray[np.float32]:
        logit = (features.decoder["darkness"] - 0.5) * 32.0
        return np.stack([-logit, logit, logit], axis=1)  # [B, 3, H/2, W/2]


def open_vision(*_: Any) -> StubVision:
    """As every backend is opened."""
    return StubVision()


def open_lmm(*_: Any) -> StubLmm:
    """As every backend is opened."""
    return StubLmm()


def open_decoder(*_: Any) -> StubDecoder:
    """As every backend is opened."""
    return StubDecoder()


def stub_segmenter() -> Segmenter:
    """Nano's bundle without its weights at work."""
    return Segmenter(load_bundle("nano"), StubVision(), StubLmm(), StubDecoder())


def stub_inspector() -> SegmenterInspector:
    """The line's own inspector on these stages."""
    for stage, places in BACKENDS.items():
        places["stub"] = f"{__name__}:open_{stage}"  # type: ignore[index]  # open only here
    return SegmenterInspector(SegmentOptions(vision="stub", lmm="stub", decoder="stub"))
