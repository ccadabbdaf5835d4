"""Joint 1 by torch: views to features."""

import numpy as np
import torch
from numpy.typing import NDArray

from agvas_core.model.agvas import AgVas
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.protocol import Features
from agvas_runtime.stages.reference.model import checkpoint_of
from agvas_runtime.stages.settings import StageSettings

__all__ = ["TorchVision", "open_vision"]


class TorchVision:
    """Joint 1: views to features."""

    def __init__(self, model: AgVas, device: str = "cpu") -> None:
        self._model, self._device = model, device

    @torch.inference_mode()
    def __call__(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Features:
        """uint8 RGB [B, Hs, Ws, 3] and [B, Hp, Wp, 3] to features."""
        views = (torch.from_numpy(view).to(self._device) for view in (semantic_image, pixel_image))
        seen = self._model.see(*views)
        decoder = {name: tensor.cpu().numpy() for name, tensor in seen.pixel._asdict().items() if tensor is not None}
        return Features(seen.f_s.cpu().numpy(), seen.f_align.cpu().numpy(), decoder)


def open_vision(bundle: Bundle, settings: StageSettings) -> TorchVision:
    """Raises SetupError or BundleError, as ``checkpoint_of``."""
    return TorchVision(checkpoint_of(bundle, settings).model)
