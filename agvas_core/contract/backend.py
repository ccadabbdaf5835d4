"""What an engine offers for comparison with another: three stages with plain arrays, and verdicts made by any three.

A package that runs bundles registers two functions under the group ``agvas.stages``, ``names`` and ``open``:

    backend = open(folder, names()[0])            # of a bundle
    features = backend.see(semantic, pixel)       # stage 1
    said = backend.ask(features, instruction)     # stage 2
    logits = backend.decode(said["anchor_states"], features)
    judged = backend.judge(backend.read(path), instruction)

``judge`` goes the whole way of a frame, over scales and tiles, with its own stages or with another's; so two engines differ by their stages
and by nothing else. ``references``, a third function, opens the references graph of a bundle: ``references(folder, name)`` is a ``Comparison``, or
None where there is nothing to compare.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["STAGES_GROUP", "Arrays", "Backend", "Comparison", "Judged", "Stages"]

STAGES_GROUP = "agvas.stages"

Arrays = Mapping[str, NDArray[Any]]


class Stages(Protocol):
    """The three stages of a model; arrays by the names of the manifest."""

    def see(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Arrays:
        """uint8 RGB [B, Hs, Ws, 3] and [B, Hp, Wp, 3] -> f_s, f_align, f_p and, if any, f_detail."""
        ...

    def ask(self, features: Arrays, instruction: str) -> Arrays:
        """In direct mode: anchor_states [B, 3, D] and accept [B]."""
        ...

    def decode(self, anchor_states: NDArray[np.float32], features: Arrays) -> NDArray[np.float32]:
        """Logits [B, 3, Hm, Wm] in anchor order."""
        ...


class Judged(NamedTuple):
    """What came of one frame."""

    score_map: NDArray[np.float32]
    """P, [H, W] in 0..1."""
    mask: NDArray[np.bool_]
    verdict: str
    score: float


class Backend(Stages, Protocol):
    """A bundle on one engine."""

    device: str
    """What it computes on: a provider, a card."""
    versions: Mapping[str, str]
    """Of the packages that make the answer."""

    def read(self, path: Path) -> NDArray[np.uint8]:
        """A picture as RGB, as a run reads it.

        Raises:
            ImageError: it cannot be used.
        """
        ...

    def judge(self, image: NDArray[np.uint8], instruction: str, stages: Stages | None = None) -> Judged:
        """One frame, RGB uint8 [H, W, 3], by ``stages``, or by its own.

        Raises:
            ImageError: there is no verdict on this image.
        """
        ...


class Comparison(Protocol):
    """The references graph of a bundle, and a product's fitted head, on one engine."""

    def __call__(self, image: NDArray[np.uint8], truth: Arrays | None = None) -> Arrays:
        """Of RGB uint8 [H, W, 3]: ``embedding`` [h, w, D], the squares of the distances ``deep`` and ``joint`` [h, w], the ``bank``
        [rows, D] that they are to and, of a product with a fitted head, its ``logit`` [h, w]. Squares, for a root turns the last bit of a
        distance of 0 into a thousandth.

        Args:
            truth: the reference's answer, whose bank is taken and whose embedding and distances the head is given. Where there is none
                the bank is the product's, or every third cell of the image's own.

        Raises:
            ImageError: the engine fails on this image.
        """
        ...
