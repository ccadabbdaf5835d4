"""The protocol of an evaluation: how score map and truth are aligned before scoring; every result names it.

The paper gives metrics (4.1, B.3) but neither the resolution nor the smoothing of its evaluation. ``paper`` is our reading of it:
the image's own resolution, no smoothing, and M = P > 0.5 (3.1) whatever rule a bundle has for its own masks. ``native`` differs in
that alone: a model's own mask counts, with its gate, threshold and least area. ``cited`` is what the published code of the protocol
does that the paper says it follows (Bayes-PFL: datasets.py, test.py): 518 px, and a Gaussian of 8 px. The others are what more
CLIP-based code does; ``resized_to`` makes any other.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agvas_core.contract.errors import UsageError

__all__ = ["PROTOCOLS", "Protocol", "find_protocol", "resized_to"]

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Protocol:
    """One way of comparing."""

    name: str
    about: str
    size_px: int | None = None
    """Maps and masks are resized to a square of this side; None keeps the image's own resolution."""
    sigma_px: float = 0.0
    """Width of the Gaussian that smooths the map, after resizing; 0 for none."""
    own_mask: bool = True
    """Whether a model's own mask counts; else M = P > threshold."""
    threshold: float = 0.5  # sec. 3.1
    soft_truth: bool = False
    """Whether a mask is resized as a grey picture, by Pillow, and cut at a half; else its nearest pixels count."""

    def to_dict(self) -> dict[str, Any]:
        """For the result file and for the identity of cached results."""
        return asdict(self)

    def truth(self, mask: Mask) -> Mask:
        """The truth at this protocol's resolution: bool [h, w] of [H, W], nearest neighbour."""
        if self.size_px is None:
            return mask
        size = (self.size_px, self.size_px)
        if self.soft_truth:  # torchvision's Resize of a PIL image, then > 0.5
            grey = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
            return np.asarray(grey) > 127
        return cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)

    def score_map(self, score_map: Map, shape: tuple[int, int]) -> Map:
        """The map at the truth's resolution ``shape`` = (h, w), bilinear where it has another one, then smoothed."""
        resized = score_map
        if resized.shape != shape:
            resized = np.asarray(cv2.resize(resized, shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
        if self.sigma_px > 0:
            # Four sigma to either side, and reflected edges, as SciPy's gaussian_filter has it.
            side = 2 * round(4 * self.sigma_px) + 1
            resized = cv2.GaussianBlur(resized, (side, side), self.sigma_px, borderType=cv2.BORDER_REFLECT).astype(np.float32)
        return resized

    def mask(self, score_map: Map, own: Mask | None, threshold: float) -> Mask:
        """M of a map that ``score_map`` returned; ``own`` is the model's, at the map's original size."""
        if own is None or not self.own_mask:
            return score_map > threshold
        if own.shape == score_map.shape:
            return own
        size = (score_map.shape[1], score_map.shape[0])
        return cv2.resize(own.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT).astype(bool)


PROTOCOLS: Final = {
    protocol.name: protocol
    for protocol in (
        Protocol("native", "the image's own resolution, no smoothing, the model's own mask"),
        Protocol("paper", "the image's own resolution, no smoothing, M = P > 0.5", own_mask=False),
        Protocol(
            "cited",
            "maps and masks resized to 518 x 518, Gaussian of 8 px, M = P > 0.5, as the published code of the protocol that the paper cites",
            size_px=518,
            sigma_px=8.0,
            own_mask=False,
            soft_truth=True,
        ),
        Protocol("resized-256", "maps and masks resized to 256 x 256, no smoothing", size_px=256),
        Protocol("resized-518-smoothed", "maps and masks resized to 518 x 518, Gaussian of 4 px", size_px=518, sigma_px=4.0),
    )
}


def resized_to(protocol: Protocol, size_px: int | None, sigma_px: float | None) -> Protocol:
    """The protocol at another size or with another Gaussian; None leaves what it has. Its name says both."""
    if size_px is None and sigma_px is None:
        return protocol
    size = protocol.size_px if size_px is None else size_px
    sigma = protocol.sigma_px if sigma_px is None else sigma_px
    where = "the image's own resolution" if size is None else f"maps and masks resized to {size} x {size}"
    about = f"{where}, {f'Gaussian of {sigma:g} px' if sigma else 'no smoothing'}, otherwise as {protocol.name}"
    name = f"{protocol.name}-{'native' if size is None else size}-sigma-{sigma:g}"
    return replace(protocol, name=name, about=about, size_px=size, sigma_px=sigma)


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"--protocol is {name!r}; it can be {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
