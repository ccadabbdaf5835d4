"""One frame through the three stages to its logits: at every scale, as a whole or tile by tile."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from time import perf_counter
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.decision import OperatingPoint
from agvas_core.contract.errors import BundleError, ImageError
from agvas_core.contract.manifest import Manifest
from agvas_core.contract.preprocess import View, ViewSpec, scaled_views
from agvas_core.contract.prompts import DEFAULT_INSTRUCTION, EMPTY_LOGITS, Anchor, Mode
from agvas_runtime.images.tiling import Scale, Tile, plan_scales
from agvas_runtime.images.views import make_views, shrinks
from agvas_runtime.pipeline.batching import Counts
from agvas_runtime.pipeline.frame_logits import FrameLogits, FrameMap
from agvas_runtime.pipeline.references import Prepared
from agvas_runtime.stages.protocol import (
    DecoderStage,
    DirectStage,
    Features,
    FramedVision,
    FramePlan,
    FrameStage,
    JoinedVision,
    LmmStage,
    Pending,
    PendingFrame,
    Reply,
    VisionStage,
)
from agvas_runtime.stages.whole_frame import LOGITS_BROKEN

__all__ = ["Clock", "Scored", "Scorer", "Seen", "SeenWhole"]

Float = NDArray[np.float32]
Rgb = NDArray[np.uint8]

MOST_TILES = 64  # of all looks, that go from pixels to P in one launch; what is kept for them grows with their number
ALL_AT_ONCE = "model"  # the stage's name where vision, language model and decoder are one launch, perhaps with the views and P


class Clock:
    """Milliseconds per stage, summed over the tiles of a frame."""

    def __init__(self, read_ms: float = 0.0) -> None:
        self.ms = {"read": read_ms} | dict.fromkeys(("preprocess", "vision", "lmm", "decoder", "postprocess"), 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to ``name``."""
        began = perf_counter()
        try:
            yield
        finally:
            self.ms[name] = self.ms.get(name, 0.0) + (perf_counter() - began) * 1000

    def timing(self) -> dict[str, float]:
        """All stages and their ``total``."""
        spent = self.ms
        if ALL_AT_ONCE in spent:  # the three were not called, and their zeros would read as figures
            spent = {name: ms for name, ms in spent.items() if name not in ("preprocess", "vision", "lmm", "decoder") or ms}
        return {**spent, "total": sum(spent.values())}


class Seen(NamedTuple):
    """What vision made of one batch of tiles of one look."""

    look: Scale
    tiles: list[Tile]
    views: list[View]
    features: Features | Pending
    """Pending where the engine goes on to the end by itself."""


class SeenWhole(NamedTuple):
    """A frame that an engine works on from its pixels to P."""

    pending: PendingFrame
    point: OperatingPoint
    """That it is judged under."""
    tiles: int
    """Of the finest look."""


class Scored(NamedTuple):
    """What the stages say of one frame."""

    logits: FrameLogits | FrameMap
    """Of all looks; they make the score map, and the verdict."""
    accept: float
    """The language model's acceptance: 1 where it answers, 0 where it refuses. Of tiles the highest counts, for one with a defect is
    enough; of looks the mean."""
    tiles: int
    """Of the finest look."""
    answer: str | None = None
    """What the language model said, where its mode has it speak."""
    whole: Prepared | None = None
    """The whole frame in the view that references share, with its features, where there was such a look and they came back."""


class Scorer:
    """Views -> vision -> LMM -> decoder -> logits (eq. 1-7), at each of the bundle's scales."""

    def __init__(
        self,
        manifest: Manifest,
        vision: VisionStage,
        lmm: LmmStage,
        decoder: DecoderStage,
        *,
        tiled: bool = True,
        threads: int | None = None,
        tiles: int = Counts.tiles,
        shared_view: ViewSpec | None = None,
    ) -> None:
        self.manifest = manifest
        self.vision = vision
        self.lmm = lmm
        self.decoder = decoder
        self.tiled = tiled
        self.threads = threads or 0  # of the native core, whose 0 is one per core
        self.tiles = _tiles_a_launch(manifest, tiles)
        self.shared_view = shared_view
        """Of references that take the vision stage's features: what is seen of a whole frame in it is kept for them."""

    def with_tiles(self, tiles: int) -> "Scorer":
        """The same, with up to so many tiles of a frame in one launch."""
        other = copy(self)
        other.tiles = _tiles_a_launch(self.manifest, tiles)
        return other

    def score(self, image: Rgb, instruction: str, clock: Clock, mode: Mode = Mode.DIRECT) -> Scored:
        """Both halves, one after the other; ``judge`` says what may be raised."""
        height, width = image.shape[:2]
        return self.judge(self.see(image, clock, mode, instruction), (height, width), instruction, clock, mode)

    def whole_views(self, height: int, width: int, mode: Mode = Mode.DIRECT) -> list[ViewSpec]:
        """The views that are made of a whole frame of this size; of tiles there are more, and they cannot be made beforehand. None where the engine
        makes them by itself."""
        if mode is Mode.DIRECT and self._framed() is not None:
            return []
        looks = [look for look in self._looks(height, width, mode) if len(look.tiles) == 1]
        return list(dict.fromkeys([self.manifest.semantic_view, *(look.view for look in looks)])) if looks else []

    def see(
        self,
        image: Rgb,
        clock: Clock,
        mode: Mode = Mode.DIRECT,
        instruction: str = DEFAULT_INSTRUCTION,
        ready: Mapping[ViewSpec, View] = MappingProxyType({}),
        point: OperatingPoint | None = None,
    ) -> Iterator[Seen | SeenWhole]:
        """The first half: views and vision of all looks, batch by batch, each as it is asked for.

        ``ready`` has views of the whole frame that were made before. Where the mode has words they are about the whole part: no tiles. An engine
        that has all three stages is given the ``instruction`` at once, and works on while the second half waits; with the ``point``, too, it
        may take the frame as it is.
        """
        direct = self._direct() if mode is Mode.DIRECT else None
        height, width = image.shape[:2]
        looks = self._looks(height, width, mode)
        if point is not None and mode is Mode.DIRECT and (whole := self._whole(image, looks, instruction, point, clock)):
            yield whole
            return
        for look in looks:
            waiting = list(look.tiles)
            while waiting:
                batch, waiting = waiting[: self.tiles], waiting[self.tiles :]
                with clock.stage("preprocess"):
                    specs = (self.manifest.semantic_view, look.view)
                    pairs = [
                        [ready[spec] for spec in specs]
                        if tile.whole and ready.keys() >= set(specs)
                        else make_views(image[tile.rows, tile.columns], specs, self.threads)
                        for tile in batch
                    ]
                    semantic = np.stack([shown.pixels for shown, _ in pairs])  # [B, Hs, Ws, 3]
                    seen = [view for _, view in pairs]
                    pixel = np.stack([view.pixels for view in seen])  # [B, H, W, 3]
                features: Features | Pending
                if direct is not None:
                    with clock.stage(ALL_AT_ONCE):
                        features = direct(semantic, pixel, instruction)
                else:
                    with clock.stage("vision"):
                        features = self.vision(semantic, pixel)
                yield Seen(look, batch, seen, features)

    def _looks(self, height: int, width: int, mode: Mode) -> list[Scale]:
        views = scaled_views(self.manifest.pixel_view, self.manifest.scales, height, width)
        return list(plan_scales(height, width, views, self.manifest.tiling, enabled=self.tiled and mode is Mode.DIRECT))

    def _whole(self, image: Rgb, looks: list[Scale], instruction: str, point: OperatingPoint, clock: Clock) -> SeenWhole | None:
        """The frame on its way, where the engine takes whole frames and this is one that it can take."""
        stage, semantic = self._framed(), self.manifest.semantic_view
        if (
            stage is None
            or sum(len(look.tiles) for look in looks) > MOST_TILES
            or not all(shrinks(spec, *look.tiles.size) for look in looks for spec in (semantic, look.view))
        ):
            return None
        size = image.shape[0], image.shape[1]
        plan = FramePlan(size, semantic, tuple(looks), self.manifest.decision.alpha, self.tiles)
        with clock.stage(ALL_AT_ONCE):
            pending = stage(image, plan, instruction, point)
        return None if pending is None else SeenWhole(pending, point, len(looks[0].tiles))

    def _framed(self) -> FrameStage | None:
        return self.vision.framed(self.lmm, self.decoder) if isinstance(self.vision, FramedVision) else None

    def _direct(self) -> DirectStage | None:
        return self.vision.joined(self.lmm, self.decoder) if isinstance(self.vision, JoinedVision) else None

    def judge(
        self, passes: Iterable[Seen | SeenWhole], size: tuple[int, int], instruction: str, clock: Clock, mode: Mode = Mode.DIRECT
    ) -> Scored:
        """The second half: language model and decoder on what ``see`` gave of a frame of ``size`` = (H, W) px.

        Where the mode has words there is one answer, whose anchors are for every scale. (Nano's anchors hardly depend on the scale: AP
        on seven sets is the same to three digits. In direct mode each scale has its own even so.)

        Raises:
            ImageError: the stages fail on this frame, or give values that are not finite.
            BundleError: the decoder's logits have another shape than the contract's.
        """
        spoken = mode is not Mode.DIRECT
        frame = FrameLogits(*size, self.threads)
        reply, accepts = None, dict[int, tuple[float, float]]()  # look -> its share, and the highest acceptance of its tiles
        tiles, whole = 0, None
        for seen in passes:
            if isinstance(seen, SeenWhole):
                with clock.stage(ALL_AT_ONCE):
                    found = seen.pending.result()
                return Scored(FrameMap(found, seen.point), found.accept, seen.tiles)
            look = seen.look
            if look.view == self.shared_view and len(look.tiles) == 1 and isinstance(seen.features, Features):
                whole = Prepared(seen.views[0].pixels, None, seen.features)
            tiles = tiles or len(look.tiles)
            reply, logits = self._reply(seen, (instruction, mode), reply if spoken else None, clock)  # [B, 3, Hm, Wm]
            best = accepts.get(id(look), (0.0, 0.0))[1]
            accepts[id(look)] = look.share, max(best, float(reply.accept.max()))
            with clock.stage("postprocess"):
                for tile, view, layers in zip(seen.tiles, seen.views, logits, strict=True):
                    frame.add(tile, view, layers, look.tiles.size, look.share)
        answer = reply.answers[0] if reply is not None and reply.answers else None
        return Scored(frame, sum(share * best for share, best in accepts.values()), tiles, answer, whole)

    def _reply(self, seen: Seen, question: tuple[str, Mode], said: Reply | None, clock: Clock) -> tuple[Reply, Float]:
        """What the language model says of each view, and the logits [B, 3, Hm, Wm] that follow.

        Args:
            said: a reply to decode, where the question was answered at another scale.
        """
        views, features = seen.views, seen.features
        if not isinstance(features, Features):
            with clock.stage(ALL_AT_ONCE):
                logits, accept = features.result()
            reply = Reply(np.zeros((len(accept), len(Anchor), 0), np.float32), accept, np.ones(len(accept), bool))
            return reply, _sound(logits, len(views))
        with clock.stage("lmm"):
            reply = self.lmm(features, *question) if said is None else said  # anchor states [B, 3, D]
        with clock.stage("decoder"):
            logits = self.decoder(reply.anchor_states, features)  # [B, 3, Hm, Wm]
        logits = _sound(logits, len(views))
        empty = np.array(EMPTY_LOGITS, np.float32)[:, None, None]
        return reply, np.where(reply.found[:, None, None, None], logits, empty) if not reply.found.all() else logits


def _sound(logits: Float, batch: int) -> Float:
    """The same, if they can be masks."""
    if logits.ndim != 4 or logits.shape[:2] != (batch, len(Anchor)) or logits.size == 0:
        raise BundleError(
            f"the decoder gave logits of shape {list(logits.shape)}; {[batch, len(Anchor), 'h', 'w']} is needed: "
            "export the bundle again"
        )
    # A comparison with NaN is False, so NaN would read as a good part.
    if not np.isfinite(logits).all():
        raise ImageError(LOGITS_BROKEN)
    return logits


def _tiles_a_launch(manifest: Manifest, wanted: int) -> int:
    """Tiles that are one launch: as many as are wanted where the graphs leave the batch open, else one."""
    inputs = [spec for graph in manifest.graphs.values() for spec in graph.inputs]
    batches = {spec.shape[2 if spec.name == "past_key_values" else 0] for spec in inputs}  # [layers, 2, B, ...]
    fixed = {batch for batch in batches if isinstance(batch, int)}
    if fixed - {1}:
        raise BundleError(f"the graphs take batches of {max(fixed)}; 1 or an open batch is needed: export the bundle again")
    return 1 if fixed else min(wanted, manifest.max_batch or wanted)
