"""The model's own tensors at every stage, on generated images: what the graphs are compared with.

They come from the model itself (its ``see``, ``lmm`` and ``decode``), not from the modules that were traced, so a mistake in cutting
it shows as well as one in exporting it.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import DynamicCache

from agvas_core.contract.errors import ParityError
from agvas_core.contract.manifest import PromptSpec
from agvas_core.contract.preprocess import make_view
from agvas_core.contract.prompts import Mode
from agvas_core.data.synthetic.synthesis import synthesize
from agvas_core.model.agvas import AgVas
from agvas_core.model.lmm import find_anchors
from agvas_core.model.weights.checkpoint import Checkpoint

__all__ = ["SEED", "Frames", "Words", "encode", "reference", "synthetic_frames", "words"]

SEED = 987654321  # no training draws from it
# Batch and frame size; each gives another view, long and wide ones among them.
FRAMES = ((1, (256, 256)), (3, (128, 384)), (2, (300, 200)), (1, (96, 96)))


class Words(NamedTuple):
    """The instruction and its fixed answer as ids, with a batch axis of 1.

    ``positions`` [1, 3] of the anchors and ``asked`` [1, 1] of the last token before the answer, both within ``after``.
    """

    before: Tensor
    after: Tensor
    positions: Tensor
    asked: Tensor

    def inputs(self, batch: int) -> dict[str, Tensor]:
        """As the LMM graph takes them, without the past."""
        names = ("ids_before", "ids_after", "anchor_positions", "logit_positions")
        return {name: row.expand(batch, -1) for name, row in zip(names, self, strict=True)}


class Frames(NamedTuple):
    """What the vision graph takes: uint8 RGB [B, Hs, Ws, 3] and [B, H, W, 3]."""

    semantic: Tensor
    pixel: Tensor


def words(tokenizer: Tokenizer, prompt: PromptSpec, anchor_ids: tuple[int, int, int], instruction: str | None = None) -> Words:
    """An instruction, the bundle's own where None, and the fixed answer of direct mode.

    Raises:
        ParityError: the tokenizer joins prompt and answer into other tokens than the model was trained on.
    """
    before, after = prompt.chat.prompt(instruction or prompt.instructions[Mode.DIRECT])
    ids = encode(tokenizer, after + prompt.answer)
    if ids != encode(tokenizer, after) + encode(tokenizer, prompt.answer):
        raise ParityError(
            f"the tokenizer reads {prompt.chat.before_answer!r} and the answer as other tokens together than apart, and training "
            "encodes them apart: end before_answer of the chat format with a token of its own"
        )
    positions = [len(ids) - 1 - ids[::-1].index(anchor) for anchor in anchor_ids]
    after_ids = ids[: max(positions) + 1]  # nothing after the last anchor can reach it in a causal model
    rows = (encode(tokenizer, before), after_ids, positions, [len(encode(tokenizer, after)) - 1])
    return Words(*(torch.tensor([row]) for row in rows))


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a piece of text."""
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def synthetic_frames(checkpoint: Checkpoint, max_batch: int | None = None) -> list[Frames]:
    """Batches of generated images, as the two encoders see them; none larger than ``max_batch``."""
    config, batches = checkpoint.config, []
    for batch, size in FRAMES:
        images = [synthesize(SEED, index, size).image for index in range(min(batch, max_batch or batch))]
        views = ([make_view(spec, image).pixels for image in images] for spec in (config.semantic_view, config.pixel_view))
        batches.append(Frames(*(torch.from_numpy(np.stack(view)) for view in views)))
    return batches


@torch.no_grad()
def reference(model: AgVas, frames: Frames, said: Words) -> dict[str, Tensor]:
    """The model's own tensors at every stage, by the names that the graphs give them."""
    vision = model.see(*frames)
    batch, visual = len(vision.f_s), vision.f_s.shape[1] + vision.f_align.shape[1]
    image = said.after.new_full((1, visual), model.lmm.image_token_id)
    input_ids = torch.cat([said.before, image, said.after], 1).expand(batch, -1)  # [B, L]
    cache: Any = DynamicCache()
    f_in = model.lmm.embed(input_ids, vision.f_s, vision.f_align)
    hidden = model.lmm(f_in, with_logits=False, cache=cache).hidden  # [B, L, D]
    positions, found = find_anchors(input_ids, model.lmm.anchor_ids)
    anchors = model.lmm.anchor_states(hidden, positions)  # [B, 3, D]
    asked = int(said.asked) - said.after.shape[1]
    tensors = {
        "f_s": vision.f_s,
        "f_align": vision.f_align,
        "f_p": vision.pixel.f_p,
        "f_detail": vision.pixel.f_detail,
        "trunk_8": vision.pixel.trunk_8,
        "trunk_16": vision.pixel.trunk_16,
        "anchor_states": anchors,
        "text_logits": model.lmm.head(hidden[:, asked, None]),  # [B, 1, V]
        "present_key_values": torch.stack([torch.stack([layer.keys, layer.values]) for layer in cache.layers]),
        "last_state": hidden[:, -1],
        "last_text_logits": model.lmm.head(hidden[:, -1]),
        "logits": model.decode(anchors, vision.pixel, found),
    }
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
