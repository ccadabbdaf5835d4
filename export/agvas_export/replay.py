"""Engines beside the reference: each joint gets the reference's own inputs, and the reference's answer goes on to the next.

So an error shows at the joint where it arises, and the path of a frame is the reference's throughout.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.backend import Arrays, Stages
from agvas_core.contract.certificate import JointError
from agvas_core.contract.errors import ImageError, StageError
from agvas_core.contract.tolerances import Tolerance

__all__ = ["NOT_FINITE", "Beside", "Errors", "mask_iou"]

NOT_FINITE: Final = 1e30
"""The error of a tensor with NaN or infinity in it, of another shape, or that was not made at all; JSON has no infinity."""

_JOINTS: Final[Mapping[str, tuple[str, str]]] = {  # tensor -> joint, and the tolerance that holds; in the order of the data path
    "f_s": ("vision", "features"),
    "f_align": ("vision", "features"),
    "f_p": ("vision", "features"),
    "f_detail": ("vision", "features"),
    "anchor_states": ("lmm", "anchor_states"),
    "accept": ("lmm", "probability"),
    "logits": ("decoder", "logits"),
    "probability": ("whole", "probability"),
}
_UNSCALED: Final = frozenset({"accept", "probability"})


class Errors:
    """The worst error of each tensor of one engine."""

    def __init__(self, tolerance: Tolerance) -> None:
        self._tolerance = tolerance
        self._worst: dict[str, float] = {}

    def add(self, truth: Arrays, value: Arrays) -> None:
        """Takes note of tensors by name; what the engine did not give counts as wrong."""
        for name, wanted in truth.items():
            if name in _JOINTS:
                error = _error(wanted, value[name], scaled=name not in _UNSCALED) if name in value else NOT_FINITE
                self._worst[name] = max(self._worst.get(name, 0.0), error)

    def joints(self) -> tuple[JointError, ...]:
        """All of them along the data path."""
        return tuple(
            JointError(tensor=tensor, joint=joint, error=self._worst[tensor], tolerance=getattr(self._tolerance, kind))
            for tensor, (joint, kind) in _JOINTS.items()
            if tensor in self._worst
        )

    def first_wrong(self) -> str | None:
        """The first joint beyond its tolerance, and its tensor."""
        return next((f"{each.joint}: {each.tensor}" for each in self.joints() if not each.holds), None)


class Beside:
    """The reference as stages; whatever it is asked, the engines are asked as well, and their errors noted."""

    def __init__(self, reference: Stages, engines: Mapping[str, Stages], errors: Mapping[str, Errors]) -> None:
        self.reference, self.engines, self.errors = reference, engines, errors

    def see(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Arrays:
        """Joint 1."""
        truth = self.reference.see(semantic_image, pixel_image)
        self._compare(truth, lambda engine: engine.see(semantic_image, pixel_image))
        return truth

    def ask(self, features: Arrays, instruction: str) -> Arrays:
        """Joint 2."""
        truth = self.reference.ask(features, instruction)
        self._compare(truth, lambda engine: engine.ask(features, instruction))
        return truth

    def decode(self, anchor_states: NDArray[np.float32], features: Arrays) -> NDArray[np.float32]:
        """Joint 3."""
        truth = self.reference.decode(anchor_states, features)
        self._compare({"logits": truth}, lambda engine: {"logits": engine.decode(anchor_states, features)})
        return truth

    def _compare(self, truth: Arrays, run: Any) -> None:
        for name, engine in self.engines.items():
            try:
                value = run(engine)
            except (
                ImageError,
                StageError,
            ):  # it cannot do what the reference can: that is an error of the joint, the largest there is
                value = {}
            self.errors[name].add(truth, value)


def mask_iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union; 1 where both are empty."""
    union = int(np.logical_or(one, other).sum())
    return int(np.logical_and(one, other).sum()) / union if union else 1.0


def _error(truth: NDArray[Any], value: NDArray[Any], *, scaled: bool) -> float:
    if value.shape != truth.shape or not np.isfinite(value).all():
        return NOT_FINITE
    if not truth.size:
        return 0.0
    largest = float(np.abs(value.astype(np.float32) - truth).max())
    return largest / max(1.0, float(np.abs(truth).max())) if scaled else largest
