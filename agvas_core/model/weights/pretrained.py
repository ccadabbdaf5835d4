"""The model with the published weights that its configuration names; the paper's own parts are new."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaOnevisionForConditionalGeneration

from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.contract.validation import did_you_mean
from agvas_core.model.agmd import Agmd
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import assemble, build_llava, build_pixel_backbone
from agvas_core.model.config import LmmConfig, ModelConfig, PixelConfig
from agvas_core.model.encoders.sam import SamImageEncoder
from agvas_core.model.encoders.vit import VIT_FAMILIES, VitEncoder
from agvas_core.model.sam_decoder import SamMaskDecoder
from agvas_core.model.weights.pretrained_config import check_lmm, check_vit
from agvas_core.model.weights.published import read_weights, weight_files
from agvas_core.model.weights.sam_checkpoint import (
    load_sam_decoder_state,
    load_sam_encoder_state,
    sam_arguments,
    start_agmd_from_sam,
)
from agvas_core.model.weights.vocabulary import fit_rows, pretrained_tokenizer

__all__ = ["pretrained_model"]


def pretrained_model(config: ModelConfig, dtype: torch.dtype = torch.float32) -> AgVas:
    """LMM and pixel encoder as published, each where ``config`` names one; everything else is random, in float32, except SAM's mask
    decoder where LISA's decoder, or AGMD with ``start = "sam"``, begins with it.

    The vocabulary has the anchors. Seed torch before to get the same new parts again.

    Args:
        dtype: of the published weights.

    Raises:
        UsageError: no such model, one of another size than the configuration, or one whose tensors do not fit; names which.
        SetupError: the hub cannot be reached, or files are damaged.
    """
    llava = build_llava(config.lmm) if config.lmm.pretrained is None else load_llava(config.lmm, dtype)
    sam: dict[str, Tensor] = {}
    if config.pixel.pretrained is None:
        backbone = build_pixel_backbone(config.pixel)
    elif config.pixel.kind == "sam":
        sam = read_weights(config.pixel.pretrained)
        backbone = sam_encoder(config.pixel, sam).to(dtype)
    else:
        backbone = load_vit(config.pixel, dtype)
    model = assemble(config, llava, backbone)
    if sam and isinstance(model.agmd, SamMaskDecoder):
        load_sam_decoder_state(model.agmd, sam)
    elif sam and isinstance(model.agmd, Agmd) and config.agmd.start == "sam":
        start_agmd_from_sam(model.agmd, sam)
    return model


def load_llava(config: LmmConfig, dtype: torch.dtype) -> Any:
    """transformers' model with the anchors' rows in it."""
    check_lmm(config)
    _, had_anchors = pretrained_tokenizer(config)
    is_onevision = config.family == "llava-onevision"
    llava = from_pretrained(
        LlavaOnevisionForConditionalGeneration if is_onevision else LlavaForConditionalGeneration, config.pretrained, dtype
    )
    fit_rows(llava, config, had_anchors)
    return llava


def load_vit(config: PixelConfig, dtype: torch.dtype) -> VitEncoder:
    """A pixel encoder that transformers has."""
    check_vit(config)
    family = VIT_FAMILIES[config.kind]
    own = family.config(**config.arguments)
    return VitEncoder(from_pretrained(family.model, config.pretrained, dtype, config=own), family)


def sam_encoder(config: PixelConfig, state: Mapping[str, Tensor]) -> SamImageEncoder:
    """SAM's image encoder with a checkpoint's weights; its positions are interpolated to the configuration's ``image_px``."""
    found = sam_arguments(state)
    defaults = {name: parameter.default for name, parameter in signature(SamImageEncoder).parameters.items()}
    for key in found.keys() - {"image_px"}:
        given = config.arguments.get(key, defaults[key])
        if (list(given) if isinstance(given, tuple) else given) != found[key]:
            raise UsageError(
                f"pixel.arguments.{key} is {given}, {config.pretrained} has {found[key]}: correct it, or leave the arguments out"
            )
    with torch.device("meta"):
        encoder = build_pixel_backbone(config)
    assert isinstance(encoder, SamImageEncoder)
    load_sam_encoder_state(encoder, state, resize=True)
    return encoder


def from_pretrained(kind: type[Any], name: str | None, dtype: torch.dtype, **arguments: Any) -> Any:
    """``kind.from_pretrained``, which refuses what transformers would fill with random numbers."""
    assert name is not None
    weight_files(name)  # says better what is missing
    try:
        with _quiet():
            model, info = kind.from_pretrained(
                name, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
            )
    except (OSError, RuntimeError) as error:
        raise SetupError(f"{name} cannot be loaded ({str(error).splitlines()[0]}): download it again") from error
    unexpected = sorted(info["unexpected_keys"])
    if missing := sorted(info["missing_keys"]):
        raise UsageError(
            f"{name} lacks {_first(missing, unexpected)}: it is not a whole {kind.__name__}; download it again, or name another"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        key, found, wanted = mismatched[0]
        raise UsageError(
            f"{name}: {key} is {list(found)}, its own configuration says {list(wanted)}: download it again, or name another"
        )
    loaded: nn.Module = model
    return loaded


def _first(keys: list[str], others: Iterable[str]) -> str:
    """The first key, the nearest among the unused ones, and how many more."""
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return keys[0] + did_you_mean(keys[0], others).replace("; did you mean", " (it has").replace("?", ")") + more


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports tensors that it leaves out as a warning: half of CLIP is left out on purpose."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
