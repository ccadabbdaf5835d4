"""Exporting a language model that memory does not hold: traced without weights, which then go from file to file, one tensor at a time.

Vision and decoder are read as always; of the language model only shapes are built (torch's device ``meta``). What is held at once is then the
vision part and the largest tensor of the language model, as it is read and as it is written (``docs/export.md`` has the sum for 7B).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import init_empty_weights
from onnx_ir.tensor_adapters import TorchTensor
from onnxscript import ir
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from agvas_core.contract.errors import SetupError
from agvas_core.model.agvas import AgVas
from agvas_core.model.build import build_model
from agvas_core.model.weights.checkpoint import BASE, TOKENIZER, WEIGHTS, Checkpoint, read_config, read_tokenizer, refuse_misfit
from agvas_export.source import read_training

__all__ = ["STREAMED_BYTES", "LmmWeights", "can_stream", "read_without_lmm"]

STREAMED_BYTES: Final = 6_000_000_000
"""Checkpoints above this are streamed without being asked to: loaded, traced and compared they would need four times that."""
_LMM: Final = "lmm."
_HEAD: Final = "lmm.head.weight"


class LmmWeights:
    """The language model's tensors in a checkpoint, read when they are written.

    Args:
        constants: buffers that no checkpoint keeps, by their names in the stage.
    """

    def __init__(self, path: Path, constants: dict[str, Tensor]) -> None:
        self.path, self.constants = path, constants
        with safe_open(path, "pt") as file:
            self.names = {name.removeprefix(_LMM) for name in file.keys() if name.startswith(_LMM)}  # noqa: SIM118

    def fill(self, model: ir.Model) -> None:
        """Gives the graph's initialisers, which have none, their values."""
        for name, value in model.graph.initializers.items():
            assert value.const_value is not None
            if name in self.constants:
                constant = self.constants[name]
                value.const_value = TorchTensor(
                    constant.to(_torch_dtype(value)) if constant.is_floating_point() else constant, name
                )
            elif name in self.names or name == "head.weight":
                value.const_value = self._lazy(name, value)

    def read(self, name: str) -> Tensor:
        """One tensor, by its name within the language model."""
        with safe_open(self.path, "pt") as file:
            tensor: Tensor = file.get_tensor(_LMM + name)
        return tensor

    def _lazy(self, name: str, value: ir.Value) -> ir.LazyTensor:
        assert value.const_value is not None
        dtype, stored = _torch_dtype(value), name if name in self.names else "language_model.embed_tokens.weight"

        def read() -> Any:
            return TorchTensor(self.read(stored).to(dtype), name)

        shape = ir.Shape(value.const_value.shape.numpy())
        return ir.LazyTensor(read, dtype=value.const_value.dtype, shape=shape, name=name)


def can_stream(folder: Path) -> bool:
    """Whether a checkpoint is whole; one beside published weights has to be merged first, in memory."""
    return not (folder / BASE).is_file()


def read_without_lmm(folder: Path) -> tuple[Checkpoint, LmmWeights]:
    """A whole checkpoint whose language model has shapes and no weights, and where they are.

    Raises:
        UsageError, SetupError: as ``load_checkpoint``.
    """
    config = read_config(folder)
    with init_empty_weights(include_buffers=False):
        model = build_model(config)
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            names = list(file.keys())
            shapes = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
            tied = tie_head(model, names)
            refuse_misfit(own_shapes(model, tied), shapes, folder)
            seen = {name: file.get_tensor(name) for name in names if not name.startswith(_LMM)}
        tokenizer = read_tokenizer(folder / TOKENIZER)
    except (ValueError, OSError, SafetensorError) as error:
        raise SetupError(f"{folder} is damaged ({error}): copy the checkpoint again") from error
    model.load_state_dict(seen, strict=False, assign=True)
    constants = {name: buffer.clone() for name, buffer in model.lmm.named_buffers()}
    model.lmm.to("meta")
    return Checkpoint(model.eval(), config, tokenizer, read_training(folder), folder), LmmWeights(folder / WEIGHTS, constants)


def tie_head(model: AgVas, names: Iterable[str]) -> bool:
    """One table for words in and out, where the checkpoint has one; building without weights took them apart."""
    head, embeddings = model.lmm.head, model.lmm.language_model.get_input_embeddings()  # type: ignore[operator]
    if _HEAD in names or not isinstance(head, nn.Linear):
        return False
    head.weight = embeddings.weight
    return True


def own_shapes(model: AgVas, tied: bool) -> dict[str, Tensor]:
    """What the checkpoint must have, each with storage of its own: all of ``meta`` is at one address, as if it were tied."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not (tied and name == _HEAD)}
    return {name: torch.zeros(()).expand(tensor.shape) for name, tensor in state.items()}


def _torch_dtype(value: ir.Value) -> torch.dtype:
    assert value.const_value is not None
    kinds = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}
    return kinds[value.const_value.dtype]
