"""A model in torch as a predictor for ``agvas eval``: what a run validates with, and any checkpoint without exporting it.

    agvas eval --predictor checkpoint --model runs/mine --data DIR

The runtime's path in direct mode (contract/preprocess.py, contract/decision.py), with one difference: a frame is always seen whole, where the
runtime cuts very large ones into tiles.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from agvas_core.contract.decision import anomaly_mask
from agvas_core.contract.manifest import sha256_of
from agvas_core.files import read_rgb
from agvas_core.model.agvas import AgVas
from agvas_core.model.config import ModelConfig
from agvas_core.model.fusion import anomaly_probability
from agvas_core.model.weights.checkpoint import WEIGHTS, load_checkpoint
from agvas_core.train.sight import Sight, as_logits

__all__ = ["TorchPredictor", "open_predictor"]


class TorchPredictor:
    """A model in evaluation mode, plain or in training form, on its device."""

    def __init__(self, model: AgVas, config: ModelConfig, tokenizer: Tokenizer, identity: str) -> None:
        self.model, self.config = model, config
        self.name, self.identity = config.name, identity
        self._sight = Sight(model, config, tokenizer)

    def predict(self, path: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_], str]:
        """Score map float32 [H, W] in 0..1 and mask bool [H, W] at the image's own resolution, and PASS or FAIL; raises ImageError."""
        score_map, accept = self.score(read_rgb(path, path.name))
        mask = anomaly_mask(score_map, self.config.decision.point(), accept)
        return score_map, mask, "FAIL" if mask.any() else "PASS"

    @torch.no_grad()
    def score(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
        """P (eq. 8) of an RGB frame uint8 [H, W, 3] at its own size, and the acceptance."""
        maps, accept = self._sight(image, image.shape[:2])
        score_map = anomaly_probability(as_logits(torch.from_numpy(maps))[None], self.config.decision.alpha)[0].numpy()
        return score_map, accept


def open_predictor(model: str | Path = "nano", threads: int | None = None) -> TorchPredictor:
    """Opens a checkpoint, on the GPU where there is one; the entry point ``checkpoint`` of group ``agvas.predictors``.

    Args:
        model: a folder, or a bundled checkpoint by its name.
        threads: of the CPU.

    Raises:
        UsageError, SetupError: as ``load_checkpoint``.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    found = load_checkpoint(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    digest = sha256_of(found.folder / WEIGHTS)[:12]
    return TorchPredictor(found.model.to(device), found.config, found.tokenizer, f"{found.config.name} {digest}")
