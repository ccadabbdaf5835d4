"""The model itself in torch as three stages: the reference that engines are compared with.

It is the model's own ``see``, ``lmm`` and ``decode``, not what was traced, so a mistake in cutting it shows as one in exporting it does.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agvas_core.contract.backend import Arrays
from agvas_core.contract.manifest import Manifest
from agvas_core.model.encoders.encoders import PixelFeatures
from agvas_core.model.lmm import find_anchors
from agvas_core.model.weights.checkpoint import Checkpoint
from agvas_export.reference import Words, encode, words

__all__ = ["TorchStages"]


class TorchStages:
    """A checkpoint's model, asked as its bundle is."""

    def __init__(self, source: Checkpoint, manifest: Manifest) -> None:
        self.model = source.model
        self._first = [encode(source.tokenizer, text)[0] for text in (manifest.prompt.refusal, manifest.prompt.answer)]
        self._words = lru_cache(maxsize=64)(
            lambda instruction: words(source.tokenizer, manifest.prompt, manifest.anchor_ids, instruction)
        )

    @torch.no_grad()
    def see(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Arrays:
        """Joint 1."""
        vision = self.model.see(torch.from_numpy(semantic_image), torch.from_numpy(pixel_image))
        seen = {"f_s": vision.f_s, "f_align": vision.f_align, "f_p": vision.pixel.f_p, "f_detail": vision.pixel.f_detail}
        return {name: tensor.float().numpy() for name, tensor in seen.items() if tensor is not None}

    @torch.no_grad()
    def ask(self, features: Arrays, instruction: str) -> Arrays:
        """Joint 2: one pass over prompt, image and fixed answer."""
        said: Words = self._words(instruction)
        f_s, f_align = (torch.from_numpy(features[name]) for name in ("f_s", "f_align"))
        lmm, batch = self.model.lmm, len(f_s)
        image = said.after.new_full((1, f_s.shape[1] + f_align.shape[1]), lmm.image_token_id)
        input_ids = torch.cat([said.before, image, said.after], 1).expand(batch, -1)  # [B, L]
        hidden = lmm(lmm.embed(input_ids, f_s, f_align), with_logits=False).hidden  # [B, L, D]
        positions, _ = find_anchors(input_ids, lmm.anchor_ids)
        logits = lmm.head(hidden[:, int(said.asked) - said.after.shape[1]])  # [B, V]
        accept = logits[:, self._first].float().diff(dim=1)[:, 0].sigmoid()
        return {"anchor_states": lmm.anchor_states(hidden, positions).float().numpy(), "accept": accept.numpy()}

    @torch.no_grad()
    def decode(self, anchor_states: NDArray[np.float32], features: Arrays) -> NDArray[np.float32]:
        """Joint 3."""
        given: Mapping[str, Tensor] = {name: torch.from_numpy(value) for name, value in features.items()}
        pixel = PixelFeatures(given["f_p"], given.get("f_detail"))
        logits: NDArray[np.float32] = self.model.decode(torch.from_numpy(anchor_states), pixel).float().numpy()
        return logits
