"""Parity of a bundle with its model: stage by stage, for one more generated word, and along the whole path."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, TensorProto, numpy_helper
from torch import Tensor

from agvas_core.contract.certificate import TOLERANCES
from agvas_core.contract.errors import ParityError
from agvas_core.contract.manifest import TRUNK_STRIDES, GraphSpec, Manifest
from agvas_core.model.fusion import anomaly_probability, binary_mask
from agvas_core.model.weights.checkpoint import Checkpoint
from agvas_export.reference import SEED, Words, encode, reference, synthetic_frames, words

__all__ = ["Comparison", "Graphs", "Parity", "answer_of", "compare", "run_step", "write_bf16_reference"]


# A bfloat16 graph as float32, for machines whose engine has no bfloat16: the same operations on the same rounded weights.
#
# What it does not show is the rounding between the operations; only an engine that computes in bfloat16 does.


def write_bf16_reference(path: Path, folder: Path) -> Path:
    """Writes the graph in ``path`` with float32 for bfloat16 into ``folder``."""
    model = onnx.load(path)
    for tensor in _tensors(model.graph):
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    del model.graph.value_info[:]
    out = folder / path.name
    onnx.save(model, out, save_as_external_data=model.ByteSize() > 1 << 30, location=f"{path.name}.data")
    return out


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t


Array = NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """The worst error of one tensor over all frames, scaled as :class:`Tolerance` says."""

    tensor: str
    error: float
    tolerance: float


@dataclass(frozen=True)
class Parity:
    """What was compared with what, on which data, and what came out: ``comparison`` in a bundle's provenance."""

    reference: str
    candidate: str
    precision: str
    data: str
    frames: int
    comparisons: tuple[Comparison, ...]
    mask_pixels: int
    mask_pixels_changed: int
    """Pixels on the other side of the threshold; all of them lie within the tolerance of P."""

    def as_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)


_SAID = ("anchor_states", "text_logits")


class Graphs:
    """The three graphs of a bundle on ONNX Runtime, as the verification needs them."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.specs = manifest.graphs
        self.is_bf16_reference = manifest.precision == "bf16"
        self.sessions = {name: self._open(folder, spec) for name, spec in self.specs.items()}

    def _open(self, folder: Path, spec: GraphSpec) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # the optimiser's warnings say nothing about the answer
        if self.is_bf16_reference:  # ONNX Runtime's CPU provider has no kernels for bfloat16
            with TemporaryDirectory(prefix="agvas-bf16-") as scratch:
                path = write_bf16_reference(folder / spec.file, Path(scratch))
                return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return ort.InferenceSession(str(folder / spec.file), options, providers=["CPUExecutionProvider"])

    def run(self, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs of one graph, which takes what it needs out of ``tensors``."""
        spec = self.specs[name]
        feeds = {tensor.name: tensors[tensor.name].contiguous().numpy() for tensor in spec.inputs}
        outputs: list[Array] = self.sessions[name].run([tensor.name for tensor in spec.outputs], feeds)
        return {tensor.name: torch.from_numpy(value) for tensor, value in zip(spec.outputs, outputs, strict=True)}

    def no_past(self, batch: int) -> dict[str, Tensor]:
        """Keys and values where nothing was said yet."""
        if "lmm" not in self.specs:
            return {}
        (past,) = (tensor.shape for tensor in self.specs["lmm"].inputs if tensor.name == "past_key_values")
        sizes = {2: batch, 4: 0}
        shape = [sizes[axis] if axis in sizes else int(size) for axis, size in enumerate(past)]
        return {"past_key_values": torch.zeros(shape)}


def _step_of(graphs: Graphs, truth: Mapping[str, Tensor], said: Words) -> list[dict[str, Tensor]]:
    return [run_step(graphs, truth, said)] if "lmm" in graphs.specs else []


def run_step(graphs: Graphs, truth: Mapping[str, Tensor], said: Words) -> dict[str, Tensor]:
    """One step of decoding: the last word again, after the reference's keys and values of all before it."""
    batch, whole = len(truth["f_s"]), truth["present_key_values"]
    zero = said.after.new_zeros(batch, 1)
    step = graphs.run(
        "lmm",
        {
            "f_s": truth["f_s"][:, :0],
            "f_align": truth["f_align"][:, :0],
            "ids_before": zero[:, :0],
            "ids_after": said.after[:, -1:].expand(batch, -1),
            "anchor_positions": zero.expand(-1, 3),
            "logit_positions": zero,
            "past_key_values": whole[..., :-1, :],
        },
    )
    return {
        "last_state": step["anchor_states"][:, 0],
        "last_text_logits": step["text_logits"][:, 0],
        "present_key_values": step["present_key_values"],
    }


def answer_of(graphs: Graphs, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The three graphs one after the other, each fed by the one before."""
    tensors = dict(given)
    for name in graphs.specs:
        tensors |= graphs.run(name, tensors)
    return tensors


def compare(folder: Path, manifest: Manifest, checkpoint: Checkpoint) -> Parity:
    """Compares the graphs in ``folder`` with the checkpoint they came from, on synthetic images.

    Raises:
        ParityError: beyond the tolerance; the message names the graph and the tensor.
    """
    precision = manifest.precision
    tolerance = TOLERANCES[precision]
    allowed = {name: tolerance.features for name in ("f_s", "f_align", "f_p", "f_detail", *TRUNK_STRIDES)} | {
        "anchor_states": tolerance.anchor_states,
        "last_state": tolerance.anchor_states,
        "text_logits": tolerance.text,
        "last_text_logits": tolerance.text,
        "present_key_values": tolerance.text,
        "logits": tolerance.logits,
    }
    first_words = [encode(checkpoint.tokenizer, text)[0] for text in (manifest.prompt.refusal, manifest.prompt.answer)]
    graphs = Graphs(folder, manifest)
    said = words(checkpoint.tokenizer, manifest.prompt, manifest.anchor_ids)
    worst: dict[str, float] = {}
    drift, swayed, pixels, changed, count = 0.0, 0.0, 0, 0, 0
    for frames in synthetic_frames(checkpoint, manifest.max_batch):
        batch = len(frames.pixel)
        truth = reference(checkpoint.model, frames, said)
        given = {"semantic_image": frames.semantic, "pixel_image": frames.pixel} | said.inputs(batch) | graphs.no_past(batch)
        # Each stage is given the reference of those before it.
        runs = [graphs.run(name, given | truth) for name in graphs.specs] + _step_of(graphs, truth, said)
        for tensor, value in (pair for run in runs for pair in run.items()):
            worst[tensor] = max(worst.get(tensor, 0.0), _error(value, truth[tensor]))
        # What no graph says, the model itself does.
        answer = answer_of(graphs, given if "lmm" in graphs.specs else given | {name: truth[name] for name in _SAID})
        accepts = [(each["text_logits"][:, 0, first_words].diff(dim=1)).sigmoid() for each in (truth, answer)]
        swayed = max(swayed, _largest((accepts[0] - accepts[1]).abs()))
        expected, actual = (anomaly_probability(each["logits"], manifest.decision.alpha) for each in (truth, answer))
        drift = max(drift, _largest((expected - actual).abs()))
        masks = [binary_mask(probability, manifest.decision.point().threshold) for probability in (expected, actual)]
        pixels, changed = pixels + masks[0].numel(), changed + int((masks[0] != masks[1]).sum())
        count += batch
    comparisons = [Comparison(name, error, allowed[name]) for name, error in worst.items()]
    comparisons.append(Comparison("accept", swayed, tolerance.probability))
    comparisons.append(Comparison("probability", drift, tolerance.probability))
    failed = [each for each in comparisons if each.error > each.tolerance]
    if failed:
        graph = {tensor.name: spec.file for spec in graphs.specs.values() for tensor in spec.outputs}
        first = failed[0]
        raise ParityError(
            f"{graph.get(first.tensor, 'the whole path')}: {first.tensor} is off by {first.error:.1e}; {precision} may be off by "
            f"{first.tolerance:.0e}: the exported graph does not give the model's own answer; check the versions of torch and onnxscript"
        )
    return Parity(
        reference=f"torch {torch.__version__}",
        candidate=f"onnxruntime {ort.__version__} CPUExecutionProvider"
        + (", graphs rounded to bfloat16 and run in float32" if graphs.is_bf16_reference else ""),
        precision=precision,
        data=f"agvas_core.data.synthetic.synthesis seed {SEED}",
        frames=count,
        comparisons=tuple(comparisons),
        mask_pixels=pixels,
        mask_pixels_changed=changed,
    )


def _error(value: Tensor, truth: Tensor) -> float:
    if value.shape != truth.shape:
        return float("inf")
    return _largest((value - truth).abs()) / max(1.0, _largest(truth.abs()))


def _largest(tensor: Tensor) -> float:
    """The maximum; infinite where anything is NaN, which no comparison would notice."""
    return float(tensor.max()) if bool(torch.isfinite(tensor).all()) else float("inf")
