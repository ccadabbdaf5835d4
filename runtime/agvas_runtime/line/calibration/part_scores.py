"""Pictures of parts -> their reject scores, one for each least area that calibration may choose."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agvas_core.contract.errors import AgvasError, UsageError
from agvas_runtime.line.calibration.calibration import Scores
from agvas_runtime.line.recipe.file import RecipeVersion
from agvas_runtime.line.recipe.image_limits import ImageFacts, image_facts
from agvas_runtime.line.recipe.rules import Judge
from agvas_runtime.line.recipe.thresholds import thresholds_of
from agvas_runtime.line.station.inspector import SegmenterInspector, frame_fault
from agvas_runtime.sources import open_source

__all__ = ["Scored", "score_parts"]

ALMOST_ONE = float(np.nextafter(np.float64(1.0), 0.0))


class Scored(NamedTuple):
    """The parts of one folder."""

    scores: Scores
    facts: list[ImageFacts]
    left_out: list[str]
    """Pictures that cannot be judged, and why."""
    size_px: tuple[int, int]
    """Width and height of the first one."""
    one_size: bool
    """Whether all of them have that size."""


def score_parts(
    folder: Path,
    inspector: SegmenterInspector,
    version: RecipeVersion,
    areas: Callable[[int], Sequence[float]],
    *,
    any_size: bool = False,
    bits: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Scored:
    """Scores every picture under ``folder``; the inspector is ready for the recipe.

    Args:
        areas: from the pixels of a frame to least areas, as shares of it.
        any_size: pictures of several sizes are judged, as a product does, which brings all to one size; else those that differ from
            the first one are left out.
        bits: used bits of 16-bit pictures.

    Raises:
        UsageError: no picture that can be judged.
    """
    point = thresholds_of(version.recipe, inspector.bundle_of(version))
    judges: dict[tuple[int, int], list[Judge]] = {}
    rows: list[list[float]] = []
    names: list[str] = []
    facts: list[ImageFacts] = []
    left_out: list[str] = []
    size: tuple[int, int] | None = None
    for frame in open_source(str(folder), bits=bits):
        fault = frame_fault(frame, version)
        if fault is not None or frame.image is None:
            left_out.append(f"{frame.name}: {fault}")
            continue
        height, width = frame.image.shape[:2]
        size = size or (width, height)
        if size != (width, height) and not any_size:
            left_out.append(f"{frame.name}: it is {width}x{height} px and the first one is {size[0]}x{size[1]}")
            continue
        if (width, height) not in judges:
            # No region counts above this seed, so none is outlined; the reject score is the same.
            points = [
                point.model_copy(update={"min_area_fraction": area, "seed_threshold": ALMOST_ONE})
                for area in areas(width * height)
            ]
            judges[width, height] = [Judge(version.recipe, each, height, width) for each in points]
        try:
            looked, _ = inspector.look(frame, version)
        except AgvasError as error:
            left_out.append(f"{frame.name}: {error}")
            continue
        rows.append([judge.judge(looked).reject_score for judge in judges[width, height]])
        names.append(frame.name)
        facts.append(image_facts(frame.image))
        progress(len(rows))
    if not rows or size is None:
        why = f" ({left_out[0]})" if left_out else ""
        raise UsageError(f"{folder} has no picture that can be judged{why}: give a folder of pictures of parts")
    return Scored(Scores(np.array(rows), tuple(names)), facts, left_out, size, len(judges) == 1)
