"""Joint 2 on ONNX Runtime: features and words to the anchors' states, in one prefill or word by word with a cache."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import BundleError, ImageError
from agvas_core.contract.prompts import Mode
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.onnx_graph import CPU, CUDA, OnnxGraph
from agvas_runtime.stages.prefill import read_prefill
from agvas_runtime.stages.prompt_tokenizer import PromptTokenizer, Words
from agvas_runtime.stages.protocol import Features, Reply, Turn
from agvas_runtime.stages.settings import StageSettings

__all__ = ["OnnxLmm", "open_lmm_cuda", "open_lmm"]

Float = NDArray[np.float32]


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
