"""A stage in float16 or bfloat16: its products of matrices, and what lies between them; norms and what cancels stay in float32.

Every cast is written into the graph, so that strongly typed engines take the precision from it. What a graph takes and gives stays float32:
stages of different precision fit each other.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from agvas_core.contract.manifest import Precision
from agvas_core.model.encoders.encoders import Normalize
from agvas_core.model.encoders.positions import DensePosition
from agvas_core.model.encoders.prior import ImagePrior
from agvas_core.model.encoders.sam import LayerNorm2d
from agvas_export.stages import Stage

__all__ = ["DTYPES", "IN_FLOAT32", "in_precision"]

DTYPES: Final[dict[Precision, torch.dtype]] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

IN_FLOAT32: Final = (nn.LayerNorm, LayerNorm2d, nn.BatchNorm2d, DensePosition)
"""Squares and means overflow in float16 (SAM's norms do, and its masks are then quietly wrong); angles lose their period."""
_NAMED: Final = ("RMSNorm",)  # transformers has one for each model
_OWN: Final = (Normalize, ImagePrior)
"""These compute in float32 and hand on float32: the prior takes logarithms of small differences between pixels."""
_TABLES: Final = ("RotaryEmbedding", "RopePositionEmbedding")
"""Their frequencies stay float32; what they give has the dtype of what they are given."""
_PRODUCTS: Final = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def in_precision(stage: Stage, precision: Precision, float32: tuple[type[nn.Module], ...] = IN_FLOAT32) -> Stage:
    """The stage with a module of its own in ``precision``; the model stays as it is.

    Args:
        float32: which modules compute in float32; fewer make a graph that the certificate must catch.
    """
    if precision == "fp32":
        return stage
    module, dtype = copy.deepcopy(stage.module), DTYPES[precision]
    fold_batch_norms(module)
    kept = {part for part in module.modules() if _is_kept(part, float32)}
    inside = {part for root in kept for part in root.modules()}
    for part in module.modules():
        if part not in inside:
            narrow(part, dtype)
    for part in module.modules():
        if isinstance(part, _PRODUCTS) and part not in inside:
            part.register_forward_pre_hook(_casting(dtype))
        if part in kept and not isinstance(part, _OWN) and not _ends(part, _TABLES):
            part.register_forward_pre_hook(_casting(torch.float32))
            part.register_forward_hook(_giving(dtype))
    if stage.name != "vision":  # whose inputs are uint8
        module.register_forward_pre_hook(_casting(dtype))
    module.register_forward_hook(_giving(torch.float32))
    return replace(stage, module=module)


def narrow(part: nn.Module, dtype: torch.dtype) -> None:
    """Parameters and buffers of one module, not of those within it."""
    for parameter in part.parameters(recurse=False):
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for name, buffer in part.named_buffers(recurse=False):
        if buffer.is_floating_point():
            setattr(part, name, buffer.to(dtype))


def fold_batch_norms(module: nn.Module) -> None:
    """Convolutions take the batch norms after them, in float32, before anything is rounded."""
    for part in module.modules():
        if not isinstance(part, nn.Sequential):
            continue
        for index in range(len(part) - 1):
            first, second = part[index], part[index + 1]
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                part[index], part[index + 1] = fuse_conv_bn_eval(first, second), nn.Identity()


def _is_kept(part: nn.Module, float32: tuple[type[nn.Module], ...]) -> bool:
    norms = float32 is IN_FLOAT32 and _ends(part, _NAMED)
    return isinstance(part, (*float32, *_OWN)) or norms or _ends(part, _TABLES)


def _ends(part: nn.Module, names: tuple[str, ...]) -> bool:
    return type(part).__name__.endswith(names)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _casting(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A hook that casts what a module is given by place."""
    return lambda _, given: tuple(_cast(value, dtype) for value in given)


def _giving(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    """A hook that casts what a module gives."""

    def hook(_: nn.Module, given: tuple[Any, ...], output: Any) -> Any:
        return tuple(_cast(value, dtype) for value in output) if isinstance(output, tuple) else _cast(output, dtype)

    return hook
