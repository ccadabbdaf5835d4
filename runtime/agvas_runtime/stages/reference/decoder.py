"""Joint 3 by torch: anchor states and pixel features to mask logits."""

import numpy as np
import torch
from numpy.typing import NDArray

from agvas_core.model.agvas import AgVas
from agvas_core.model.encoders import PixelFeatures
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.protocol import Features
from agvas_runtime.stages.reference.model import checkpoint_of
from agvas_runtime.stages.settings import StageSettings

__all__ = ["TorchDecoder", "open_decoder"]

Float = NDArray[np.float32]


class TorchDecoder:
    """Joint 3: anchor states and pixel features to mask logits."""

    def __init__(self, model: AgVas, device: str = "cpu") -> None:
        self._model, self._device = model, device

    @torch.inference_mode()
    def __call__(self, anchor_states: Float, features: Features) -> Float:
        """Logits float32 [B, 3, Hm, Wm] in anchor order, covering the whole pixel view."""
        given = {name: torch.from_numpy(np.asarray(value)).to(self._device) for name, value in features.decoder.items()}
        pixel = PixelFeatures(given["f_p"], given.get("f_detail"))
        logits = self._model.decode(torch.from_numpy(anchor_states).to(self._device), pixel)
        return logits.float().cpu().numpy()


def open_decoder(bundle: Bundle, settings: StageSettings) -> TorchDecoder:
    """Raises SetupError or BundleError, as ``checkpoint_of``."""
    return TorchDecoder(checkpoint_of(bundle, settings).model)
