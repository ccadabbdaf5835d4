"""One frame on its way from a source to a verdict."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import AgvasError
from agvas_core.contract.preprocess import View, ViewSpec

__all__ = ["Frame", "Sent"]


@dataclass(frozen=True)
class Sent:
    """A picture as a camera sends it; ``views.camera_views`` says what is possible."""

    data: NDArray[np.generic]
    pixel_format: str
    """``Mono8``, ``BayerRG8``, ``NV12``, ..."""
    size: tuple[int, int]
    """(height, width) in px."""
    bits: int = 16
    """Of each sample of Mono16, how many carry the value."""


@dataclass(frozen=True)
class Frame:
    """A picture, or the reason why there is none.

    Exactly one of ``image`` and ``error`` is set: a part that could not be read still has its frame, and so its NO_VERDICT.
    """

    name: str
    """Path as the user gave it, ``clip.mp4#000120`` for a video, ``camera-0#000007`` for a camera."""
    index: int
    """Counts from 0 within a run."""
    image: NDArray[np.uint8] | None = None
    """RGB, [H, W, 3]."""
    error: AgvasError | None = None
    path: Path | None = None
    """The file it came from, where there is one."""
    read_ms: float = 0.0
    """Time spent reading and decoding."""
    trigger: str | None = None
    """What asked for this frame, unique at its station; None where nothing but its coming did."""
    taken_s: float | None = None
    """``time.monotonic`` of the trigger; None where it is the time at which the frame is taken up."""
    views: Mapping[ViewSpec, View] = field(default_factory=dict, compare=False)
    """Views of the whole frame that were made with the image, in one pass over what the camera sent."""
