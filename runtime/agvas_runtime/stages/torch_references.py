"""Reference distances by torch, by the module that the graph was exported from."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agvas_core.contract.errors import BundleError, SetupError
from agvas_core.contract.manifest import sha256_of
from agvas_core.model.efficientnet_lite import TRUNK, load_trunk
from agvas_core.model.references import EncoderCells, FeatureCells, ReferenceDistance
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.open import StageSettings
from agvas_runtime.stages.protocol import Features, ReferenceDistances
from agvas_runtime.stages.reference_inputs import empty_bank, reference_inputs, references_of

__all__ = ["TorchReferences", "open_cuda", "open_stage"]

Float = NDArray[np.float32]


class TorchReferences:
    """``ReferenceStage`` by torch.

    Raises:
        BundleError: the bundle has no references graph, or it was exported from another encoder than the one that is here.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        self.spec = references_of(bundle)
        self._device = device
        if self.spec.view is None:
            cells: EncoderCells | FeatureCells = FeatureCells(self.spec.channels - self.spec.colour_channels, self.spec.stride)
        else:
            made_from = bundle.manifest.provenance.get("references", {}).get("sha256")
            here = sha256_of(TRUNK) if TRUNK.is_file() else "none"
            if made_from != here:
                raise BundleError(
                    f"the references graph of {bundle.identity} was made from the encoder {str(made_from)[:12]}..., and this agvas "
                    f"has {here[:12]}...: use the backend onnx for it, or export the bundle again"
                )
            cells = EncoderCells(load_trunk())
        # One band: it is the CPU's cache alone that several are for, and any height must divide into them.
        self._model = ReferenceDistance(cells, pieces=1).eval().to(device)

    def embed(self, image: NDArray[np.uint8], features: Features | None = None) -> Float:
        """As of ``ReferenceStage``."""
        return self(image, empty_bank(self.spec), features).embedding

    @torch.inference_mode()
    def __call__(
        self, image: NDArray[np.uint8], bank: Float, features: Features | None = None, *, colour_weight: float = 1.0
    ) -> ReferenceDistances:
        """As of ``ReferenceStage``."""
        inputs = reference_inputs(self.spec, image, bank, features, colour_weight)
        given = {name: torch.from_numpy(np.asarray(value)).to(self._device) for name, value in inputs.items()}
        view = given["reference_image"] if "reference_image" in given else given["pixel_image"]
        found = self._model(view, given["bank"], given["colour_weight"], given.get("f_p"))
        arrays: list[Any] = [tensor.float().cpu().numpy() for tensor in found]
        return ReferenceDistances(*arrays)


def open_stage(bundle: Bundle, settings: StageSettings) -> TorchReferences:
    """Raises BundleError as ``TorchReferences``."""
    return TorchReferences(bundle)


def open_cuda(bundle: Bundle, settings: StageSettings) -> TorchReferences:
    """On an NVIDIA GPU.

    Raises:
        SetupError: torch finds none.
        BundleError: as ``TorchReferences``.
    """
    if not torch.cuda.is_available():
        raise SetupError("torch finds no NVIDIA GPU: install torch with CUDA and a driver, or choose the backend onnx")
    return TorchReferences(bundle, "cuda")
