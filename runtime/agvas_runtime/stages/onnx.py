"""The three stages on ONNX Runtime.

Each class opens one graph of a bundle and compares it with the manifest before its first run. A session may be run from several
threads at once; the tokenizer's cache is safe under the interpreter lock.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
from tokenizers import Tokenizer

from agvas_core.contract.anchors import ANCHOR_TOKENS
from agvas_core.contract.errors import BundleError, ImageError, SetupError, UsageError
from agvas_core.contract.manifest import GraphSpec, TensorSpec
from agvas_core.contract.prompts import strip_control_tokens
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.protocol import Features

__all__ = ["CPU", "OnnxDecoder", "OnnxLmm", "OnnxVision"]

Float = NDArray[np.float32]

CPU = ("CPUExecutionProvider",)
_CACHED_INSTRUCTIONS = 64
_UNREADABLE = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)
_FAILED = (ort_state.Fail, ort_state.RuntimeException)  # not InvalidArgument: a wrong shape or dtype is a bug of ours


class OnnxVision:
    """Joint 1: views to features."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, providers: Sequence[str] = CPU) -> None:
        self._graph = _Graph(bundle, bundle.manifest.vision, threads, providers)

    def __call__(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Features:
        """uint8 RGB [B, Hs, Ws, 3] and [B, Hp, Wp, 3] to features."""
        outputs = self._graph.run({"semantic_image": semantic_image, "pixel_image": pixel_image})
        return Features(outputs.pop("f_s"), outputs.pop("f_align"), outputs)


class Words(NamedTuple):
    """An instruction as the LMM sees it, each with a batch axis of 1."""

    ids_before: NDArray[np.int64]
    ids_after: NDArray[np.int64]
    anchor_positions: NDArray[np.int64]


class OnnxLmm:
    """Joint 2: features and words to the three anchor states, in one prefill (direct mode)."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, providers: Sequence[str] = CPU) -> None:
        self._graph = _Graph(bundle, bundle.manifest.lmm, threads, providers)
        self._prompt = bundle.manifest.prompt
        self._anchor_ids = bundle.manifest.anchor_ids
        path = bundle.folder / self._prompt.tokenizer
        # tokenizers raises plain Exception for a file it cannot parse; the hash was right, so the exporter wrote a bad one.
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise BundleError(f"{path} is no tokenizer ({error}): export the bundle again") from error
        ids = tuple(self._tokenizer.token_to_id(token) for token in ANCHOR_TOKENS)
        if ids != self._anchor_ids:
            raise BundleError(f"{path} gives the anchors the ids {ids}, the manifest {self._anchor_ids}: export the bundle again")
        self._control = {id: token.content for id, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self.words = lru_cache(maxsize=_CACHED_INSTRUCTIONS)(self._encode)

    def __call__(self, features: Features, instruction: str) -> Float:
        """Anchor states [B, 3, D] in anchor order.

        Raises:
            UsageError: the instruction is longer than the bundle takes, or has control tokens in it.
        """
        batch = features.f_s.shape[0]
        said = {name: np.repeat(ids, batch, axis=0) for name, ids in self.words(instruction)._asdict().items()}
        outputs = self._graph.run({"f_s": features.f_s, "f_align": features.f_align, **said})
        states: Float = outputs["anchor_states"]
        return states

    def _encode(self, instruction: str) -> Words:
        # Stripped here too, so that no caller can put an anchor where the answer's anchors are looked for.
        clean = strip_control_tokens(instruction)[0]
        # A tokenizer may fold signs together, full-width brackets say, and so see tokens where the stripping saw none.
        for id in self._tokenizer.encode(clean, add_special_tokens=False).ids:
            if id in self._control:
                raise UsageError(
                    f"part of the prompt {clean!r} is read as the control token {self._control[id]}: write it otherwise"
                )
        before, after = self._prompt.chat.prompt(clean)
        ids_before = self._tokenizer.encode(before, add_special_tokens=False).ids
        ids_after = self._tokenizer.encode(after + self._prompt.answer, add_special_tokens=False).ids
        if (length := len(ids_before) + len(ids_after)) > self._prompt.max_tokens:
            raise UsageError(
                f"the prompt is {length} tokens long with what goes around it; this bundle takes {self._prompt.max_tokens}: shorten it"
            )
        try:
            positions = [len(ids_after) - 1 - ids_after[::-1].index(anchor) for anchor in self._anchor_ids]
        except ValueError:
            raise BundleError(f"the bundle's answer {self._prompt.answer!r} lacks an anchor: export the bundle again") from None
        ids_after = ids_after[: max(positions) + 1]  # nothing after the last anchor can reach it in a causal model
        return Words(*(np.array([ids], np.int64) for ids in (ids_before, ids_after, positions)))


class OnnxDecoder:
    """Joint 3: anchor states and pixel features to mask logits."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, providers: Sequence[str] = CPU) -> None:
        self._graph = _Graph(bundle, bundle.manifest.decoder, threads, providers)

    def __call__(self, anchor_states: Float, features: Features) -> Float:
        """Logits float32 [B, 3, Hm, Wm] in anchor order, covering the whole pixel view."""
        given = {"anchor_states": anchor_states, **features.decoder}
        outputs = self._graph.run({name: given[name] for name in self._graph.input_names})
        return np.asarray(outputs["logits"], np.float32)


class _Graph:
    """One session, checked against the manifest."""

    def __init__(self, bundle: Bundle, spec: GraphSpec, threads: int | None, providers: Sequence[str]) -> None:
        if missing := sorted(set(providers) - set(ort.get_available_providers())):
            raise SetupError(
                f"this onnxruntime has no {missing[0]} (it has {', '.join(ort.get_available_providers())}): pip install 'agvas[gpu]'"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 4  # nothing: warnings are for exporters, and what fails is in our own error
        options.intra_op_num_threads = threads or 0  # 0: as many as there are cores
        options.inter_op_num_threads = 1
        # Three sessions take turns: threads that keep spinning after a run would slow the next one down.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.path = bundle.folder / spec.file
        try:
            self.session = ort.InferenceSession(str(self.path), options, providers=list(providers))
        except _UNREADABLE as error:
            raise BundleError(
                f"{self.path} cannot be opened by onnxruntime {ort.__version__} ({error}): export the bundle again"
            ) from error
        self._check("input", spec.inputs, self.session.get_inputs())
        self._check("output", spec.outputs, self.session.get_outputs())
        self.input_names = [tensor.name for tensor in spec.inputs]
        self.output_names = [tensor.name for tensor in spec.outputs]

    def run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            outputs = self.session.run(self.output_names, inputs)
        except _FAILED as error:
            raise ImageError(
                f"{self.path.name} failed on this image ({' '.join(str(error).split())}): try a smaller image, or free memory"
            ) from error
        return dict(zip(self.output_names, outputs, strict=True))

    def _check(self, kind: str, specs: tuple[TensorSpec, ...], nodes: list[Any]) -> None:
        """A graph may be freer than its manifest (a name where that has a number), never other or narrower."""
        actual = {node.name: node for node in nodes}
        if actual.keys() != {spec.name for spec in specs}:
            raise self._differs(f"{kind}s", sorted(actual), sorted(spec.name for spec in specs))
        for spec in specs:
            node = actual[spec.name]
            if node.type != _ORT_TYPES[spec.dtype]:
                raise self._differs(spec.name, node.type, _ORT_TYPES[spec.dtype])
            fits = len(node.shape) == len(spec.shape) and all(
                there == said or not isinstance(there, int) for there, said in zip(node.shape, spec.shape, strict=True)
            )
            if not fits:
                raise self._differs(spec.name, list(node.shape), list(spec.shape))

    def _differs(self, what: str, graph: object, manifest: object) -> BundleError:
        return BundleError(
            f"{self.path}: {what} in the graph: {graph}, in the manifest: {manifest}; the two are from different exports: "
            "export the bundle again"
        )


_ORT_TYPES = {"uint8": "tensor(uint8)", "int64": "tensor(int64)", "float16": "tensor(float16)", "float32": "tensor(float)"}
