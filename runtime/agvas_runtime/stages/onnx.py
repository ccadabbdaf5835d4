"""One ONNX graph on ONNX Runtime.

A session may be run from several threads at once.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from agvas_core.contract.errors import BundleError, ImageError, SetupError
from agvas_core.contract.manifest import GraphSpec, TensorSpec
from agvas_core.contract.prompts import Mode
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.open import StageSettings
from agvas_runtime.stages.prompt_tokenizer import PromptTokenizer, Words
from agvas_runtime.stages.protocol import Features, ReferenceDistances, Reply, Turn
from agvas_runtime.stages.references import empty_bank, head_of, reference_inputs, references_of

__all__ = [
    "CPU",
    "CUDA",
    "OnnxDecoder",
    "OnnxGraph",
    "OnnxLmm",
    "OnnxReferences",
    "OnnxVision",
    "open_decoder",
    "open_decoder_cuda",
    "open_head",
    "open_lmm",
    "open_lmm_cuda",
    "open_references",
    "open_references_cuda",
    "open_vision",
    "open_vision_cuda",
    "read_prefill",
]


CPU = ("CPUExecutionProvider",)
CUDA = ("CUDAExecutionProvider",)
_UNREADABLE = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)
_FAILED = (ort_state.Fail, ort_state.RuntimeException)  # not InvalidArgument: a wrong shape or dtype is a bug of ours


class OnnxGraph:
    """One graph of a bundle, opened and compared with the manifest.

    Args:
        threads: CPU threads; all cores where None.
        providers: ONNX Runtime's execution providers, the preferred one first.

    Raises:
        SetupError: this onnxruntime lacks a provider.
        BundleError: not a graph, or not the one that the manifest describes.
    """

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
        # ONNX Runtime goes on without a provider that it cannot start, on the CPU; who asked for a GPU would never learn of it.
        if lost := [name for name in providers if name not in self.session.get_providers()]:
            raise SetupError(
                f"onnxruntime {ort.__version__} cannot start {lost[0]} and would run {self.path.name} on the CPU: install the CUDA and cuDNN that "
                "it was built for, and a driver, or choose the backend onnx"
            )
        self._check("input", spec.inputs, self.session.get_inputs())
        self._check("output", spec.outputs, self.session.get_outputs())
        self.input_names = [tensor.name for tensor in spec.inputs]
        self.output_names = [tensor.name for tensor in spec.outputs]

    def run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name.

        Raises:
            ImageError: the graph fails on these inputs.
        """
        try:
            outputs = self.session.run(self.output_names, {name: np.asarray(value) for name, value in inputs.items()})
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

# Stage 1 on ONNX Runtime: views to features.


class OnnxVision:
    """Stage 1: views to features."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, providers: Sequence[str] = CPU) -> None:
        self.graph = OnnxGraph(bundle, bundle.manifest.vision, threads, providers)

    def __call__(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Features:
        """uint8 RGB [B, Hs, Ws, 3] and [B, Hp, Wp, 3] to features."""
        outputs = self.graph.run({"semantic_image": semantic_image, "pixel_image": pixel_image})
        return Features(outputs.pop("f_s"), outputs.pop("f_align"), outputs)


def open_vision(bundle: Bundle, settings: StageSettings) -> OnnxVision:
    """Raises SetupError or BundleError, as ``OnnxGraph``."""
    return OnnxVision(bundle, threads=settings.threads)


def open_vision_cuda(bundle: Bundle, settings: StageSettings) -> OnnxVision:
    """On an NVIDIA GPU or not at all; raises as ``open_vision``."""
    return OnnxVision(bundle, threads=settings.threads, providers=CUDA)


# Stage 3 on ONNX Runtime: anchor states and pixel features to mask logits.


Float = NDArray[np.float32]


class OnnxDecoder:
    """Stage 3: anchor states and pixel features to mask logits."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, providers: Sequence[str] = CPU) -> None:
        self.graph = OnnxGraph(bundle, bundle.manifest.decoder, threads, providers)

    def __call__(self, anchor_states: Float, features: Features) -> Float:
        """Logits float32 [B, 3, Hm, Wm] in anchor order, covering the whole pixel view."""
        given = {"anchor_states": anchor_states, **features.decoder}
        outputs = self.graph.run({name: given[name] for name in self.graph.input_names})
        return np.asarray(outputs["logits"], np.float32)


def open_decoder(bundle: Bundle, settings: StageSettings) -> OnnxDecoder:
    """Raises SetupError or BundleError, as ``OnnxGraph``."""
    return OnnxDecoder(bundle, threads=settings.threads)


def open_decoder_cuda(bundle: Bundle, settings: StageSettings) -> OnnxDecoder:
    """On an NVIDIA GPU or not at all; raises as ``open_decoder``."""
    return OnnxDecoder(bundle, threads=settings.threads, providers=CUDA)


# Direct mode's answer, read off one prefill.


def read_prefill(tokenizer: PromptTokenizer, anchor_states: Float, text_logits: Float) -> Reply:
    """States [B, 3, D] and logits [B, 1, V] of the answer's first word to a reply.

    Its own refusal is read without decoding: how likely the first word of the answer is against that of the refusal.
    """
    logits = text_logits[:, 0].astype(np.float64)  # [B, V]
    refuses = logits[:, tokenizer.first_of_refusal] - logits[:, tokenizer.first_of_answer]
    accept = 1.0 / (1.0 + np.exp(np.clip(refuses, -80.0, 80.0)))
    return Reply(anchor_states, accept.astype(np.float32), np.ones(len(anchor_states), bool))


# Stage 2 on ONNX Runtime: features and words to the anchors' states, in one prefill or word by word with a cache.


class Pass(NamedTuple):
    """What the graph gives."""

    anchor_states: Float
    """[B, 3, D]."""
    text_logits: Float
    """[B, K, V]."""
    present_key_values: Float
    """[layers, 2, B, heads, P, head_dim]."""


class OnnxLmm:
    """A bundle's language model. One graph serves the prefill and each step of decoding."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, providers: Sequence[str] = CPU) -> None:
        graph = bundle.manifest.lmm
        if graph is None:
            raise BundleError(
                f"{bundle.identity} has no ONNX graph of its language model: choose another backend (--lmm vllm), or export it with "
                "--lmm onnx among its forms"
            )
        self.graph = OnnxGraph(bundle, graph, threads, providers)
        self._prompt, self._anchor_ids = bundle.manifest.prompt, bundle.manifest.anchor_ids
        self._tokenizer = PromptTokenizer(bundle)
        self.words = self._tokenizer.words
        (past,) = (spec.shape for spec in graph.inputs if spec.name == "past_key_values")
        layers, _, _, heads, _, head_dim = past
        if not isinstance(layers, int) or not isinstance(heads, int) or not isinstance(head_dim, int):
            raise BundleError(
                f"past_key_values has the shape {list(past)} in {self.graph.path.name}; layers, heads and head_dim must be "
                "numbers: export the bundle again"
            )
        self._layers, self._heads, self._head_dim = layers, heads, head_dim
        self._tell: Callable[[str], None] | None = None

    def telling(self, tell: Callable[[str], None]) -> "OnnxLmm":
        """The same language model on the same session; ``tell`` is given each piece of an answer as it is said."""
        other = copy.copy(self)
        other._tell = tell
        return other

    def __call__(self, features: Features, instruction: str, mode: Mode = Mode.DIRECT, history: Sequence[Turn] = ()) -> Reply:
        """Direct mode: one prefill with the fixed answer appended. The others: the most likely word again and again.

        Raises:
            UsageError: the instruction is longer than the bundle takes, or has control tokens in it.
        """
        words = self.words(instruction, mode, tuple(history))
        if mode is Mode.DIRECT:
            return self._prefill(features, words)
        rows = [
            self._generate(Features(features.f_s[row, None], features.f_align[row, None], {}), words)
            for row in range(len(features.f_s))
        ]
        return Reply(
            np.concatenate([row.anchor_states for row in rows]),
            np.concatenate([row.accept for row in rows]),
            np.concatenate([row.found for row in rows]),
            [answer for row in rows for answer in row.answers or ()],
        )

    def _prefill(self, features: Features, words: Words) -> Reply:
        batch = len(features.f_s)
        done = self._run(features, Words(*(np.repeat(ids, batch, axis=0) for ids in words)), self._no_past(batch))
        return read_prefill(self._tokenizer, done.anchor_states, done.text_logits)

    def _generate(self, features: Features, words: Words) -> Reply:
        """Greedy decoding of one row, until the end token or ``max_new_tokens``."""
        done = self._run(features, words, self._no_past(1))
        said: list[int] = []
        told = ""
        states: dict[int, Float] = {}  # anchor id -> [D]; the last occurrence counts
        nothing = Features(features.f_s[:, :0], features.f_align[:, :0], {})
        while len(said) < self._prompt.max_new_tokens:
            scores = done.text_logits[0, 0]  # [V]
            scores[self._prompt.image_id] = -np.inf  # stands for an image; it is never said
            said.append(int(scores.argmax()))
            if self._tell is not None:
                told += self._news(said, told)
            # An anchor's state comes with the step that reads it, so the last word is read too if it is one.
            if said[-1] == self._prompt.end_id or (len(said) == self._prompt.max_new_tokens and said[-1] not in self._anchor_ids):
                break
            done = self._run(nothing, _step(said[-1]), done.present_key_values)
            if said[-1] in self._anchor_ids:
                states[said[-1]] = done.anchor_states[0, 0]
        found = states.keys() == set(self._anchor_ids)
        blank = np.zeros(features.f_s.shape[2], np.float32)
        anchors = np.stack([states[id] if found else blank for id in self._anchor_ids])  # [3, D]
        return Reply(anchors[None], np.array([found], np.float32), np.array([found]), [self._tokenizer.text(said)])

    def _news(self, said: list[int], told: str) -> str:
        """Tells what the last word adds; half a letter, or one that changes those before it, waits for the next."""
        text = self._tokenizer.text(said)
        if not text.startswith(told) or text.endswith("\N{REPLACEMENT CHARACTER}") or self._tell is None or text == told:
            return ""
        self._tell(text[len(told) :])
        return text[len(told) :]

    def _run(self, features: Features, words: Words, past: Float) -> Pass:
        outputs = self.graph.run({"f_s": features.f_s, "f_align": features.f_align, **words._asdict(), "past_key_values": past})
        done = Pass(*(outputs[name] for name in Pass._fields))
        # No word would be the most likely one, and an answer without anchors would read as a good part.
        if not np.isfinite(done.text_logits).all():
            raise ImageError(
                "the language model gave logits that are NaN or infinite on this image: try another prompt, or report image and bundle"
            )
        return done

    def _no_past(self, batch: int) -> Float:
        return np.zeros((self._layers, 2, batch, self._heads, 0, self._head_dim), np.float32)


def _step(id: int) -> Words:
    """One word, read at its own position."""
    zero = np.zeros((1, 1), np.int64)
    return Words(zero[:, :0], np.array([[id]], np.int64), np.zeros((1, 3), np.int64), zero)


def open_lmm(bundle: Bundle, settings: StageSettings) -> OnnxLmm:
    """Raises SetupError or BundleError, as ``OnnxGraph`` and ``PromptTokenizer``."""
    return OnnxLmm(bundle, threads=settings.threads)


def open_lmm_cuda(bundle: Bundle, settings: StageSettings) -> OnnxLmm:
    """On an NVIDIA GPU or not at all; raises as ``open_lmm``."""
    return OnnxLmm(bundle, threads=settings.threads, providers=CUDA)


# Reference distances.


class OnnxReferences:
    """``ReferenceStage`` on ONNX Runtime."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, providers: Sequence[str] = CPU) -> None:
        self.spec = references_of(bundle)
        self.graph = OnnxGraph(bundle, self.spec, threads, providers)

    def embed(self, image: NDArray[np.uint8], features: Features | None = None) -> Float:
        """See ``ReferenceStage``."""
        return self(image, empty_bank(self.spec), features).embedding

    def __call__(
        self, image: NDArray[np.uint8], bank: Float, features: Features | None = None, *, colour_weight: float = 1.0
    ) -> ReferenceDistances:
        """See ``ReferenceStage``."""
        found = self.graph.run(reference_inputs(self.spec, image, bank, features, colour_weight))
        return ReferenceDistances(found["embedding"], found["deep"], found["joint"])


def open_references(bundle: Bundle, settings: StageSettings) -> OnnxReferences:
    """Raises BundleError where the bundle has no references graph; SetupError or BundleError, as ``OnnxGraph``."""
    return OnnxReferences(bundle, threads=settings.threads)


def open_references_cuda(bundle: Bundle, settings: StageSettings) -> OnnxReferences:
    """On an NVIDIA GPU or not at all; raises as ``open_references``."""
    return OnnxReferences(bundle, threads=settings.threads, providers=CUDA)


# A product's fitted head.


class OnnxHead:
    """``HeadStage`` on ONNX Runtime."""

    def __init__(self, bundle: Bundle, *, threads: int | None = None, providers: Sequence[str] = CPU) -> None:
        self.graph = OnnxGraph(bundle, head_of(bundle), threads, providers)

    def __call__(self, embedding: Float, rarities: Float) -> Float:
        """See ``HeadStage``."""
        return np.asarray(self.graph.run({"embedding": embedding, "rarities": rarities})["logit"], np.float32)


def open_head(bundle: Bundle, settings: StageSettings) -> OnnxHead:
    """Raises BundleError where the product has none, and as ``OnnxGraph``."""
    return OnnxHead(bundle, threads=settings.threads)
