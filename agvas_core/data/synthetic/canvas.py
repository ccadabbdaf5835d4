"""The canvas of a defect, the result of painting, and whether a painted defect is visible."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from agvas_core.data.synthetic.photometry import Photometry
from agvas_core.data.synthetic.raster import Image, Mask, blurred, closed, grey_level, greyed, largest_channel, unit_px
from agvas_core.data.synthetic.scenes import Scene

__all__ = ["Ground", "Painter", "Painting", "Window", "ground_of", "settled"]

MIN_AREA_CONTRAST = 0.03  # of full scale, over the mask, before photometry
MIN_LINE_CONTRAST = 0.04
MAX_IMAGE_SHARE = 0.35  # more than this and nothing says which side is the defect
MAX_PART_SHARE = 0.6

Window = tuple[slice, slice]


@dataclass(frozen=True)
class Ground:
    """An image that is being painted on.

    ``image`` float32 [H, W, 3]; ``part`` where the part is; ``free`` where no defect lies yet. ``spread`` is the deviation
    of the part's brightness. ``noise``, ``softness_px`` and ``gamma`` are what the camera will do: a defect must survive it.
    """

    image: Image
    part: Mask
    free: Mask
    backdrop: Image | None
    spread: float
    brightness: float
    noise: float
    softness_px: float
    gamma: float
    grey: bool
    families: Sequence[str]

    @property
    def shape(self) -> tuple[int, int]:
        return self.part.shape[0], self.part.shape[1]

    @property
    def unit(self) -> float:
        return unit_px(*self.shape)

    @property
    def side_px(self) -> float:
        """The length that sizes of defects are shares of: the part's rather than the image's."""
        return float(min(self.shape) * np.clip(np.sqrt(self.part.mean()), 0.35, 1.0))

    def window(self, centre: tuple[float, float], reach_px: float) -> tuple[Window, tuple[float, float]]:
        """The square of half-side ``reach_px`` around ``centre`` (x, y), cut at the border, and the centre's place in it."""
        h, w = self.shape
        reach = int(np.ceil(reach_px)) + 2
        x0, x1 = max(0, int(centre[0]) - reach), min(w, int(centre[0]) + reach + 1)
        y0, y1 = max(0, int(centre[1]) - reach), min(h, int(centre[1]) + reach + 1)
        return (slice(y0, y1), slice(x0, x1)), (centre[0] - x0, centre[1] - y0)

    def after(self, painting: "Painting", mask: Mask) -> "Ground":
        """The ground with ``painting`` on it and ``mask`` (in its window) taken."""
        image, free = self.image.copy(), self.free.copy()
        image[painting.window] = painting.image
        margin = max(2, round(3 * self.unit))
        taken = cv2.dilate(np.pad(mask.astype(np.uint8), margin), np.ones((2 * margin + 1, 2 * margin + 1), np.uint8))
        rows, columns = painting.window
        free[rows, columns] &= taken[margin:-margin, margin:-margin] == 0
        return replace(self, image=image, free=free)


@dataclass(frozen=True)
class Painting:
    """A defect in its window: the ``image`` [h, w, 3] with it and its ``alpha`` [h, w]; more than half is defect.

    ``thin`` defects are labelled as drawn, others where the image visibly changed. ``off_part`` ones may leave the part.
    """

    window: Window
    image: Image
    alpha: Image
    thin: bool = False
    off_part: bool = False


Painter = Callable[[np.random.Generator, np.random.Generator, Ground, tuple[float, float], float], Painting | None]


def ground_of(scene: Scene, exposure: Photometry, families: Sequence[str]) -> Ground:
    """An untouched ground."""
    image = scene.image
    if exposure.grey:
        image = greyed(image)
    sample = image[::4, ::4][scene.part[::4, ::4]]
    spread, brightness = (float(sample.std(0).mean()), float(sample.mean())) if len(sample) else (0.1, 0.5)
    return Ground(
        image=image,
        part=scene.part,
        free=np.ones_like(scene.part),
        backdrop=scene.backdrop,
        spread=spread,
        brightness=brightness,
        noise=exposure.noise,
        softness_px=exposure.blur_px,
        gamma=exposure.gamma,
        grey=exposure.grey,
        families=families,
    )


def settled(ground: Ground, painting: Painting) -> tuple[Painting, Mask] | None:
    """The painting as it enters the image, and its mask [h, w]; None where it cannot be seen or takes too much.

    The change is kept to the part and to what is free, so that masks of two defects never meet.
    """
    before = ground.image[painting.window]
    open_ = ground.free[painting.window]
    if not painting.off_part:
        open_ = open_ & ground.part[painting.window]
    after = np.clip(painting.image, 0, 1)
    if ground.grey:
        after = greyed(after)
    after = np.where(open_[..., None], after, before).astype(np.float32)
    change = largest_channel(np.abs(after - before))
    mask = (painting.alpha > 0.5) & open_
    if mask.sum() < (8 if painting.thin else 12) * max(1.0, ground.unit):
        return None
    if painting.thin:
        mask &= change > 0.3 * np.percentile(change[mask], 90)
        visible = _line_shows(ground, before, change, mask)
    else:
        soft = blurred(change, 1.2 * ground.unit)
        threshold = max(0.012, 0.15 * float(np.percentile(soft[mask], 90)))
        mask &= closed(soft > threshold, max(1, round(3 * ground.unit)))
        visible = _area_shows(ground, before, after, mask)
    share = mask.sum() / (ground.part.size)
    if not visible or share > MAX_IMAGE_SHARE or mask.sum() > MAX_PART_SHARE * ground.part.sum():
        return None
    return replace(painting, image=after), np.asarray(mask, np.bool_)


def _line_shows(ground: Ground, before: Image, change: Image, mask: Mask) -> bool:
    """A thin line must stand out of the grain beside it, after the camera's blur."""
    if mask.sum() < 8:
        return False
    grain = np.abs(before - blurred(before, 1.5))[mask].mean()
    floor = max(MIN_LINE_CONTRAST, 1.2 * float(np.hypot(grain, 0.8 * ground.noise)))
    contrast = float(change[mask].mean()) * min(1.0, _gain(ground, before, mask, float(change[mask].mean())))
    return bool(contrast > floor * np.sqrt(1 + (ground.softness_px / 1.2) ** 2))


def _area_shows(ground: Ground, before: Image, after: Image, mask: Mask) -> bool:
    """An area must differ in brightness or colour, in grain, or in the direction of its grain.

    Random texture replaced by the same random texture changes every pixel and yet cannot be seen: the mean of |change|
    says nothing, so the smoothed signed change and the grain are compared.
    """
    if mask.sum() < 12:
        return False
    radius = np.sqrt(mask.sum() / np.pi)
    drift = largest_channel(np.abs(blurred(after - before, max(1.0, 0.2 * radius))))[mask].mean()
    local_spread = float(before[mask].std(0).mean())
    drift *= min(1.0, _gain(ground, before, mask, float(drift)))
    if drift > max(MIN_AREA_CONTRAST, 0.35 * min(local_spread, 2 * ground.spread), 0.5 * ground.noise):
        return True
    if radius < 4:  # too small to show a grain of its own
        return False
    (old, old_way), (new, new_way) = _grain(before, mask), _grain(after, mask)
    floor = max(0.012, 0.5 * ground.noise)
    if max(old, new) < floor:
        return False
    if max(old, new) > 1.5 * min(old, new) + 0.25 * floor:
        return True
    return bool(min(old, new) > 2 * floor and np.linalg.norm(old_way - new_way) > 0.4)


def _gain(ground: Ground, before: Image, mask: Mask, change: float) -> float:
    """By how much the camera's gamma stretches a contrast here: a dark part under a gamma above 1 shows next to nothing."""
    level = max(float(before[mask].mean()), change, 0.02)
    return float(ground.gamma * level ** (ground.gamma - 1))


def _grain(image: Image, mask: Mask) -> tuple[float, "np.ndarray[tuple[int], np.dtype[np.float32]]"]:
    """Strength of the fine structure under ``mask``, and its direction [2] (length 0 none .. 1 all one way)."""
    grey = grey_level(image)
    strength = float(np.abs(grey - blurred(grey, 1.5))[mask].mean())
    gx, gy = cv2.Sobel(grey, cv2.CV_32F, 1, 0)[mask], cv2.Sobel(grey, cv2.CV_32F, 0, 1)[mask]
    energy = float((gx * gx + gy * gy).sum()) + 1e-9
    return strength, np.array([(gx * gx - gy * gy).sum() / energy, 2 * (gx * gy).sum() / energy], np.float32)
