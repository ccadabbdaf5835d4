"""The three stages on TensorRT. What vision gives lies on the GPU, where the other two take it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import BundleError, ImageError, UsageError
from agvas_core.contract.manifest import GraphSpec
from agvas_core.contract.prompts import Mode
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.onnx import read_prefill
from agvas_runtime.stages.open import StageSettings
from agvas_runtime.stages.prompt_tokenizer import PromptTokenizer, Words
from agvas_runtime.stages.protocol import Features, Reply, Turn
from agvas_runtime.stages.trt.engine import TrtEngine, open_engine_of
from agvas_runtime.stages.trt.frame import Engines, TrtFrames
from agvas_runtime.stages.whole_frame import kernels

__all__ = ["TrtDecoder", "TrtLmm", "TrtVision", "open_decoder", "open_lmm", "open_vision"]

Float = NDArray[np.float32]


class TrtVision:
    """Stage 1: views to features, which stay on the GPU. Views may lie there, too (``DeviceArray``)."""

    def __init__(self, engine: TrtEngine) -> None:
        self.engine = engine
        self._framed: tuple[object, object, TrtFrames | None] | None = None
        self._decoder = [name for name in engine.output_names if name not in ("f_s", "f_align")]

    def __call__(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Features:
        """uint8 RGB [B, Hs, Ws, 3] and [B, Hp, Wp, 3] to features."""
        given = {"semantic_image": semantic_image, "pixel_image": pixel_image}
        found: dict[str, Any] = dict(self.engine.run(given, self.engine.output_names, on_gpu=True))
        return Features(found["f_s"], found["f_align"], {name: found[name] for name in self._decoder})

    def framed(self, lmm: object, decoder: object) -> TrtFrames | None:
        """See ``FramedVision``."""
        if self._framed is None or self._framed[0] is not lmm or self._framed[1] is not decoder:
            self._framed = lmm, decoder, self._frames(lmm, decoder)
        return self._framed[2]

    def _frames(self, lmm: object, decoder: object) -> TrtFrames | None:
        core = kernels()
        if core is None or not isinstance(lmm, TrtLmm) or not isinstance(decoder, TrtDecoder):
            return None
        engines = Engines(self.engine, lmm.engine, decoder.engine)
        return TrtFrames(core, engines, lmm.tokenizer, lmm.empty_past) if engines.fit else None


class TrtLmm:
    """Stage 2 in direct mode: one prefill with the fixed answer appended. The cache that it fills is not read."""

    def __init__(self, engine: TrtEngine, bundle: Bundle, spec: GraphSpec) -> None:
        self.engine, self.tokenizer = engine, PromptTokenizer(bundle)
        (past,) = (one.shape for one in spec.inputs if one.name == "past_key_values")
        self._past = [0 if isinstance(axis, str) else axis for axis in past]  # [layers, 2, batch, heads, 0, head_dim]

    def empty_past(self, batch: int) -> tuple[int, ...]:
        """Shape of a cache with nothing in it, [layers, 2, B, heads, 0, head_dim]."""
        return *self._past[:2], batch, *self._past[3:]

    def __call__(self, features: Features, instruction: str, mode: Mode = Mode.DIRECT, history: Sequence[Turn] = ()) -> Reply:
        """As ``LmmStage``.

        Raises:
            UsageError: another mode; an instruction that is longer than the bundle takes, or has control tokens in it.
        """
        if mode is not Mode.DIRECT:
            raise UsageError(
                f"mode {mode} speaks, and the lmm engine answers in direct mode alone: choose --lmm onnx or vllm for it"
            )
        words = self.tokenizer.words(instruction, mode, tuple(history))
        batch = len(features.f_s)
        repeated = Words(*(np.repeat(ids, batch, axis=0) for ids in words))
        past = np.zeros(self.empty_past(batch), np.float32)
        given = {"f_s": features.f_s, "f_align": features.f_align, **repeated._asdict(), "past_key_values": past}
        found = self.engine.run(given, ("anchor_states", "text_logits"))
        logits = np.asarray(found["text_logits"])
        if not np.isfinite(logits).all():
            raise ImageError(
                "the language model gave logits that are NaN or infinite on this image: build the lmm engine in a safer precision, or try "
                "another prompt"
            )
        return read_prefill(self.tokenizer, np.asarray(found["anchor_states"]), logits)


class TrtDecoder:
    """Stage 3: anchor states and pixel features to mask logits."""

    def __init__(self, engine: TrtEngine) -> None:
        self.engine = engine

    def __call__(self, anchor_states: Float, features: Features) -> Float:
        """Logits float32 [B, 3, Hm, Wm] in anchor order, covering the whole pixel view."""
        given = {"anchor_states": anchor_states, **features.decoder}
        found = self.engine.run({name: given[name] for name in self.engine.input_names}, ("logits",))
        return np.asarray(found["logits"], np.float32)


def open_vision(bundle: Bundle, settings: StageSettings) -> TrtVision:
    """Raises SetupError: no GPU, no TensorRT, no engine that is for both, or too little memory."""
    return TrtVision(open_engine_of(bundle, "vision", bundle.manifest.vision, settings))


def open_lmm(bundle: Bundle, settings: StageSettings) -> TrtLmm:
    """As ``open_vision``; BundleError where the bundle has no graph of its language model."""
    spec = bundle.manifest.lmm
    if spec is None:
        raise BundleError(
            f"{bundle.identity} has no ONNX graph of its language model, so no engine of it: choose --lmm vllm or torch"
        )
    return TrtLmm(open_engine_of(bundle, "lmm", spec, settings), bundle, spec)


def open_decoder(bundle: Bundle, settings: StageSettings) -> TrtDecoder:
    """As ``open_vision``."""
    return TrtDecoder(open_engine_of(bundle, "decoder", bundle.manifest.decoder, settings))
