"""The model cut at its joints: three modules with plain tensors in and out, and what their axes are called.

What is outside the graphs (resizing, tokenizing, fusion, the threshold) is agvas_core.contract's and the runtime's.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from agvas_core.model.agvas import AgVas
from agvas_core.model.config import ModelConfig
from agvas_core.model.lmm import Lmm
from agvas_core.model.spam import Spam

__all__ = ["Axis", "DecoderJoint", "Joint", "LmmJoint", "VisionJoint", "make_joints"]


class VisionJoint(nn.Module):
    """Joint 1: the two views to f_s, f_align and the decoder's features."""

    def __init__(self, model: AgVas) -> None:
        super().__init__()
        self.semantic_encoder, self.pixel_encoder = model.semantic_encoder, model.pixel_encoder
        self.norm, self.spam = model.linear_p.norm, fold_linear_p(model)

    def forward(self, semantic_image: Tensor, pixel_image: Tensor) -> tuple[Tensor, ...]:
        """uint8 RGB [B, Hs, Ws, 3] and [B, H, W, 3] -> f_s, f_align [B, N, D], f_p [B, C, h, w] and, if any, f_detail."""
        f_s = self.semantic_encoder(semantic_image)  # eq. 1: [B, N, D]
        f_p, f_detail = self.pixel_encoder(pixel_image)  # eq. 1: [B, C, h, w]
        f_align = self.spam(f_s, self.norm(f_p.flatten(2).transpose(1, 2)))  # eq. 2: [B, N, D]
        return (f_s, f_align, f_p) if f_detail is None else (f_s, f_align, f_p, f_detail)


def fold_linear_p(model: AgVas) -> Spam:
    """SPAM that takes C channels: Linear_p folded into its keys and values. Exact, and a third of the work at width 3584."""
    folded = copy.copy(model.spam)
    folded._modules = dict(model.spam._modules)  # the model's own SPAM stays as it is
    first = model.linear_p.linear
    for name in ("to_k", "to_v"):
        second = getattr(model.spam, name)
        both = nn.Linear(first.in_features, second.out_features).to(first.weight)
        with torch.no_grad():
            both.weight.copy_(second.weight.double() @ first.weight.double())
            both.bias.copy_(second.weight.double() @ first.bias.double() + second.bias)
        folded._modules[name] = both
    return folded


class LmmJoint(nn.Module):
    """Joint 2: one causal prefill over Concat(f_s, f_align, f_txt), read at the three anchors (eq. 3). No padding, no cache."""

    def __init__(self, model: AgVas) -> None:
        super().__init__()
        self.language_model: Any = model.lmm.language_model

    def forward(self, f_s: Tensor, f_align: Tensor, ids_before: Tensor, ids_after: Tensor, anchor_positions: Tensor) -> Tensor:
        """f_s, f_align [B, N, D], ids [B, before] and [B, after], positions [B, 3] within ids_after -> [B, 3, D]."""
        embed = self.language_model.get_input_embeddings()
        f_in = torch.cat([embed(ids_before), f_s, f_align, embed(ids_after)], 1)  # [B, L, D]
        index = torch.arange(f_in.shape[1], device=f_in.device)
        # An additive mask that is already 4D passes transformers' own mask building by, which does not export.
        later = torch.where(index[None, :] > index[:, None], torch.finfo(f_in.dtype).min, 0.0).to(f_in.dtype)  # [L, L]
        hidden = self.language_model(
            inputs_embeds=f_in, attention_mask=later[None, None], position_ids=index[None], use_cache=False
        ).last_hidden_state  # [B, L, D]
        positions = anchor_positions + (f_in.shape[1] - ids_after.shape[1])
        return Lmm.anchor_states(hidden, positions)  # [B, 3, D]


class DecoderJoint(nn.Module):
    """Joint 3: anchor states and pixel features to mask logits (eq. 4-7)."""

    def __init__(self, model: AgVas) -> None:
        super().__init__()
        self.refiner, self.agmd = model.refiner, model.agmd

    def forward(self, anchor_states: Tensor, f_p: Tensor, f_detail: Tensor | None = None) -> Tensor:
        """[B, 3, D], [B, C, h, w] and, if any, [B, C', h', w'] -> logits [B, 3, H', W'] in anchor order."""
        logits: Tensor = self.agmd(self.refiner(anchor_states), f_p, f_detail)
        return logits


class Axis(NamedTuple):
    """An axis whose length is open: its name in the manifest, and what torch.export calls it."""

    name: str
    dim: Any


Axes = Mapping[int, Axis]


@dataclass(frozen=True)
class Joint:
    """One graph to be: the module, tensors that it can be traced with, and the open axes of each."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    axes: dict[str, Axes]


def make_joints(model: AgVas, config: ModelConfig, before: int) -> list[Joint]:
    """The three joints of a model in evaluation mode; ``before`` is the number of text tokens before the image."""
    batch = Axis("batch", Dim("batch"))
    rows, columns = Dim("rows", min=2), Dim("columns", min=2)  # in multiples of the view's granularity
    view, semantic_px = config.pixel_view, config.semantic_view.size_px
    is_open, unit = view.fit == "area", view.multiple_px
    # Lengths that differ from each other and from 1, so that the tracer takes none of them for a constant.
    height, width = (3 * unit, 5 * unit) if is_open else (view.size_px, view.size_px)

    def image_axes(tensor: Tensor, first: int) -> Axes:
        """Height and width of a feature map (or of the image), as shares of the image's."""
        if not is_open:
            return {0: batch}
        stride = height // tensor.shape[first]
        names = (side if stride == 1 else f"{side}/{stride}" for side in ("height", "width"))
        dims = (unit // stride * rows, unit // stride * columns)
        return {0: batch} | {first + i: Axis(name, dim) for i, (name, dim) in enumerate(zip(names, dims, strict=True))}

    vision_inputs = {
        "semantic_image": torch.randint(0, 256, (2, semantic_px, semantic_px, 3), dtype=torch.uint8),
        "pixel_image": torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8),
    }
    vision = VisionJoint(model).eval()
    with torch.no_grad():
        seen = dict(zip(("f_s", "f_align", "f_p", "f_detail"), vision(*vision_inputs.values()), strict=False))
    tokens = {name: seen[name] for name in ("f_s", "f_align")}
    maps = {name: tensor for name, tensor in seen.items() if name not in tokens}

    lmm_inputs = tokens | {
        "ids_before": torch.zeros(2, before, dtype=torch.long),
        "ids_after": torch.zeros(2, 21, dtype=torch.long),
        "anchor_positions": torch.tensor([[17, 18, 19]] * 2),
    }
    lmm = LmmJoint(model).eval()
    decoder = DecoderJoint(model).eval()
    with torch.no_grad():
        anchor_states = lmm(**lmm_inputs)
        logits = decoder(anchor_states, **maps)

    map_axes = {name: image_axes(tensor, 2) for name, tensor in maps.items()}
    token_axes: dict[str, Axes] = {name: {0: batch} for name in tokens}
    state_axes: dict[str, Axes] = {"anchor_states": {0: batch}}
    word_axes: dict[str, Axes] = {
        "ids_before": {0: batch},
        "ids_after": {0: batch, 1: Axis("after", Dim("after", min=4))},
        "anchor_positions": {0: batch},
    }
    view_axes: dict[str, Axes] = {"semantic_image": {0: batch}, "pixel_image": image_axes(vision_inputs["pixel_image"], 1)}
    return [
        Joint("vision", vision, vision_inputs, seen, view_axes | token_axes | map_axes),
        Joint("lmm", lmm, lmm_inputs, {"anchor_states": anchor_states}, token_axes | word_axes | state_axes),
        Joint(
            "decoder",
            decoder,
            {"anchor_states": anchor_states} | maps,
            {"logits": logits},
            state_axes | map_axes | {"logits": image_axes(logits, 2)},
        ),
    ]
