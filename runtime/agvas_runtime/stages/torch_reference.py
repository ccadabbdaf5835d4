"""The stages by torch, from the checkpoint that a bundle was exported from."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agvas_core.contract.errors import BundleError, SetupError
from agvas_core.contract.manifest import TRUNK_STRIDES, sha256_of
from agvas_core.contract.prompts import Mode
from agvas_core.model.agvas import AgVas, Vision
from agvas_core.model.encoders.efficientnet_lite import TRUNK, load_trunk
from agvas_core.model.encoders.encoders import PixelFeatures
from agvas_core.model.generation import greedy_generate
from agvas_core.model.lmm import find_anchors
from agvas_core.model.references import EncoderCells, FeatureCells, ReferenceDistance, ReferenceHead
from agvas_core.model.weights.checkpoint import BUNDLED, WEIGHTS, Checkpoint, load_checkpoint
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.open import StageSettings
from agvas_runtime.stages.prompt_tokenizer import PromptTokenizer, Words
from agvas_runtime.stages.protocol import Features, ReferenceDistances, Reply, Turn
from agvas_runtime.stages.references import empty_bank, head_of, reference_inputs, references_of

__all__ = [
    "TorchDecoder",
    "TorchHead",
    "TorchLmm",
    "TorchReferences",
    "TorchVision",
    "checkpoint_of",
    "open_decoder",
    "open_head",
    "open_lmm",
    "open_references",
    "open_references_cuda",
    "open_vision",
]


TORCH_FOLDER = "torch"
"""Where a bundle that has a torch form keeps it: a checkpoint folder."""


def checkpoint_of(bundle: Bundle, settings: StageSettings) -> Checkpoint:
    """The checkpoint that ``bundle`` was exported from; the three stages share one.

    ``settings.checkpoint`` where given, else the bundle's own torch form, else the bundled one with the digest of its provenance.

    Raises:
        SetupError: it is not here, or damaged.
        BundleError: the one given is another.
    """
    made_from = bundle.manifest.provenance.get("checkpoint", {})
    digest = made_from.get("sha256")
    own = bundle.folder / TORCH_FOLDER
    place = settings.checkpoint or (own if own.is_dir() else None)
    if place is not None:
        found = sha256_of(place / WEIGHTS) if (place / WEIGHTS).is_file() else None
        if found is not None and found != digest:  # what is missing is said by load_checkpoint
            raise BundleError(
                f"{place} has weights with sha256 {found[:12]}..., {bundle.identity} was exported from "
                f"{str(digest)[:12]}...: give the checkpoint that it was exported from, or export the bundle again"
            )
        return _read(place.resolve(), found)
    for weights in sorted(BUNDLED.glob(f"*/{WEIGHTS}")):
        if sha256_of(weights) == digest:
            return _read(weights.parent, digest)
    raise SetupError(
        f"the backend torch needs the checkpoint that {bundle.identity} was exported from ({made_from.get('name', 'not named')}, sha256 "
        f"{str(digest)[:12]}...), and it is none of the bundled ones: name its folder with checkpoint (--checkpoint)"
    )


@lru_cache(maxsize=2)
def _read(folder: Path, digest: str | None) -> Checkpoint:
    """``digest`` is part of the key, so that other weights in the same folder are read again."""
    return load_checkpoint(folder)


# Stage 1 by torch: views to features.


class TorchVision:
    """Stage 1: views to features."""

    def __init__(self, model: AgVas, device: str = "cpu") -> None:
        self._model, self._device = model, device

    @torch.inference_mode()
    def __call__(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Features:
        """uint8 RGB [B, Hs, Ws, 3] and [B, Hp, Wp, 3] to features."""
        views = (torch.from_numpy(view).to(self._device) for view in (semantic_image, pixel_image))
        seen = self._model.see(*views)
        decoder = {name: tensor.cpu().numpy() for name, tensor in seen.pixel._asdict().items() if tensor is not None}
        return Features(seen.f_s.cpu().numpy(), seen.f_align.cpu().numpy(), decoder)


def open_vision(bundle: Bundle, settings: StageSettings) -> TorchVision:
    """Raises SetupError or BundleError, as ``checkpoint_of``."""
    return TorchVision(checkpoint_of(bundle, settings).model)


# Stage 2 by torch: features and words to the anchors' states, by the functions that training and evaluation use.


class TorchLmm:
    """The checkpoint's language model. An answer that was generated is read once more as a whole, as in training."""

    def __init__(self, bundle: Bundle, model: AgVas, device: str = "cpu") -> None:
        self._prompt = bundle.manifest.prompt
        self._tokenizer = PromptTokenizer(bundle)
        self._model, self._device = model, device

    @torch.inference_mode()
    def __call__(self, features: Features, instruction: str, mode: Mode = Mode.DIRECT, history: Sequence[Turn] = ()) -> Reply:
        """Direct mode: one prefill with the fixed answer appended. The others: the most likely word again and again.

        Raises:
            UsageError: the instruction is longer than the bundle takes, or has control tokens in it.
        """
        words = self._tokenizer.words(instruction, mode, tuple(history))
        f_s, f_align = (torch.from_numpy(np.asarray(part)).to(self._device) for part in (features.f_s, features.f_align))
        if mode is Mode.DIRECT:
            return self._prefill(f_s, f_align, words)
        rows = [self._generate(f_s[row, None], f_align[row, None], words) for row in range(len(f_s))]
        return Reply(
            np.concatenate([row.anchor_states for row in rows]),
            np.concatenate([row.accept for row in rows]),
            np.concatenate([row.found for row in rows]),
            [answer for row in rows for answer in row.answers or ()],
        )

    def _prefill(self, f_s: Tensor, f_align: Tensor, words: Words) -> Reply:
        ids = self._ids(f_s, f_align, words)  # [B, L]
        skipped = ids.shape[1] - words.ids_after.shape[1]
        hidden, _ = self._model.lmm(self._model.lmm.embed(ids, f_s, f_align), with_logits=False)
        positions = torch.from_numpy(words.anchor_positions).to(ids.device).expand(len(ids), -1) + skipped
        anchors = self._model.lmm.anchor_states(hidden, positions)  # [B, 3, D]
        logits = self._model.lmm.head(hidden[:, words.logit_positions.item() + skipped])  # [B, V], of the answer's first word
        answers, refuses = (logits[:, id].double() for id in (self._tokenizer.first_of_answer, self._tokenizer.first_of_refusal))
        accept = (answers - refuses).sigmoid().float()
        return Reply(anchors.float().cpu().numpy(), accept.cpu().numpy(), np.ones(len(ids), bool))

    def _generate(self, f_s: Tensor, f_align: Tensor, words: Words) -> Reply:
        """One row, until the end token or ``max_new_tokens``."""
        ids = self._ids(f_s, f_align, words)  # [1, L]
        vision = Vision(f_s, f_align, PixelFeatures(f_s, None))  # the pixel features are not looked at
        said = greedy_generate(self._model, vision, ids, self._prompt.end_id, self._prompt.max_new_tokens)
        whole = torch.cat([ids, ids.new_tensor([said])], 1)  # [1, L + answer]
        hidden, _ = self._model.lmm(self._model.lmm.embed(whole, f_s, f_align), with_logits=False)
        positions, found = find_anchors(whole, self._model.lmm.anchor_ids, ids.new_tensor([ids.shape[1]]))
        anchors = self._model.lmm.anchor_states(hidden, positions) * found[:, None, None]  # [1, 3, D]
        there = found.cpu().numpy()
        return Reply(anchors.float().cpu().numpy(), there.astype(np.float32), there, [self._tokenizer.text(said)])

    def _ids(self, f_s: Tensor, f_align: Tensor, words: Words) -> Tensor:
        """Words around 2N image tokens, [B, L]."""
        image = np.full((1, f_s.shape[1] + f_align.shape[1]), self._prompt.image_id, np.int64)
        row = torch.from_numpy(np.concatenate([words.ids_before, image, words.ids_after], 1))
        return row.to(f_s.device).expand(len(f_s), -1)


def open_lmm(bundle: Bundle, settings: StageSettings) -> TorchLmm:
    """Raises SetupError or BundleError, as ``checkpoint_of``."""
    return TorchLmm(bundle, checkpoint_of(bundle, settings).model)


# Stage 3 by torch: anchor states and pixel features to mask logits.


Float = NDArray[np.float32]


class TorchDecoder:
    """Stage 3: anchor states and pixel features to mask logits."""

    def __init__(self, model: AgVas, device: str = "cpu") -> None:
        self._model, self._device = model, device

    @torch.inference_mode()
    def __call__(self, anchor_states: Float, features: Features) -> Float:
        """Logits float32 [B, 3, Hm, Wm] in anchor order, covering the whole pixel view."""
        given = {name: torch.from_numpy(np.asarray(value)).to(self._device) for name, value in features.decoder.items()}
        pixel = PixelFeatures(given["f_p"], given.get("f_detail"))
        logits = self._model.decode(torch.from_numpy(anchor_states).to(self._device), pixel)
        return logits.float().cpu().numpy()


def open_decoder(bundle: Bundle, settings: StageSettings) -> TorchDecoder:
    """Raises SetupError or BundleError, as ``checkpoint_of``."""
    return TorchDecoder(checkpoint_of(bundle, settings).model)


# Reference distances.


class TorchReferences:
    """``ReferenceStage`` by torch.

    Raises:
        BundleError: the bundle has no references graph, or it was exported from another encoder than the one that is here.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        self.spec = references_of(bundle)
        self._device = device
        if self.spec.view is None:
            shapes = {spec.name: spec.shape for spec in self.spec.inputs}
            channels = [int(shapes[name][1]) for name in self.spec.features]
            strides = [TRUNK_STRIDES.get(name, self.spec.stride) for name in self.spec.features]
            cells: EncoderCells | FeatureCells = FeatureCells(channels, strides)
        else:
            made_from = bundle.manifest.provenance.get("references", {}).get("sha256")
            here = sha256_of(TRUNK) if TRUNK.is_file() else "none"
            if made_from != here:
                raise BundleError(
                    f"the references graph of {bundle.identity} was made from the encoder {str(made_from)[:12]}..., and this agvas "
                    f"has {here[:12]}...: use the backend onnx for it, or export the bundle again"
                )
            cells = EncoderCells(load_trunk())
        # One band: it is the CPU's cache alone that several are for, and any height must divide into them.
        self.module = ReferenceDistance(cells, pieces=1).eval().to(device)

    def embed(self, image: NDArray[np.uint8], features: Features | None = None) -> Float:
        """See ``ReferenceStage``."""
        return self(image, empty_bank(self.spec), features).embedding

    @torch.inference_mode()
    def __call__(
        self, image: NDArray[np.uint8], bank: Float, features: Features | None = None, *, colour_weight: float = 1.0
    ) -> ReferenceDistances:
        """See ``ReferenceStage``."""
        inputs = reference_inputs(self.spec, image, bank, features, colour_weight)
        given = {name: torch.from_numpy(np.asarray(value)).to(self._device) for name, value in inputs.items()}
        view = given["reference_image"] if "reference_image" in given else given["pixel_image"]
        found = self.module(view, given["bank"], given["colour_weight"], [given[name] for name in self.spec.features])
        arrays: list[Any] = [tensor.float().cpu().numpy() for tensor in found]
        return ReferenceDistances(*arrays)


def open_references(bundle: Bundle, settings: StageSettings) -> TorchReferences:
    """Raises BundleError as ``TorchReferences``."""
    return TorchReferences(bundle)


def open_references_cuda(bundle: Bundle, settings: StageSettings) -> TorchReferences:
    """On an NVIDIA GPU.

    Raises:
        SetupError: torch finds none.
        BundleError: as ``TorchReferences``.
    """
    if not torch.cuda.is_available():
        raise SetupError("torch finds no NVIDIA GPU: install torch with CUDA and a driver, or choose the backend onnx")
    return TorchReferences(bundle, "cuda")


# A product's fitted head.


class TorchHead:
    """``HeadStage`` by torch, with the weights of the product's graph.

    Raises:
        BundleError: the product has no head, or its graph has other weights.
        ModuleNotFoundError: there is no ``onnx`` to read the graph with.
    """

    def __init__(self, bundle: Bundle) -> None:
        import onnx
        from onnx import numpy_helper

        path = bundle.folder / head_of(bundle).file
        weights = {each.name: torch.tensor(numpy_helper.to_array(each)) for each in onnx.load(path).graph.initializer}
        module = ReferenceHead.like({name: value for name, value in weights.items() if "." in name})
        if module is None:
            raise BundleError(
                f"{path} has other weights than a head of this agvas: use the backend onnx, or fit the product again"
            )
        self.module = module.eval()

    @torch.inference_mode()
    def __call__(self, embedding: NDArray[np.float32], rarities: NDArray[np.float32]) -> NDArray[np.float32]:
        """See ``HeadStage``."""
        return np.asarray(self.module(torch.tensor(embedding), torch.tensor(rarities)).numpy())


def open_head(bundle: Bundle, settings: StageSettings) -> TorchHead:
    """Raises BundleError as ``TorchHead``."""
    return TorchHead(bundle)
