"""The model cut at its stages: three modules with plain tensors in and out, and what their axes are called.

What is outside the graphs (resizing, tokenizing, fusion, the threshold) is agvas_core.contract's and the runtime's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers.cache_utils import Cache, DynamicLayer

from agvas_core.contract.manifest import TRUNK_STRIDES
from agvas_core.model.agvas import AgVas
from agvas_core.model.config import ModelConfig
from agvas_core.model.encoders.encoders import PixelFeatures
from agvas_core.model.lmm import Lmm
from agvas_core.model.spam import fold_linear_p

__all__ = ["Axis", "DecoderStage", "LmmStage", "Stage", "VisionStage", "make_stages", "past_shape"]


class VisionStage(nn.Module):
    """Stage 1: the two views to f_s, f_align and the decoder's features.

    Args:
        trunk: the features of the pixel encoder's trunk come out, too, for the references; it must have one.
    """

    def __init__(self, model: AgVas, *, trunk: bool = False) -> None:
        super().__init__()
        self.trunk = trunk
        self.semantic_encoder, self.pixel_encoder = model.semantic_encoder, model.pixel_encoder
        linear_p, spam = model.linear_p, model.spam
        self.norm = None if linear_p is None else linear_p.norm
        self.spam = None if linear_p is None or spam is None else fold_linear_p(linear_p, spam)

    def forward(self, semantic_image: Tensor, pixel_image: Tensor) -> tuple[Tensor, ...]:
        """uint8 RGB [B, Hs, Ws, 3] and [B, H, W, 3] -> f_s, f_align [B, N, D] (without SPAM [B, 0, D]), f_p [B, C, h, w] and, if any,
        f_detail, trunk_8 and trunk_16."""
        f_s = self.semantic_encoder(semantic_image)  # eq. 1: [B, N, D]
        pixel: PixelFeatures = self.pixel_encoder(pixel_image)  # eq. 1: [B, C, h, w]
        f_p = pixel.f_p
        f_align = f_s[:, :0]
        if self.spam is not None and self.norm is not None:
            f_align = self.spam(f_s, self.norm(f_p.flatten(2).transpose(1, 2)), (f_p.shape[2], f_p.shape[3]))  # eq. 2: [B, N, D]
        others = (pixel.f_detail, *((pixel.trunk_8, pixel.trunk_16) if self.trunk else ()))
        return f_s, f_align, f_p, *(each for each in others if each is not None)


class LmmStage(nn.Module):
    """Stage 2: Concat(f_s, f_align, f_txt) and what came before it, causally (eq. 3); read at the anchors and where text goes on.

    One graph for the prefill and for every step of decoding: a step has no image, one word, and the keys and values so far. Any
    of the past, the image and the words before it may be empty. No padding.
    """

    def __init__(self, model: AgVas) -> None:
        super().__init__()
        self.language_model: Any = model.lmm.language_model
        self.head = model.lmm.head

    def forward(
        self,
        f_s: Tensor,
        f_align: Tensor,
        ids_before: Tensor,
        ids_after: Tensor,
        anchor_positions: Tensor,
        logit_positions: Tensor,
        past_key_values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pass over L new positions, after P old ones.

        Args:
            f_s, f_align: [B, N, D] each; their lengths may differ.
            ids_before, ids_after: [B, before] and [B, after]; L is the length of all four.
            anchor_positions: [B, 3] within ids_after.
            logit_positions: [B, K] within ids_after, where the next word is asked for: all positions of a large vocabulary would
                be the largest tensor of the model.
            past_key_values: [layers, 2, B, heads, P, head_dim], keys and values.

        Returns:
            anchor_states [B, 3, D], text_logits [B, K, V], present_key_values [layers, 2, B, heads, P + L, head_dim].
        """
        embed = self.language_model.get_input_embeddings()
        f_in = torch.cat([embed(ids_before), f_s, f_align, embed(ids_after)], 1)  # [B, L, D]
        length, past = f_in.shape[1], past_key_values.shape[4]
        query = torch.arange(length, device=f_in.device) + past  # [L]
        key = torch.arange(past + length, device=f_in.device)  # [P + L]
        # An additive mask that is already 4D passes transformers' own mask building by, which does not export.
        later = torch.where(key[None, :] > query[:, None], torch.finfo(f_in.dtype).min, 0.0).to(f_in.dtype)  # [L, P + L]
        cache = [filled(keys, values) for keys, values in past_key_values]
        hidden = self.language_model(
            None,
            later[None, None],
            query[None],
            Cache(layers=list(cache)),  # by place: releases of transformers name it differently
            inputs_embeds=f_in,
            use_cache=False,  # it is kept here, not returned
        ).last_hidden_state  # [B, L, D]
        first = length - ids_after.shape[1]
        asked = Lmm.anchor_states(hidden, logit_positions + first)  # [B, K, D]
        # A product of matrices, not of stacks: it takes the tied embeddings as they lie, where the other wants them transposed.
        text_logits = self.head(asked.flatten(0, 1)).view(*asked.shape[:2], -1)  # [B, K, V]
        present = torch.stack([torch.stack([layer.keys, layer.values]) for layer in cache])
        return Lmm.anchor_states(hidden, anchor_positions + first), text_logits, present


def filled(keys: Tensor, values: Tensor) -> Any:
    """One layer of transformers' cache with [B, heads, P, head_dim] in it, to be added to."""
    layer: Any = DynamicLayer()  # type: ignore[no-untyped-call]
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


class DecoderStage(nn.Module):
    """Stage 3: anchor states and pixel features to mask logits (eq. 4-7)."""

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
class Stage:
    """One graph to be: the module, tensors that it can be traced with, and the open axes of each."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    axes: dict[str, Axes]


def make_stages(model: AgVas, config: ModelConfig, max_batch: int | None = None, *, trunk: bool = False) -> list[Stage]:
    """The three stages of a model in evaluation mode.

    Args:
        max_batch: views that they take together at most; 1 makes the batch a constant of the graphs, None leaves it open.
        trunk: the vision graph gives the features of its trunk for the references, too.
    """
    stages = open_stages(model, config, trunk=trunk)
    return [of_one(stage) for stage in stages] if max_batch == 1 else stages  # a graph can only say which axes are open


def of_one(stage: Stage) -> Stage:
    """The stage with a batch of one, which is then a constant."""
    at = {name: next(i for i, axis in axes.items() if axis.name == "batch") for name, axes in stage.axes.items()}
    inputs, outputs = (
        {name: tensor.narrow(at[name], 0, 1) for name, tensor in tensors.items()} for tensors in (stage.inputs, stage.outputs)
    )
    left: dict[str, Axes] = {name: {i: axis for i, axis in axes.items() if i != at[name]} for name, axes in stage.axes.items()}
    return replace(stage, inputs=inputs, outputs=outputs, axes=left)


def open_stages(model: AgVas, config: ModelConfig, *, trunk: bool = False) -> list[Stage]:
    """The three stages with an open batch."""
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
    vision = VisionStage(model, trunk=trunk).eval()
    with torch.no_grad():
        found = vision(*vision_inputs.values())
    names = [*("f_s", "f_align", "f_p", "f_detail")[: len(found) - 2 * trunk], *(TRUNK_STRIDES if trunk else ())]
    seen = dict(zip(names, found, strict=True))
    tokens = {name: seen[name] for name in ("f_s", "f_align")}
    maps = {name: seen[name] for name in ("f_p", "f_detail") if name in seen}
    of_trunk = {name: seen[name] for name in TRUNK_STRIDES if name in seen}

    lmm_inputs = {
        "f_s": seen["f_s"],
        "f_align": torch.zeros(2, 9, seen["f_s"].shape[2]),
        "ids_before": torch.zeros(2, 6, dtype=torch.long),
        "ids_after": torch.zeros(2, 21, dtype=torch.long),
        "anchor_positions": torch.tensor([[17, 18, 19]] * 2),
        "logit_positions": torch.tensor([[3, 5, 9, 11]] * 2),
        "past_key_values": torch.zeros(past_shape(model, batch=2, past=13)),
    }
    lmm = LmmStage(model).eval()
    place = next(lmm.parameters()).device  # "meta" where the weights are streamed
    lmm_inputs = {name: tensor.to(place) for name, tensor in lmm_inputs.items()}
    decoder = DecoderStage(model).eval()
    with torch.no_grad():
        said = dict(zip(("anchor_states", "text_logits", "present_key_values"), lmm(**lmm_inputs), strict=True))
        states = {"anchor_states": torch.randn(said["anchor_states"].shape)}
        logits = decoder(**states, **maps)

    map_axes = {name: image_axes(tensor, 2) for name, tensor in maps.items()}
    trunk_axes = {name: image_axes(tensor, 2) for name, tensor in of_trunk.items()}
    token_axes: dict[str, Axes] = {name: {0: batch} for name in tokens}
    state_axes: dict[str, Axes] = {"anchor_states": {0: batch}}
    word_axes: dict[str, Axes] = {
        "f_s": {0: batch, 1: Axis("semantic", Dim("semantic", min=0))},  # none in a step of decoding
        "f_align": {0: batch, 1: Axis("aligned", Dim("aligned", min=0))},
        "ids_before": {0: batch, 1: Axis("before", Dim("before", min=0))},
        "ids_after": {0: batch, 1: Axis("after", Dim("after", min=1))},
        "anchor_positions": {0: batch},
        "logit_positions": {0: batch, 1: Axis("asked", Dim("asked", min=1))},
        "past_key_values": {2: batch, 4: Axis("past", Dim("past", min=0))},
        "text_logits": {0: batch, 1: Axis("asked", None)},
        "present_key_values": {2: batch, 4: Axis("past + before + semantic + aligned + after", None)},
    }
    view_axes: dict[str, Axes] = {"semantic_image": {0: batch}, "pixel_image": image_axes(vision_inputs["pixel_image"], 1)}
    return [
        Stage("vision", vision, vision_inputs, seen, view_axes | token_axes | map_axes | trunk_axes),
        Stage("lmm", lmm, lmm_inputs, said, word_axes | state_axes),
        Stage(
            "decoder",
            decoder,
            states | maps,
            {"logits": logits},
            state_axes | map_axes | {"logits": image_axes(logits, 2)},
        ),
    ]


def past_shape(model: AgVas, batch: int, past: int) -> tuple[int, ...]:
    """[layers, 2, B, heads, P, head_dim] of the language model's keys and values."""
    config: Any = model.lmm.language_model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, 2, batch, config.num_key_value_heads, past, head_dim
