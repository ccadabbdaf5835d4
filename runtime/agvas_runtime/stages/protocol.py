"""The three stages, and what passes between them.

One implementation per engine, one file each; a segmenter may mix them. Arrays are NumPy's, or lie on a GPU and can be read with
``np.asarray``; shapes follow the manifest's graph specifications. An engine that has all three may keep
what lies between them (``JoinedVision``), and do what is before and after them, too (``FramedVision``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.decision import OperatingPoint
from agvas_core.contract.preprocess import ViewSpec
from agvas_core.contract.prompts import Mode
from agvas_runtime.images.tiling import Scale

__all__ = [
    "DecoderStage",
    "DirectStage",
    "Features",
    "FramePlan",
    "FrameReferences",
    "FrameSeen",
    "FrameStage",
    "FramedVision",
    "HeadStage",
    "JoinedVision",
    "LmmStage",
    "Pending",
    "PendingFrame",
    "ProbedVision",
    "ReferenceDistances",
    "ReferenceStage",
    "Reply",
    "Segmented",
    "TellingLmm",
    "Turn",
    "VisionStage",
]

Float = NDArray[np.float32]


class Features(NamedTuple):
    """Output of the vision stage."""

    f_s: Float
    """Semantic tokens, [B, N, D]."""
    f_align: Float
    """Aligned tokens (eq. 2), [B, N, D]."""
    decoder: dict[str, Float]
    """What the decoder needs, by input name: ``f_p`` [B, C, h, w] and any finer features."""


class Reply(NamedTuple):
    """Output of the LMM stage."""

    anchor_states: Float
    """[B, 3, D] in anchor order; zeros where there are none."""
    accept: Float
    """Does the model answer (1) or refuse (0), [B]. In direct mode its own probability of the one against the other, in the others
    what it did."""
    found: NDArray[np.bool_]
    """Does the answer have the three anchors, [B]; a row without them has an empty mask."""
    answers: list[str] | None = None
    """What it said, [B]; None in direct mode, whose answer is known."""


class Turn(NamedTuple):
    """What was said earlier in a dialogue about the same image."""

    instruction: str
    answer: str
    """As the LMM stage gave it; ``ANCHORS_SHOWN`` in it stands for the anchors."""


class VisionStage(Protocol):
    """Stage 1: views to features."""

    def __call__(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Features:
        """uint8 RGB [B, Hs, Ws, 3] and [B, Hp, Wp, 3] to features."""
        ...


class LmmStage(Protocol):
    """Stage 2: features and words to the three anchor states, and to more words."""

    def __call__(self, features: Features, instruction: str, mode: Mode = Mode.DIRECT, history: Sequence[Turn] = ()) -> Reply:
        """In direct mode one prefill with the fixed answer appended; in the others greedy decoding.

        Args:
            history: the dialogue so far, oldest first. The anchors of earlier answers do not count.

        Raises:
            UsageError: the instruction is longer than the model takes, or has control tokens in it.
            StageError: the engine is down; the frame gets NO_VERDICT.
        """
        ...


@runtime_checkable
class TellingLmm(Protocol):
    """A language model that streams its answer."""

    def telling(self, tell: Callable[[str], None]) -> LmmStage:
        """The same language model; ``tell`` is given each piece of an answer as it is said, and may raise to end it."""
        ...


class Segmented(NamedTuple):
    """Output of all three stages at once, in direct mode."""

    logits: Float
    """[B, 3, Hm, Wm] in anchor order."""
    accept: Float
    """[B], as in ``Reply``."""


class Pending(Protocol):
    """A batch that an engine works on."""

    def result(self) -> Segmented:
        """Waits for it; once only.

        Raises:
            StageError: the engine is down.
        """
        ...


class DirectStage(Protocol):
    """All three stages at once, in direct mode: what lies between them stays where it is computed."""

    def __call__(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8], instruction: str) -> Pending:
        """Begins, and returns at once; arguments and errors are those of the three."""
        ...


@runtime_checkable
class JoinedVision(Protocol):
    """A vision stage whose engine can do all three."""

    def joined(self, lmm: object, decoder: object) -> DirectStage | None:
        """All three, or None where another engine has one of them."""
        ...


@dataclass(frozen=True, eq=False)
class FrameReferences:
    """Good images that whole frames are compared with in the same launch. Make one of them and keep it: its identity is the key of the
    graph."""

    stage: "ReferenceStage"
    bank: Float
    """float32 [rows, D]."""
    view: ViewSpec
    """Of the whole frame."""
    colour_weight: float = 1.0
    takes_features: bool = False
    """Whether the stage takes features of the vision stage; no engine does that within a whole frame."""


@dataclass(frozen=True)
class FramePlan:
    """A frame of one size, and all looks at it."""

    size: tuple[int, int]
    """(H, W) px."""
    semantic: ViewSpec
    """Of every tile, and of the whole frame."""
    looks: tuple[Scale, ...]
    alpha: float
    """Of eq. 8."""
    tiles_at_once: int
    """That go through the model together, at most."""
    references: FrameReferences | None = None
    """With them the distances come back, too."""


class FrameSeen(NamedTuple):
    """Output of a whole frame at once, in direct mode."""

    score_map: Float
    """P, float32 [H, W]."""
    score: float
    """The highest value of it."""
    accept: float
    """As in ``Reply``, over all looks."""
    anomalous: bool
    """Whether a region of it counts, by the operating point that it was seen under."""
    deep: Float | None = None
    """float32 [h, w], see ``ReferenceDistances``, of the whole frame; None where the plan has no references."""
    joint: Float | None = None


class PendingFrame(Protocol):
    """A frame that an engine works on."""

    def result(self) -> FrameSeen:
        """Waits for it; once only.

        Raises:
            ImageError: the model gives values that are not finite.
            StageError: the engine is down.
        """
        ...


class FrameStage(Protocol):
    """From a frame's pixels to its score map in direct mode: views, all three stages, eq. 7 and 8 on one device."""

    def __call__(self, image: NDArray[np.uint8], plan: FramePlan, instruction: str, point: OperatingPoint) -> PendingFrame | None:
        """Begins with RGB uint8 [H, W, 3], and returns at once. None where frames of this size go the other way, so the first of them, and
        all of a plan whose references another engine has or whose view of them is no smaller than the frame."""
        ...


@runtime_checkable
class FramedVision(Protocol):
    """A vision stage whose engine can do a whole frame at once."""

    def framed(self, lmm: object, decoder: object) -> FrameStage | None:
        """That, or None where another engine has one of the stages, or the native core has no kernels for this GPU."""
        ...


@runtime_checkable
class ProbedVision(Protocol):
    """A joined vision stage whose engine has a clock on its device."""

    def joined(self, lmm: object, decoder: object) -> DirectStage | None:
        """See ``JoinedVision``."""
        ...

    def times(
        self, lmm: object, views: tuple[NDArray[np.uint8], NDArray[np.uint8]], instruction: str, count: int
    ) -> dict[str, list[float]]:
        """Milliseconds of copies, stages and the whole, each ``count`` times, of a batch of views in direct mode."""
        ...

    def limits(self) -> tuple[str, float, float]:
        """What was measured, in words; FLOP/s of a product of matrices in the engine's precision; bytes/s of a copy, read plus written."""
        ...


class DecoderStage(Protocol):
    """Stage 3: anchor states and pixel features to mask logits."""

    def __call__(self, anchor_states: Float, features: Features) -> Float:
        """Logits [B, 3, Hm, Wm] in anchor order, covering the whole pixel view."""
        ...


class ReferenceDistances(NamedTuple):
    """Output of the reference stage; one value for each cell of ``manifest.references.stride`` px."""

    embedding: Float
    """[B, h, w, D], deep channels first, then colour; rows of a bank have this form."""
    deep: Float
    """[B, h, w], Euclidean distance of the deep channels to the nearest row of the bank."""
    joint: Float
    """[B, h, w], the same of all channels, colour weighted."""


class ReferenceStage(Protocol):
    """An image's cells and how far they are from those of good images."""

    def embed(self, image: NDArray[np.uint8], features: Features | None = None) -> Float:
        """Embedding of each cell, float32 [B, h, w, D].

        Args:
            image: uint8 RGB [B, H, W, 3]: a view by ``manifest.references.view``; where that is None, the pixel view.
            features: what the vision stage made of the pixel view; needed where there is no view of its own.

        Raises:
            UsageError: no features where they are needed.
            ImageError: the engine fails on this image.
        """
        ...

    def __call__(
        self, image: NDArray[np.uint8], bank: Float, features: Features | None = None, *, colour_weight: float = 1.0
    ) -> ReferenceDistances:
        """Embedding and distances.

        Args:
            bank: float32 [rows, D], one row or more.
            colour_weight: of the squared colour distance in ``joint``; 0 leaves colour out.

        Raises:
            UsageError: a bank of another shape or type; as ``embed``.
            ImageError: the engine fails on this image.
        """
        ...


class HeadStage(Protocol):
    """A head that was fitted to one product: where its cells look like a defect."""

    def __call__(self, embedding: Float, rarities: Float) -> Float:
        """Logits, float32 [B, h, w].

        Args:
            embedding: of the reference stage, float32 [B, h, w, D].
            rarities: of joint and deep distance and of the model's own score map, float32 [B, 3, h, w].

        Raises:
            ImageError: the engine fails on this image.
        """
        ...
