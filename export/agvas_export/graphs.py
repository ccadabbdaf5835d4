"""One stage -> one ONNX file.

torch's exporter (dynamo) traces; the passes that make the graph small are chosen here. Its own default set is not used:
onnxscript 0.7 takes any constant below 1e-8 for zero, so ``(x + 1e-12).log()`` becomes ``x.log()`` and the graph gives -inf.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx_ir.passes import common as passes
from onnxscript import ir, optimizer
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common as rules
from torch import Tensor, nn

from agvas_core.contract.manifest import GraphSpec, TensorSpec
from agvas_export.stages import Axes, Stage

__all__ = ["OPSET", "eager_attention", "export_stage"]

OPSET = 20  # what TensorRT 10.3 and onnxruntime 1.20 both read; opset 23's Attention gains nothing and fails in fp32 there
MAX_EMBEDDED_BYTES = 1_900_000_000  # protobuf ends at 2 GiB; larger weights go into a file beside the graph
MAX_FOLDED_ELEMENTS = 1 << 18

_EXACT_RULES = (
    rules.fuse_batchnorm_into_conv_rule,
    rules.fuse_batchnorm_into_conv_transpose_rule,
    rules.collapse_slice_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.reshape_reshape_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
)


def export_stage(stage: Stage, folder: Path, *, fill: Callable[[ir.Model], None] | None = None) -> GraphSpec:
    """Writes ``<name>.onnx`` into ``folder``, with ``<name>.onnx.data`` where its weights are large, and returns what the manifest says of it.

    Args:
        fill: gives the weights of a stage that was traced without any; they go beside the graph whatever their size, for a graph is
            written from memory.
    """
    with _quiet(), eager_attention(stage.module), torch.no_grad():
        program = torch.onnx.export(
            stage.module,
            tuple(stage.inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=[{axis: open_.dim for axis, open_ in stage.axes[name].items()} for name in stage.inputs],
            input_names=list(stage.inputs),
            output_names=list(stage.outputs),
            optimize=False,
            verbose=False,
        )
    assert program is not None, "the dynamo exporter always returns a program"
    inputs = _specs(stage.inputs, stage.axes)
    outputs = _specs(stage.outputs, stage.axes)
    model = program.model
    for value in model.graph.inputs:  # torch.onnx makes an axis a constant, without a word, where the model's code does
        for axis in stage.axes[value.name or ""]:
            assert value.shape is not None and not isinstance(value.shape[axis], int), (
                f"axis {axis} of {value.name} was traced away"
            )
    if fill is not None:
        fill(model)
    simplify(model)
    describe(model, stage.name, inputs, outputs)
    path = folder / f"{stage.name}.onnx"
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if fill is not None or size > MAX_EMBEDDED_BYTES else None)
    # Before opset 22 the convolutions of ONNX's own table take no bfloat16; TensorRT's do.
    half = any(value.dtype == ir.DataType.BFLOAT16 for value in model.graph.initializers.values())
    onnx.checker.check_model(str(path), full_check=not half)
    return GraphSpec(file=path.name, inputs=inputs, outputs=outputs)


def simplify(model: ir.Model) -> None:
    """Folds constants and batch norms, drops what does nothing, keeps each weight once. Exact up to the folding itself."""
    passes.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=MAX_FOLDED_ELEMENTS,
            output_size_limit=MAX_FOLDED_ELEMENTS,
        )
        rewrite(model, _EXACT_RULES)
    for step in (
        passes.IdentityEliminationPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        step(model)


def describe(model: ir.Model, name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Names the open axes as the manifest does, and takes out what only the tracer knew: stack traces, its symbols, its paths."""
    passes.ClearMetadataAndDocStringPass()(model)
    for value, spec in zip((*model.graph.inputs, *model.graph.outputs), (*inputs, *outputs), strict=True):
        assert value.name == spec.name, f"the exporter called {spec.name} {value.name}"
        value.shape = ir.Shape(spec.shape)
    ends = set(model.graph.outputs)
    for node in model.graph:
        for value in node.outputs:
            if value not in ends:
                value.shape = None  # engines infer it; the tracer's symbols would contradict the names above
    model.graph.name = f"agvas_{name}"


def _specs(tensors: dict[str, Tensor], axes: dict[str, Axes]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec.model_validate(
            {
                "name": name,
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": tuple(axes[name][i].name if i in axes[name] else length for i, length in enumerate(tensor.shape)),
            }
        )
        for name, tensor in tensors.items()
    )


@contextmanager
def eager_attention(module: nn.Module) -> Iterator[None]:
    """Attention of transformers' modules written out (matmul, softmax, matmul) inside, as it was before outside."""
    configs: list[Any] = [
        part.config for part in module.modules() if hasattr(getattr(part, "config", None), "_attn_implementation")
    ]
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's remarks on its own insides: deprecations in torch, axis names that are equal, torchvision not being here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
            yield
    finally:
        logger.setLevel(level)
