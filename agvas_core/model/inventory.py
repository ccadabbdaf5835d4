"""Parameter counts of a model's parts, and the memory that one image takes."""

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from agvas_core.contract.errors import UsageError
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model, visual_tokens
from agvas_core.model.config import ModelConfig

__all__ = ["EvaluationMemory", "Row", "evaluation_memory", "inventory"]


class Row(NamedTuple):
    """One part: its parameters, and those that get gradients."""

    part: str
    parameters: int
    trained: int


def inventory(model: AgVas) -> list[Row]:
    """The parts in the order of the data path, and their sum. A table that two parts share (tied embeddings) counts once."""
    parts: list[tuple[str, nn.Module | None]] = [
        ("semantic encoder", model.semantic_encoder.tower),
        ("  projector", model.semantic_encoder.projector),
        ("pixel encoder", model.pixel_encoder.backbone),
        ("  adapter", model.pixel_encoder.adapter),
        ("Linear_p", model.linear_p),
        ("SPAM", model.spam),
        ("language model", model.lmm.language_model),
        ("  embeddings", model.lmm.language_model.get_input_embeddings()),  # type: ignore[operator]
        ("  head", model.lmm.head),
        ("token refiner", model.refiner),
        ("mask decoder", model.agmd),
    ]
    seen: set[int] = set()
    counted: dict[str, Row] = {}
    # Inner parts first: what remains of the language model is its layers.
    for part, module in sorted(parts, key=lambda each: not each[0].startswith(" ")):
        own = [] if module is None else [p for p in module.parameters() if id(p) not in seen]
        seen |= {id(p) for p in own}
        counted[part] = Row(part, sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad))
    rest = [p for p in model.parameters() if id(p) not in seen]  # the end of line of tiles
    if rest:
        counted["semantic encoder"] = _plus(counted["semantic encoder"], rest)
    rows = [counted[part] for part, module in parts if module is not None]
    return [*rows, Row("all", sum(row.parameters for row in rows), sum(row.trained for row in rows))]


def _plus(row: Row, parameters: list[nn.Parameter]) -> Row:
    return Row(
        row.part,
        row.parameters + sum(p.numel() for p in parameters),
        row.trained + sum(p.numel() for p in parameters if p.requires_grad),
    )


class EvaluationMemory(NamedTuple):
    """Bytes of one image in direct mode: the weights, and the most that lies beside them at any moment."""

    weights: int
    peak: int


def evaluation_memory(config: ModelConfig, dtype: torch.dtype = torch.bfloat16, text_tokens: int = 40) -> EvaluationMemory:
    """What evaluation of one image needs, counted on the meta device: every tensor of a pass, as long as it lives. Nothing is computed.

    The allocator's rounding, CUDA's context and the work space of kernels come on top. Attention counts as its fused kernel has it.

    Args:
        dtype: of weights and features.
        text_tokens: of instruction and answer.

    Raises:
        UsageError: the model is nano, whose prior cannot run without a device.
    """
    if config.pixel.kind == "nano":
        raise UsageError(
            f"the memory of {config.name} is not counted: nano's pixel encoder runs on a device alone; measure it (agvas profile)"
        )
    model = build_model(config, device="meta").to(dtype).eval()
    weights = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in (*model.parameters(), *model.buffers())
    }
    semantic = torch.empty(1, config.semantic_view.size_px, config.semantic_view.size_px, 3, dtype=torch.uint8, device="meta")
    pixel = torch.empty(1, config.pixel_view.size_px, config.pixel_view.size_px, 3, dtype=torch.uint8, device="meta")
    language_model: Any = model.lmm.language_model
    width: int = language_model.config.hidden_size
    with torch.no_grad(), _Live(set(weights)) as live:
        vision = model.see(semantic, pixel)
        embeddings = torch.empty(1, visual_tokens(config) + text_tokens, width, dtype=dtype, device="meta")
        hidden = model.lmm(embeddings, with_logits=False).hidden
        model.lmm.head(hidden[0, -1])
        model.decode(hidden[:, :3], vision.pixel)
    return EvaluationMemory(sum(weights.values()), live.peak)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations return, for as long as a tensor shows them."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known, self.live, self.peak = known, 0, 0
        self._views: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True  # transformers asks whether positions are those of one sequence; they are
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self._views[key] = self._views.get(key, 0) + 1
        if self._views[key] == 1:
            self.live += size
            self.peak = max(self.peak, self.live)
        weakref.finalize(tensor, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._views[key] -= 1
        if not self._views[key]:
            del self._views[key]
            self.live -= size
