"""One frame and one recipe -> a judgement: the segmenter, asked once for each kind, and the recipe's rules."""

import hashlib
import json
import platform
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from agvas_core import __version__
from agvas_core.contract.decision import OperatingPoint
from agvas_core.contract.errors import StageError, UnlikeError
from agvas_core.contract.preprocess import ViewSpec
from agvas_runtime.bundle import Bundle
from agvas_runtime.images.frame import Frame
from agvas_runtime.line.recipe.file import RecipeVersion
from agvas_runtime.line.recipe.image_limits import image_facts, image_fault
from agvas_runtime.line.recipe.rules import Judge, Judgement, Looked
from agvas_runtime.line.recipe.thresholds import check_against, thresholds_of, unlike_product
from agvas_runtime.pipeline.batching import Counts, tuned_bundles
from agvas_runtime.pipeline.options import SegmentOptions
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.sources.camera import without_secrets

__all__ = ["Inspection", "Inspector", "SegmenterInspector", "SharedInspector", "frame_fault"]


CAPTURED_AFTER = 4  # runs of one size and prompt, of an engine that captures: after these its graph is there
JUDGES = 8  # recipes and frame sizes whose masks are kept ready


@dataclass(frozen=True)
class Inspection:
    """What was found on one frame."""

    judgement: Judgement
    score_map: NDArray[np.float32]
    """The highest of all kinds, float32 [H, W], for the eye."""
    bundle: str
    timing: dict[str, float]
    """Milliseconds per stage, summed over the kinds."""
    threshold: float | None = None
    """The seed threshold that decided."""


class Inspector(Protocol):
    """What the station needs of an engine."""

    @property
    def identity(self) -> str:
        """``NAME@0123456789ab``, the hash being that of ``facts``."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """Versions and settings that a score may depend on."""
        ...

    def prepare(self, version: RecipeVersion) -> None:
        """Prepares a recipe, beside the active one.

        Raises:
            AgvasError: it cannot be followed here.
        """
        ...

    def concern(self, version: RecipeVersion) -> str | None:
        """What a person must know of a recipe that was prepared, though it can be followed; None where that is nothing."""
        ...

    def whole_views(self, version: RecipeVersion, height: int, width: int) -> list[ViewSpec]:
        """The views that a recipe which was prepared takes of a whole frame; who reads the camera makes them with the image. Any thread may
        ask."""
        ...

    def inspect(self, frame: Frame, version: RecipeVersion) -> Inspection:
        """Looks at a frame that has an image.

        Raises:
            StageError: there can be no judgement on this frame.
        """
        ...


class SegmenterInspector:
    """The bundles of the recipes on the backends that were asked for. One thread inspects; another may prepare."""

    def __init__(self, options: SegmentOptions | None = None, *, tiles: Mapping[str, int] | None = None) -> None:
        """Opens nothing yet; ``prepare`` does.

        Args:
            options: backends, threads and the like; a recipe says which model, what is asked and what decides.
            tiles: a launch, by the identity of a bundle; the default for those that are not there. What was tuned here where None.
        """
        self._options = options = options or SegmentOptions()
        if tiles is None:
            tiles = {name: found.tiles for name, found in tuned_bundles(options.backends, options.threads).items()}
        self._tiles = tiles
        self._segmenters: dict[str, Segmenter] = {}  # by the recipe's model
        self._judges: OrderedDict[tuple[str, int, int], Judge] = OrderedDict()
        self.facts: Mapping[str, Any] = {
            "agvas": __version__,
            "onnxruntime": onnxruntime.__version__,
            "backends": [options.vision, without_secrets(options.lmm), options.decoder],
            "threads": options.threads,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "machine": platform.machine(),
        }
        if tiles:  # the last digits of a score depend on them
            self.facts = {**self.facts, "tiles": dict(tiles)}
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()
        self.identity = f"{options.vision}@{digest[:12]}"

    def prepare(self, version: RecipeVersion) -> None:
        """Loads the recipe's bundle, where it is another one, and lets the model read every prompt once."""
        recipe = version.recipe
        segmenter = self._segmenters.get(recipe.model) or self._opened(recipe.model)
        check_against(recipe, segmenter.bundle, version.identity)
        size = recipe.frame
        blank = np.full((size.height_px, size.width_px, 3) if size else (64, 64, 3), 128, np.uint8)
        # The first run is a slow one, and a prompt that is too long is refused here; what captures graphs is slow until it has.
        for prompt in list(recipe.prompts.values()) * (CAPTURED_AFTER if segmenter.captures else 1):
            segmenter.segment(Frame("warm-up", 0, image=blank), prompt=prompt, mode=recipe.mode, normal_look=recipe.normal_look)
        self._segmenters[recipe.model] = segmenter

    def _opened(self, model: str) -> Segmenter:
        segmenter = Segmenter.open(replace(self._options, model=model), counts=Counts())
        return segmenter.with_counts(Counts(tiles=self._tiles.get(segmenter.bundle.identity, Counts.tiles)))

    def bundle_of(self, version: RecipeVersion) -> Bundle:
        """The bundle of a recipe that was prepared."""
        return self._segmenters[version.recipe.model].bundle

    def concern(self, version: RecipeVersion) -> str | None:
        """Thresholds that are not its product's."""
        return unlike_product(version.recipe, self.bundle_of(version))

    def whole_views(self, version: RecipeVersion, height: int, width: int) -> list[ViewSpec]:
        """They are the same for every kind."""
        return self._segmenters[version.recipe.model].whole_views(height, width, version.recipe.mode)

    def look(self, frame: Frame, version: RecipeVersion) -> tuple[dict[str, Looked], dict[str, float]]:
        """What the model says of each kind, and the milliseconds per stage.

        Raises:
            UnlikeError: the frame is not of the product.
            StageError: it says nothing.
        """
        recipe, segmenter = version.recipe, self._segmenters[version.recipe.model]
        looked: dict[str, Looked] = {}
        timing: dict[str, float] = {}
        for kind, prompt in recipe.prompts.items():
            result = segmenter.segment(frame, prompt=prompt, mode=recipe.mode, normal_look=recipe.normal_look)
            if result.score_map is None:
                why = result.error or "the model gave no score map"
                raise UnlikeError(why) if why.startswith(UnlikeError.START) else StageError(why)
            looked[kind] = Looked(result.score_map, 1.0 if result.accept is None else result.accept)
            for stage, ms in result.timing.items():
                timing[stage] = timing.get(stage, 0.0) + ms
        return looked, timing

    def inspect(self, frame: Frame, version: RecipeVersion) -> Inspection:
        """Asks the model for each kind, and the rules for a verdict."""
        looked, timing = self.look(frame, version)
        bundle = self.bundle_of(version)
        maps = [look.score_map for look in looked.values()]
        score_map = maps[0] if len(maps) == 1 else np.maximum.reduce(maps)
        height, width = score_map.shape
        point = thresholds_of(version.recipe, bundle)
        judge = self._judge(version, point, height, width)
        return Inspection(judge.judge(looked), score_map, bundle.identity, timing, point.seed_threshold)

    def _judge(self, version: RecipeVersion, point: OperatingPoint, height: int, width: int) -> Judge:
        key = (version.sha256, height, width)
        if key not in self._judges:
            self._judges[key] = Judge(version.recipe, point, height, width)
            while len(self._judges) > JUDGES:
                self._judges.popitem(last=False)
        return self._judges[key]


def frame_fault(frame: Frame, version: RecipeVersion) -> str | None:
    """Why this frame cannot be judged by this recipe, or None."""
    if frame.error is not None:
        return str(frame.error)
    if frame.image is None:
        return f"frame {frame.name} has neither an image nor an error: its source is at fault"
    wanted, (height, width) = version.recipe.frame, frame.image.shape[:2]
    if wanted is not None and (width, height) != (wanted.width_px, wanted.height_px):
        return (
            f"the frame is {width}x{height} px; recipe {version.identity} is for {wanted.width_px}x{wanted.height_px}: "
            "set the camera back, or make a recipe for this size"
        )
    limits = version.recipe.image
    fault = image_fault(image_facts(frame.image), limits) if limits.any else None
    return None if fault is None else f"{UnlikeError.START} {fault}"


# One engine for several stations: they take turns, the longest waiting first.


class SharedInspector:
    """An inspector that any thread may use. A busy station cannot keep the others from the engine, as with a plain lock it could."""

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._mutex = threading.Lock()
        self._busy = False
        self._line: deque[threading.Event] = deque()

    @property
    def identity(self) -> str:
        """Of the engine."""
        return self._inspector.identity

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of the engine."""
        return self._inspector.facts

    def prepare(self, version: RecipeVersion) -> None:
        """Makes ready for a recipe, between two parts."""
        with self._turn():
            self._inspector.prepare(version)

    def concern(self, version: RecipeVersion) -> str | None:
        """Of the engine; takes no turn, for it only looks up."""
        return self._inspector.concern(version)

    def whole_views(self, version: RecipeVersion, height: int, width: int) -> list[ViewSpec]:
        """Of the engine; takes no turn, for it only looks up."""
        return self._inspector.whole_views(version, height, width)

    def inspect(self, frame: Frame, version: RecipeVersion) -> Inspection:
        """Looks at a frame when its turn has come."""
        with self._turn():
            return self._inspector.inspect(frame, version)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        mine = threading.Event()
        with self._mutex:
            if self._busy:
                self._line.append(mine)
            else:
                self._busy = True
                mine.set()
        mine.wait()
        try:
            yield
        finally:
            with self._mutex:
                if self._line:
                    self._line.popleft().set()
                else:
                    self._busy = False
