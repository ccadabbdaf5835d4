"""One frame through the three stages to its score map P, as a whole or tile by tile."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from time import perf_counter

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.anchors import Anchor
from agvas_core.contract.errors import BundleError, ImageError
from agvas_core.contract.manifest import Manifest
from agvas_core.contract.preprocess import View, make_view
from agvas_runtime.fusion import anomaly_probability
from agvas_runtime.stages.protocol import DecoderStage, Features, LmmStage, VisionStage
from agvas_runtime.tiling import Blend, plan_tiles

__all__ = ["Clock", "Scorer"]

Float = NDArray[np.float32]
Rgb = NDArray[np.uint8]

TILE_BATCH = 4  # tiles that go through the stages together


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
            self.ms[name] += (perf_counter() - began) * 1000

    def timing(self) -> dict[str, float]:
        """All stages and their ``total``."""
        return {**self.ms, "total": sum(self.ms.values())}


class Scorer:
    """Views -> vision -> LMM -> decoder -> logits at frame size -> P (eq. 1-8)."""

    def __init__(
        self, manifest: Manifest, vision: VisionStage, lmm: LmmStage, decoder: DecoderStage, *, tiled: bool = True
    ) -> None:
        self.manifest = manifest
        self.vision = vision
        self.lmm = lmm
        self.decoder = decoder
        self.tiled = tiled
        self._batch = _tile_batch(manifest)

    def score_map(self, image: Rgb, instruction: str, clock: Clock) -> tuple[Float, int]:
        """P as float32 [H, W] of an RGB frame [H, W, 3], and the number of tiles it took.

        Raises:
            ImageError: the stages fail on this frame, or give values that are not finite.
            BundleError: the decoder's logits have another shape than the contract's.
        """
        manifest = self.manifest
        height, width = image.shape[:2]
        tiles = plan_tiles(height, width, manifest.pixel_view, manifest.tiling, enabled=self.tiled)
        blend = Blend(tiles, channels=2)  # l_seg, and l_ano - l_nor: the softmax of eq. 7 needs no more than the difference
        waiting = list(tiles)
        while waiting:
            batch, waiting = waiting[: self._batch], waiting[self._batch :]
            with clock.stage("preprocess"):
                crops = [image[tile.rows, tile.columns] for tile in batch]
                semantic = np.stack([make_view(manifest.semantic_view, crop).pixels for crop in crops])  # [B, Hs, Ws, 3]
                views = [make_view(manifest.pixel_view, crop) for crop in crops]
            logits = self._logits(semantic, views, instruction, clock)  # [B, 3, Hm, Wm]
            with clock.stage("postprocess"):
                for tile, view, layers in zip(batch, views, logits, strict=True):
                    blend.add(tile, [_at_frame_size(layer, view, tiles.size) for layer in _relative(layers)])
        with clock.stage("postprocess"):
            l_seg, l_ano_nor = blend.maps
            return anomaly_probability(l_seg, l_ano_nor, manifest.decision.alpha, out=l_seg), len(tiles)

    def _logits(self, semantic: Rgb, views: list[View], instruction: str, clock: Clock) -> Float:
        with clock.stage("vision"):
            features: Features = self.vision(semantic, np.stack([view.pixels for view in views]))
        with clock.stage("lmm"):
            anchor_states = self.lmm(features, instruction)  # [B, 3, D]
        with clock.stage("decoder"):
            logits = self.decoder(anchor_states, features)  # [B, 3, Hm, Wm]
        if logits.ndim != 4 or logits.shape[:2] != (len(views), len(Anchor)) or logits.size == 0:
            raise BundleError(
                f"the decoder gave logits of shape {list(logits.shape)}; {[len(views), len(Anchor), 'h', 'w']} is needed: "
                "export the bundle again"
            )
        # A comparison with NaN is False, so NaN would read as a good part.
        if not np.isfinite(logits).all():
            raise ImageError(
                "the model gave logits that are NaN or infinite on this image: try another prompt, or report image and bundle"
            )
        return logits


def _relative(layers: Float) -> tuple[Float, Float]:
    """l_seg and l_ano - l_nor, each [Hm, Wm], of logits [3, Hm, Wm]."""
    return layers[Anchor.SEG], layers[Anchor.ANO] - layers[Anchor.NOR]


def _at_frame_size(logits: Float, view: View, size: tuple[int, int]) -> Float:
    """The part of a logit map [Hm, Wm] that shows the frame, not padding, enlarged to ``size`` = (h, w)."""
    cells, enlarged = [], []
    for content, shown, length, target in zip(view.content, view.pixels.shape, logits.shape, size, strict=False):
        exact = content * length / shown  # cells that the frame fills; the last one perhaps only in part
        cells.append(min(length, ceil(exact)))
        enlarged.append(max(target, round(target * cells[-1] / exact)))
    whole = cv2.resize(logits[: cells[0], : cells[1]], enlarged[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(whole[: size[0], : size[1]], np.float32)


def _tile_batch(manifest: Manifest) -> int:
    """Tiles per run: as many as we like where the graphs leave the batch open, else one."""
    batches = {spec.shape[0] for graph in (manifest.vision, manifest.lmm, manifest.decoder) for spec in graph.inputs}
    fixed = {batch for batch in batches if isinstance(batch, int)}
    if fixed - {1}:
        raise BundleError(f"the graphs take batches of {max(fixed)}; 1 or an open batch is needed: export the bundle again")
    return 1 if fixed else TILE_BATCH
