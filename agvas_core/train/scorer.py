"""A model in torch, as the runtime scores a frame in direct mode: operating points are set on it, and runs validate with it. (``agvas eval``
scores checkpoints by ``evaluation.checkpoint``, in every mode.)

The same views and the same rule (contract/preprocess.py, contract/decision.py). One difference: a frame is always seen whole, where the runtime
cuts very large ones into tiles.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from agvas_core.contract.decision import anomaly_mask
from agvas_core.contract.preprocess import back_to_frame, make_view, scaled_views
from agvas_core.contract.prompts import DEFAULT_INSTRUCTION, FIXED_ANSWER, NO_ANOMALY_ANSWER, Anchor
from agvas_core.data.synthetic.dialogue import Dialogue
from agvas_core.files import read_rgb
from agvas_core.model.agvas import AgVas
from agvas_core.model.config import ModelConfig
from agvas_core.model.fusion import anomaly_probability
from agvas_core.model.lmm import acceptance
from agvas_core.train.batches import encode_dialogues

__all__ = ["TorchScorer", "as_logits"]

Float = NDArray[np.float32]


class TorchScorer:
    """A model in evaluation mode, plain or in training form, on its device.

    Args:
        identity: of the weights, for results that are kept.
    """

    def __init__(self, model: AgVas, config: ModelConfig, tokenizer: Tokenizer, identity: str = "") -> None:
        self.model, self.config = model, config
        self.name, self.identity = config.name, identity
        direct = Dialogue(DEFAULT_INSTRUCTION, FIXED_ANSWER, None)
        self.input_ids, self.attention, _, self.start = encode_dialogues([direct], tokenizer, config)
        self.openings = tuple(tokenizer.encode(answer).ids[0] for answer in (FIXED_ANSWER, NO_ANOMALY_ANSWER))

    def predict(self, path: Path) -> tuple[Float, NDArray[np.bool_], str]:
        """Score map float32 [H, W] in 0..1 and mask bool [H, W] at the image's own resolution, and PASS or FAIL; raises ImageError."""
        score_map, accept = self.score(read_rgb(path, path.name))
        mask = anomaly_mask(score_map, self.config.decision.point(), accept)
        return score_map, mask, "FAIL" if mask.any() else "PASS"

    def score(self, image: NDArray[np.uint8]) -> tuple[Float, float]:
        """P (eq. 8) of an RGB frame uint8 [H, W, 3] at its own size, and the acceptance."""
        maps, accept = self.logits(image, image.shape[:2])
        score_map = anomaly_probability(as_logits(torch.from_numpy(maps))[None], self.config.decision.alpha)[0].numpy()
        return score_map, accept

    @torch.no_grad()
    def logits(self, image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[Float, float]:
        """l_seg and l_ano - l_nor of an RGB frame, float32 [2, h, w] at ``size`` = (h, w), the mean over scales; and the acceptance."""
        device = next(self.model.parameters()).device  # of now: a training moves its model
        ids, attention, start = (each.to(device) for each in (self.input_ids, self.attention, self.start))
        semantic = torch.from_numpy(make_view(self.config.semantic_view, image).pixels)[None].to(device)
        maps, accepts = np.zeros((2, *size), np.float32), []
        views = scaled_views(self.config.pixel_view, self.config.scales, *image.shape[:2])
        for spec in views:
            view = make_view(spec, image)
            output = self.model(semantic, torch.from_numpy(view.pixels)[None].to(device), ids, attention, start)
            layers = output.mask_logits[0].float().cpu().numpy()  # [3, h', w']
            for whole, layer in zip(maps, (layers[Anchor.SEG], layers[Anchor.ANO] - layers[Anchor.NOR]), strict=True):
                whole += back_to_frame(layer, view, size) / len(views)
            accepts.append(float(acceptance(output.text_logits, start, *self.openings)))
        return maps, float(np.mean(accepts))


def as_logits(maps: torch.Tensor) -> torch.Tensor:
    """l_seg and l_ano - l_nor [2, h, w] -> logits [3, h, w] of the same probabilities, with l_nor for zero."""
    l_seg, l_ano_nor = maps
    return torch.stack([torch.zeros_like(l_seg), l_ano_nor, l_seg])
