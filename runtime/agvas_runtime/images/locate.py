"""Finds the part in a frame and cuts it out; what is found in the crop goes back to the frame's own pixels.

    place = Locator(spec, template).find(image)
    crop = place.crop(image)                # the part, always at the same place and angle
    score_map = place.to_frame(of_the_crop)   # [H, W] of the frame, 0 beside the crop

By outline: pixels unlike the background, which is the median along the frame's border; the largest blob's centroid, and the angle of its
tightest rectangle where the part turns. By template: the place that correlates best with the first good image. Either way the match
with the template decides to a fraction of a pixel, and whether it is the part at all.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import BundleError, UnlikeError
from agvas_core.contract.product import LOCATE, LocateSpec, Product

__all__ = ["WORK_PX", "Blob", "Locator", "Place", "background_distance", "find_blob", "open_locator", "small_image"]

Rgb = NDArray[np.uint8]
Float = NDArray[np.float32]
Matrix = NDArray[np.float64]

WORK_PX: Final = 400
"""Longer side at which the part is looked for."""
RING: Final = 0.02
"""Of the longer side: width of the border whose median is the background."""
REACH_PX: Final = 12
"""Of the working size: how far the template may correct an outline."""
SHAPE: Final = 0.01
"""Relative difference of the aspect up to which a frame has the shape of the good images."""
FINE_DEG: Final = (-1.0, -0.5, 0.5, 1.0)
REMEDY: Final = "check camera, light and part; fit again where parts look like this"


class Blob(NamedTuple):
    """What stands out from the background."""

    centre: tuple[float, float]
    """Centroid, x and y."""
    area: float
    """Share of the image, holes filled."""
    angle_deg: float
    """Of the tightest rectangle, 0 to 90."""
    sides: tuple[float, float]
    """Of that rectangle, the longer one first."""
    inside: bool
    """Whether it touches no edge of the image."""
    of_all: float
    """Its share of all that stands out."""
    contour: NDArray[np.int32]
    """[N, 1, 2]."""


def small_image(image: Rgb, size: tuple[int, int]) -> Rgb:
    """An RGB image at (width, height) px."""
    way = cv2.INTER_AREA if size[0] < image.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=way), np.uint8)


def background_distance(small: Rgb) -> Float:
    """Distance of each pixel from the background in Lab of 8 bits, float32 [H, W]."""
    lab = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2LAB), np.float32)
    width = max(1, round(RING * max(small.shape[:2])))
    ring = np.concatenate(
        [part.reshape(-1, 3) for part in (lab[:width], lab[-width:], lab[width:-width, :width], lab[width:-width, -width:])]
    )
    return np.asarray(np.sqrt(((lab - np.median(ring, axis=0)) ** 2).sum(2)), np.float32)


def find_blob(distance: Float, contrast: float) -> Blob | None:
    """The largest blob of pixels that are farther than ``contrast`` from the background; None where there is none."""
    mask = (distance > contrast).astype(np.uint8)
    mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(contour) for contour in contours]
    if not areas or max(areas) <= 0:
        return None
    contour = np.asarray(contours[int(np.argmax(areas))], np.int32)
    moments = cv2.moments(contour)
    x, y, wide, high = cv2.boundingRect(contour)
    _, sides, angle = cv2.minAreaRect(contour)
    height, width = distance.shape
    return Blob(
        (moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]),
        max(areas) / (height * width),
        angle % 90,
        (max(sides), min(sides)),
        x > 0 and y > 0 and x + wide < width and y + high < height,
        max(areas) / sum(areas),
        contour,
    )


@dataclass(frozen=True)
class Place:
    """Where the part lies in one frame."""

    matrix: Matrix
    """[2, 3], from pixels of the crop to pixels of the frame."""
    size: tuple[int, int]
    """Width and height of the crop."""
    frame: tuple[int, int]
    """Width and height of the frame."""
    match: float = 1.0
    """Correlation with the template."""

    def crop(self, image: Rgb) -> Rgb:
        """The part, [h, w, 3] of an RGB frame. Where the margin lies over the frame's edge, the edge is repeated."""
        return np.asarray(
            cv2.warpAffine(
                image,
                self.matrix,
                self.size,
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            ),
            np.uint8,
        )

    def crop_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask [H, W] of the frame in the crop."""
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        return np.asarray(cv2.warpAffine(mask.astype(np.uint8), self.matrix, self.size, flags=flags), bool)

    def to_frame(self, values: Float) -> Float:
        """A map [h, w] of the crop in the frame, float32 [H, W]; 0 beside the crop."""
        return np.asarray(cv2.warpAffine(values, self.matrix, self.frame, flags=cv2.INTER_LINEAR), np.float32)


class Locator:
    """Finds the part in frames. Threads may share it.

    Args:
        template: grey, uint8 [h, w], at the working size.
    """

    def __init__(self, spec: LocateSpec, template: NDArray[np.uint8]) -> None:
        self.spec, self.template = spec, template
        self._per_px = spec.work_px[0] / spec.frame_px[0]
        """Pixels of the working size in one of the good images."""

    def find(self, image: Rgb) -> Place:
        """Where the part lies in an RGB frame [H, W, 3].

        Raises:
            UnlikeError: it is not found, or the frame has another shape than the good images.
        """
        spec, (height, width) = self.spec, image.shape[:2]
        scale = width / spec.frame_px[0]
        if abs(height / spec.frame_px[1] / scale - 1) > SHAPE:
            raise _not_found(f"the frame is {width}x{height} px and the good images {spec.frame_px[0]}x{spec.frame_px[1]}")
        small = small_image(image, spec.work_px)
        grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
        centre, angle, match = self._by_outline(small, grey) if spec.method == "outline" else self._by_template(grey)
        if match < spec.least_match:
            raise _not_found(
                f"the best match with the first good image is {match:.2f}, the least allowed is {spec.least_match:.2f}"
            )
        size = (round(spec.size_px[0] * scale), round(spec.size_px[1] * scale))
        # Pixel centres lie at whole numbers, so half a pixel is added before a length is scaled.
        to_frame = width / spec.work_px[0]
        middle = ((centre[0] + 0.5) * to_frame - 0.5, (centre[1] + 0.5) * to_frame - 0.5)
        matrix = _placed(middle, angle, size)
        if angle == 0.0:
            matrix[:, 2] = np.round(matrix[:, 2])  # no pixel is changed where the part only moves
        place = Place(matrix, size, (width, height), match)
        self._check_edges(place, scale)
        return place

    def _by_outline(self, small: Rgb, grey: NDArray[np.uint8]) -> tuple[tuple[float, float], float, float]:
        """Centre of the crop at the working size, angle, and match."""
        spec = self.spec
        blob = find_blob(background_distance(small), spec.contrast)
        if blob is None:
            raise _not_found("nothing stands out from the background")
        low, high = spec.area
        if not low <= blob.area <= high:
            raise _not_found(f"what stands out covers {blob.area:.1%} of the frame, {low:.1%} to {high:.1%} are allowed")
        if not spec.turns:
            return self._matched(grey, blob.centre, 0.0)
        turn = blob.angle_deg - spec.angle_deg
        # A rectangle looks the same at four angles; the template tells them apart.
        found = max((self._matched(grey, blob.centre, turn + more) for more in (0, 90, 180, 270)), key=lambda each: each[2])
        finer = [self._matched(grey, blob.centre, found[1] + more) for more in FINE_DEG]
        return max([found, *finer], key=lambda each: each[2])

    def _matched(
        self, grey: NDArray[np.uint8], centroid: tuple[float, float], angle: float
    ) -> tuple[tuple[float, float], float, float]:
        """The crop around a centroid, corrected by the template."""
        turn = _turn(angle)
        offset = turn @ (np.array(self.spec.offset_px) * self._per_px)
        centre = (centroid[0] + float(offset[0]), centroid[1] + float(offset[1]))
        height, width = self.template.shape
        size = (width + 2 * REACH_PX, height + 2 * REACH_PX)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        window = cv2.warpAffine(grey, _placed(centre, angle, size), size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        (x, y), match = _best(np.asarray(window, np.uint8), self.template)
        moved = turn @ np.array([x - REACH_PX, y - REACH_PX])
        return (centre[0] + float(moved[0]), centre[1] + float(moved[1])), angle, match

    def _by_template(self, grey: NDArray[np.uint8]) -> tuple[tuple[float, float], float, float]:
        (x, y), match = _best(grey, self.template)
        height, width = self.template.shape
        return (x + (width - 1) / 2, y + (height - 1) / 2), 0.0, match

    def _check_edges(self, place: Place, scale: float) -> None:
        """Raises UnlikeError where more than the margin lies over the frame's edge."""
        margin = self.spec.margin_px * scale
        (wide, high), (width, height) = place.size, place.frame
        corners = np.array([(x, y, 1) for x in (margin, wide - 1 - margin) for y in (margin, high - 1 - margin)])
        x, y = place.matrix @ corners.T
        if x.min() < -1 or y.min() < -1 or x.max() > width or y.max() > height:
            raise _not_found("it lies over the edge of the frame")


def open_locator(product: Product | None, folder: Path) -> Locator | None:
    """How a product finds its part; None where it does not look for it. Raises BundleError where the template is no picture."""
    if product is None or product.locate is None:
        return None
    path = folder / LOCATE
    found = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if found is None:
        raise BundleError(f"{path} cannot be read as a picture: run agvas fit again")
    return Locator(product.locate, np.asarray(found, np.uint8))


def _best(grey: NDArray[np.uint8], template: NDArray[np.uint8]) -> tuple[tuple[float, float], float]:
    """Where a template fits best, to a fraction of a pixel, and its correlation there."""
    found = np.asarray(cv2.matchTemplate(grey, template, cv2.TM_CCOEFF_NORMED), np.float32)
    found = np.where(np.isfinite(found), found, np.float32(0))  # an even window has no correlation
    _, match, _, (x, y) = cv2.minMaxLoc(found)
    return (x + _peak(found[y], x), y + _peak(found[:, x], y)), float(match)


def _peak(row: Float, at: int) -> float:
    """Where the parabola through a highest value and its neighbours has its top, -0.5 to 0.5."""
    if not 0 < at < len(row) - 1:
        return 0.0
    before, here, after = (float(value) for value in row[at - 1 : at + 2])
    bend = before - 2 * here + after
    return 0.0 if bend >= 0 else float(np.clip((before - after) / (2 * bend), -0.5, 0.5))


def _turn(angle_deg: float) -> Matrix:
    angle = np.deg2rad(angle_deg)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _placed(centre: tuple[float, float], angle_deg: float, size: tuple[int, int]) -> Matrix:
    """[2, 3], from pixels of a crop of (width, height) px to those of the image that it is cut out of."""
    turn = _turn(angle_deg)
    middle = np.array([(size[0] - 1) / 2, (size[1] - 1) / 2])
    return np.column_stack([turn, np.array(centre) - turn @ middle])


def _not_found(why: str) -> UnlikeError:
    return UnlikeError(f"{UnlikeError.START} the part is not found: {why}; {REMEDY}")
