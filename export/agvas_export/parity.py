"""Does the bundle give the model's own answer? Joint by joint, and along the whole path.

The reference is the model itself (its ``see``, ``lmm`` and ``decode``), not the modules that were traced, so a mistake in cutting
it shows as well as one in exporting it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from agvas_core.contract.errors import ParityError
from agvas_core.contract.manifest import GraphSpec, Manifest, PromptSpec
from agvas_core.contract.preprocess import make_view
from agvas_core.contract.tolerances import TOLERANCES
from agvas_core.data.synthesis import synthesize
from agvas_core.model.agvas import AgVas
from agvas_core.model.checkpoint import Checkpoint
from agvas_core.model.fusion import anomaly_probability, binary_mask
from agvas_core.model.lmm import find_anchors

__all__ = ["Comparison", "Frames", "Parity", "Words", "answer_of", "compare", "reference", "synthetic_frames", "words"]

Array = NDArray[Any]
SEED = 987654321  # no training draws from it
# Batch and frame size; each gives another view, long and wide ones among them.
FRAMES = ((1, (256, 256)), (3, (128, 384)), (2, (300, 200)), (1, (96, 96)))


class Words(NamedTuple):
    """The instruction and its fixed answer as ids, with a batch axis of 1; ``positions`` [1, 3] within ``after``."""

    before: Tensor
    after: Tensor
    positions: Tensor


class Frames(NamedTuple):
    """What the vision graph takes: uint8 RGB [B, Hs, Ws, 3] and [B, H, W, 3]."""

    semantic: Tensor
    pixel: Tensor


@dataclass(frozen=True)
class Comparison:
    """The worst error of one tensor over all frames, scaled as :class:`Tolerance` says."""

    tensor: str
    error: float
    tolerance: float


@dataclass(frozen=True)
class Parity:
    """What was compared with what, on which data, and what came out: ``parity.json`` of a bundle."""

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


def words(tokenizer: Tokenizer, prompt: PromptSpec, anchor_ids: tuple[int, int, int]) -> Words:
    """The bundle's own prompt in direct mode.

    Raises:
        ParityError: the tokenizer joins prompt and answer into other tokens than the model was trained on.
    """
    before, after = prompt.chat.prompt(prompt.instruction)
    ids = _encode(tokenizer, after + prompt.answer)
    if ids != _encode(tokenizer, after) + _encode(tokenizer, prompt.answer):
        raise ParityError(
            f"the tokenizer reads {prompt.chat.before_answer!r} and the answer as other tokens together than apart, and training "
            "encodes them apart: end before_answer of the chat format with a token of its own"
        )
    positions = [len(ids) - 1 - ids[::-1].index(anchor) for anchor in anchor_ids]
    after_ids = ids[: max(positions) + 1]  # nothing after the last anchor can reach it in a causal model
    return Words(*(torch.tensor([row]) for row in (_encode(tokenizer, before), after_ids, positions)))


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def synthetic_frames(checkpoint: Checkpoint) -> list[Frames]:
    """Batches of generated images, as the two encoders see them."""
    config, batches = checkpoint.config, []
    for batch, size in FRAMES:
        images = [synthesize(SEED, index, size).image for index in range(batch)]
        views = ([make_view(spec, image).pixels for image in images] for spec in (config.semantic_view, config.pixel_view))
        batches.append(Frames(*(torch.from_numpy(np.stack(view)) for view in views)))
    return batches


@torch.no_grad()
def reference(model: AgVas, frames: Frames, said: Words) -> dict[str, Tensor]:
    """The model's own tensors at every joint, by the names that the graphs give them."""
    vision = model.see(*frames)
    batch, tokens = vision.f_s.shape[:2]
    image = said.after.new_full((1, 2 * tokens), model.lmm.image_token_id)
    input_ids = torch.cat([said.before, image, said.after], 1).expand(batch, -1)  # [B, L]
    hidden = model.lmm(model.lmm.embed(input_ids, vision.f_s, vision.f_align), with_logits=False).hidden  # [B, L, D]
    positions, found = find_anchors(input_ids, model.lmm.anchor_ids)
    anchors = model.lmm.anchor_states(hidden, positions)  # [B, 3, D]
    tensors = {
        "f_s": vision.f_s,
        "f_align": vision.f_align,
        "f_p": vision.pixel.f_p,
        "f_detail": vision.pixel.f_detail,
        "anchor_states": anchors,
        "logits": model.decode(anchors, vision.pixel, found),
    }
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


class Graphs:
    """The three graphs of a bundle on ONNX Runtime, as the verification needs them."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.specs = {"vision": manifest.vision, "lmm": manifest.lmm, "decoder": manifest.decoder}
        self.sessions = {name: self._open(folder, spec) for name, spec in self.specs.items()}

    @staticmethod
    def _open(folder: Path, spec: GraphSpec) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # the optimiser's warnings say nothing about the answer
        return ort.InferenceSession(str(folder / spec.file), options, providers=["CPUExecutionProvider"])

    def run(self, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs of one graph, which takes what it needs out of ``tensors``."""
        spec = self.specs[name]
        feeds = {tensor.name: tensors[tensor.name].contiguous().numpy() for tensor in spec.inputs}
        outputs: list[Array] = self.sessions[name].run([tensor.name for tensor in spec.outputs], feeds)
        return {tensor.name: torch.from_numpy(value) for tensor, value in zip(spec.outputs, outputs, strict=True)}


def answer_of(graphs: Graphs, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The three graphs one after the other, each fed by the one before."""
    tensors = dict(given)
    for name in graphs.specs:
        tensors |= graphs.run(name, tensors)
    return tensors


def compare(folder: Path, manifest: Manifest, checkpoint: Checkpoint, *, precision: str = "fp32") -> Parity:
    """Compares the graphs in ``folder`` with the checkpoint they came from, on synthetic images.

    Raises:
        ParityError: beyond the tolerance; the message names the graph and the tensor.
    """
    tolerance = TOLERANCES[precision]
    allowed = {name: tolerance.features for name in ("f_s", "f_align", "f_p", "f_detail")} | {
        "anchor_states": tolerance.anchor_states,
        "logits": tolerance.logits,
    }
    graphs = Graphs(folder, manifest)
    said = words(checkpoint.tokenizer, manifest.prompt, manifest.anchor_ids)
    worst: dict[str, float] = {}
    drift, pixels, changed, count = 0.0, 0, 0, 0
    for frames in synthetic_frames(checkpoint):
        batch = len(frames.pixel)
        truth = reference(checkpoint.model, frames, said)
        given = {"semantic_image": frames.semantic, "pixel_image": frames.pixel} | {
            name: ids.expand(batch, -1) for name, ids in zip(("ids_before", "ids_after", "anchor_positions"), said, strict=True)
        }
        for name in graphs.specs:  # each joint is given the reference of those before it
            for tensor, value in graphs.run(name, given | truth).items():
                worst[tensor] = max(worst.get(tensor, 0.0), _error(value, truth[tensor]))
        expected, actual = (
            anomaly_probability(logits, manifest.decision.alpha)
            for logits in (truth["logits"], answer_of(graphs, given)["logits"])
        )
        drift = max(drift, _largest((expected - actual).abs()))
        masks = [binary_mask(probability, manifest.decision.threshold) for probability in (expected, actual)]
        pixels, changed = pixels + masks[0].numel(), changed + int((masks[0] != masks[1]).sum())
        count += batch
    comparisons = [Comparison(name, error, allowed[name]) for name, error in worst.items()]
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
        candidate=f"onnxruntime {ort.__version__} CPUExecutionProvider",
        precision=precision,
        data=f"agvas_core.data.synthesis seed {SEED}",
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
