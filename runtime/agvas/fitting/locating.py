"""Whether the part moves in the good images, and how it is then found.

    locating = learn_locator(pictures, "auto")
    if locating.locator is not None:
        pictures = [replace(picture, locator=locating.locator) for picture in pictures]

Auto switches on only where all of this holds: what stands out from the background is one thing of nearly one size in all the images (or,
where nothing does, the first image's middle is found once in each of them), it moves or turns by more than a model does not notice, and
images of it agree clearly better once it is put in one place.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas.fitting.pictures import Picture, chosen
from agvas_core.contract.errors import ImageError, UnlikeError, UsageError
from agvas_core.contract.product import Locate, LocateSpec
from agvas_runtime.images.locate import WORK_PX, Blob, Locator, background_distance, find_blob, small_image

__all__ = ["Locating", "learn_locator"]

Rgb = NDArray[np.uint8]
Grey = NDArray[np.uint8]

MOST_LOOKED_AT: Final = 32
"""Good images that decide, evenly spaced."""
LEAST: Final = 3
"""Good images without which nothing is switched on by itself."""
MOVES: Final = 0.02
"""Of the frame's longer side: a part that moves less stays where it is for the model."""
TURNS_DEG: Final = 3.0
CONTRAST: Final = 12.0
"""Least distance of the part from the background, in Lab of 8 bits."""
AREA: Final = (0.004, 0.75)
"""Of the frame."""
OF_ALL: Final = 0.85
"""The part's share of what stands out."""
ONE_SIZE: Final = 1.4
"""Largest over smallest area."""
LONG: Final = 1.15
"""Longer over shorter side, from which an outline has an angle."""
SQUARE: Final = 0.9
"""Share of its tightest rectangle, from which an outline has an angle modulo 90 degrees."""
MARGIN: Final = 0.06
"""Of the part's longer side, around it."""
AGREE: Final = 0.5
"""Least correlation with the first image, of the median image."""
GAIN: Final = 0.05
"""Least gain of that correlation by locating."""
LEAST_CROP: Final = 0.4
"""Of each side of the frame, for the template's crop."""
SECOND: Final = 0.8
"""The second best place may match this share as well as the best; a pattern that repeats has no place."""
LEEWAY: Final = 1.25
"""More than the good images showed, that a part may move under a template."""
MATCH_SHARE: Final = 0.5
"""Of the good images' least match, which a frame must reach: a defect lowers it."""


class Locating(NamedTuple):
    """What was decided, and why, in words; empty where there is nothing to say."""

    locator: Locator | None
    said: str = ""


class _Looked(NamedTuple):
    """The good images that decide, at the working size."""

    frame_px: tuple[int, int]
    work_px: tuple[int, int]
    small: list[Rgb]
    grey: list[Grey]


def learn_locator(pictures: Sequence[Picture], way: Locate) -> Locating:
    """Decides by the good images how the part is found.

    Raises:
        UsageError: a way was asked for and the images do not allow it.
    """
    if way is Locate.OFF:
        return Locating(None)
    looked = _look(pictures)
    if isinstance(looked, str):
        return _without(way, looked)
    auto = way is Locate.AUTO
    if auto and len(looked.small) < LEAST:
        return Locating(None)
    reasons = []
    for learn, named in ((_outline, Locate.OUTLINE), (_template, Locate.TEMPLATE)):
        if way not in (Locate.AUTO, named):
            continue
        found = learn(looked, auto)
        if isinstance(found, Locating):
            return found
        reasons.append(found)
        if auto and found.startswith("the part does not"):  # it stands out and stays: no template is needed
            break
    return _without(way, "; ".join(reasons))


def _without(way: Locate, why: str) -> Locating:
    if way is Locate.AUTO:
        return Locating(None)
    raise UsageError(f"--locate {way} is not possible with these good images: {why}; leave it out, or use --locate off")


def _look(pictures: Sequence[Picture]) -> _Looked | str:
    small: list[Rgb] = []
    frame: tuple[int, int] | None = None
    work = (0, 0)
    for picture in chosen(pictures, MOST_LOOKED_AT):
        try:
            image = picture.read()
        except ImageError:
            continue  # it is told when the images are learned
        size = (image.shape[1], image.shape[0])
        if frame is None:
            frame = size
            scale = min(1.0, WORK_PX / max(size))
            work = (max(8, round(size[0] * scale)), max(8, round(size[1] * scale)))
        if size != frame:
            return f"they have several sizes ({frame[0]}x{frame[1]} px and {size[0]}x{size[1]} px)"
        small.append(small_image(image, work))
    if frame is None:
        return "none can be read"
    return _Looked(frame, work, small, [np.asarray(cv2.cvtColor(each, cv2.COLOR_RGB2GRAY), np.uint8) for each in small])


def _outline(looked: _Looked, auto: bool) -> Locating | str:
    """By the outline against the background; or why not."""
    distances = [background_distance(each) for each in looked.small]
    contrast = _contrast(distances)
    if contrast is None:
        return "nothing stands out from an even background"
    blobs = [find_blob(each, contrast) for each in distances]
    whole = [each for each in blobs if each is not None and _is_part(each)]
    if len(whole) < (len(blobs) if len(blobs) < 10 else 0.9 * len(blobs)):
        return f"one thing that stands out and lies inside the frame is seen in {len(whole)} of {len(blobs)} images"
    areas = [each.area for each in whole]
    if max(areas) > ONE_SIZE * min(areas):
        return f"what stands out covers {min(areas):.1%} to {max(areas):.1%} of the frame, so it is not one part"
    first = whole[0]
    centres = np.array([each.centre for each in whole])
    moved = float(np.abs(centres - np.median(centres, axis=0)).max()) / max(looked.work_px)
    turned = _turned(whole)
    turns = turned > TURNS_DEG
    if auto and moved < MOVES and not turns:
        return "the part does not move"
    per_px = looked.work_px[0] / looked.frame_px[0]
    points = [_upright(each, first if turns else None) for each in whole]
    low = np.min([each.min(0) for each in points], axis=0)
    high = np.max([each.max(0) for each in points], axis=0)
    margin = MARGIN * float((high - low).max())
    size = np.ceil((high - low + 1 + 2 * margin) / per_px)
    offset = (low + high) / 2
    spec = LocateSpec(
        method="outline",
        frame_px=looked.frame_px,
        work_px=looked.work_px,
        size_px=(int(size[0]), int(size[1])),
        margin_px=int(margin / per_px),
        offset_px=(round(float(offset[0]) / per_px, 3), round(float(offset[1]) / per_px, 3)),
        least_match=0.0,
        contrast=round(contrast, 3),
        area=(round(0.5 * min(areas), 6), round(min(1.5 * max(areas), 1.0), 6)),
        turns=turns,
        angle_deg=round(first.angle_deg, 3),
    )
    middle = (first.centre[0] + float(offset[0]), first.centre[1] + float(offset[1]))
    box = (high - low + 1 + margin).astype(int)
    index = blobs.index(first)
    template = _cut(looked.grey[index], middle, (int(box[0]), int(box[1])))
    return _proved(spec, template, looked, auto, moved, turned if turns else 0.0)


def _template(looked: _Looked, auto: bool) -> Locating | str:
    """By the first image's middle; or why not."""
    first = looked.grey[0].astype(np.float32)
    window = cv2.createHanningWindow((first.shape[1], first.shape[0]), cv2.CV_32F)
    shifts = np.array([cv2.phaseCorrelate(first, each.astype(np.float32), window)[0] for each in looked.grey])
    reach = np.ceil(LEEWAY * np.abs(shifts).max(0)) + 2
    size = np.array([first.shape[1], first.shape[0]])
    box = (size - 2 * reach).astype(int)
    if (box < LEAST_CROP * size).any():
        return f"images are up to {reach.max() / max(size):.0%} of the frame apart, too far for a template"
    moved = float(np.abs(shifts - np.median(shifts, axis=0)).max()) / float(max(size))
    if auto and moved < MOVES:
        return "the part does not move"
    template = np.ascontiguousarray(
        looked.grey[0][int(reach[1]) : int(reach[1] + box[1]), int(reach[0]) : int(reach[0] + box[0])]
    )
    if _repeats(looked.grey[0], template):
        return "the first image looks the same in several places"
    per_px = looked.work_px[0] / looked.frame_px[0]
    spec = LocateSpec(
        method="template",
        frame_px=looked.frame_px,
        work_px=looked.work_px,
        size_px=(int(box[0] / per_px), int(box[1] / per_px)),
        margin_px=2,
        least_match=0.0,
    )
    return _proved(spec, template, looked, auto, moved, 0.0)


def _proved(spec: LocateSpec, template: Grey, looked: _Looked, auto: bool, moved: float, turned: float) -> Locating | str:
    """The locator, where the good images agree better by it."""
    locator = Locator(spec, template)
    frames = looked.small
    scaled = Locator(_at_work_size(spec), template)  # the images are at hand at that size
    places, crops = [], []
    for frame in frames:
        try:
            places.append(scaled.find(frame))
        except UnlikeError:
            continue
        crops.append(np.asarray(cv2.cvtColor(places[-1].crop(frame), cv2.COLOR_RGB2GRAY), np.float32))
    if len(places) < 0.9 * len(frames):
        return f"the part is found in {len(places)} of {len(frames)} images"
    still = [np.asarray(cv2.cvtColor(places[0].crop(frame), cv2.COLOR_RGB2GRAY), np.float32) for frame in frames]
    located = float(np.median([_correlation(crops[0], each) for each in crops[1:]] or [1.0]))
    unlocated = float(np.median([_correlation(still[0], each) for each in still[1:]] or [1.0]))
    if auto and (located < AGREE or located - unlocated < GAIN):
        return f"images agree no better by it (correlation {unlocated:.2f} without it, {located:.2f} with it)"
    least = MATCH_SHARE * min(each.match for each in places)
    spec = spec.model_copy(update={"least_match": round(max(0.0, least), 4)})
    what = f"moves by up to {moved * max(spec.frame_px):.0f} px" + (f" and turns by up to {turned:.0f} degrees" if turned else "")
    said = (
        f"the part {what} in the good images, so it is located by its {spec.method} and the rest of a frame is not looked at: crop "
        f"{spec.size_px[0]}x{spec.size_px[1]} px of {spec.frame_px[0]}x{spec.frame_px[1]} px; correlation of the images {unlocated:.2f} "
        f"without it, {located:.2f} with it (--locate off looks at the whole frame)"
    )
    return Locating(Locator(spec, locator.template), said)


def _at_work_size(spec: LocateSpec) -> LocateSpec:
    scale = spec.work_px[0] / spec.frame_px[0]
    return spec.model_copy(
        update={
            "frame_px": spec.work_px,
            "size_px": (round(spec.size_px[0] * scale), round(spec.size_px[1] * scale)),
            "margin_px": int(spec.margin_px * scale),
            "offset_px": (spec.offset_px[0] * scale, spec.offset_px[1] * scale),
        }
    )


def _contrast(distances: Sequence[NDArray[np.float32]]) -> float | None:
    """Half of the part's usual distance from the background; None where nothing clearly stands out."""
    levels = []
    for distance in distances:
        bytes_ = np.clip(distance, 0, 255).astype(np.uint8)
        cut, _ = cv2.threshold(bytes_, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        inside, outside = distance[bytes_ > cut], distance[bytes_ <= cut]
        if inside.size == 0 or outside.size == 0:
            return None
        near, far = float(np.quantile(outside, 0.9)), float(np.median(inside))
        levels.append(far if far > 2.5 * near else 0.0)
    usual = float(np.median(levels))
    return usual / 2 if usual >= CONTRAST else None


def _is_part(blob: Blob) -> bool:
    return blob.inside and AREA[0] <= blob.area <= AREA[1] and blob.of_all >= OF_ALL


def _turned(blobs: Sequence[Blob]) -> float:
    """Degrees by which parts differ from the first; 0 where their outline has no angle."""
    for each in blobs:
        filled = cv2.contourArea(each.contour) / max(each.sides[0] * each.sides[1], 1.0)
        if each.sides[0] < LONG * each.sides[1] and filled < SQUARE:
            return 0.0
    apart = [(each.angle_deg - blobs[0].angle_deg + 45) % 90 - 45 for each in blobs]
    return float(np.max(np.abs(apart)))


def _upright(blob: Blob, first: Blob | None) -> NDArray[np.float64]:
    """Points of an outline from its centroid, [N, 2], turned to the first one's angle or to none."""
    points: NDArray[np.float64] = blob.contour[:, 0].astype(np.float64) - np.array(blob.centre)
    if first is None:
        return points
    options: list[NDArray[np.float64]] = []
    for more in (0, 90, 180, 270):
        angle = np.deg2rad(blob.angle_deg - first.angle_deg + more)
        back = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        options.append(points @ back.T)
    own = first.contour[:, 0].astype(np.float64) - np.array(first.centre)
    box = np.concatenate([own.min(0), own.max(0)])
    return min(options, key=lambda each: float(np.abs(np.concatenate([each.min(0), each.max(0)]) - box).sum()))


def _cut(grey: Grey, middle: tuple[float, float], size: tuple[int, int]) -> Grey:
    return np.asarray(cv2.getRectSubPix(grey, size, middle), np.uint8)


def _repeats(grey: Grey, template: Grey) -> bool:
    """Whether a pattern fits its own image nearly as well somewhere else."""
    small = template[
        template.shape[0] // 4 : -(template.shape[0] // 4) or None, template.shape[1] // 4 : -(template.shape[1] // 4) or None
    ]
    found = np.asarray(cv2.matchTemplate(grey, np.ascontiguousarray(small), cv2.TM_CCOEFF_NORMED), np.float32)
    found = np.where(np.isfinite(found), found, np.float32(0))
    _, best, _, (x, y) = cv2.minMaxLoc(found)
    near = max(4, round(0.05 * max(grey.shape)))
    found[max(0, y - near) : y + near + 1, max(0, x - near) : x + near + 1] = -1
    return float(found.max()) > SECOND * best


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(cv2.matchTemplate(a, b, cv2.TM_CCOEFF_NORMED)[0, 0])
