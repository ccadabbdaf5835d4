"""What the segmenter opens by the names ``torch-cuda`` and ``torch-cuda-fp8``."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.decision import OperatingPoint
from agvas_core.contract.errors import UsageError
from agvas_core.contract.prompts import Mode
from agvas_runtime.bundle import Bundle
from agvas_runtime.stages.open import StageSettings
from agvas_runtime.stages.prompt_tokenizer import PromptTokenizer
from agvas_runtime.stages.protocol import Features, FramePlan, Pending, PendingFrame, Reply, Turn
from agvas_runtime.stages.torch_cuda.device import Precision, open_device
from agvas_runtime.stages.torch_cuda.engine import Engine, Views
from agvas_runtime.stages.torch_cuda.probe import limits, stage_times
from agvas_runtime.stages.torch_reference import TorchLmm, TorchReferences, checkpoint_of
from agvas_runtime.stages.whole_frame import can_see_references, kernels, packed_rule

__all__ = [
    "CudaDecoder",
    "CudaLmm",
    "CudaVision",
    "open_decoder",
    "open_decoder_fp8",
    "open_lmm",
    "open_lmm_fp8",
    "open_vision",
    "open_vision_fp8",
]

Float = NDArray[np.float32]


class CudaVision:
    """Stage 1; and where the other two are on the same engine, all three."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Features:
        """uint8 RGB [B, Hs, Ws, 3] and [B, Hp, Wp, 3] to features."""
        return self.engine.see(semantic_image, pixel_image)

    def joined(self, lmm: object, decoder: object) -> "CudaDirect | None":
        """All three at once, or None where another engine has one of them."""
        mine = isinstance(lmm, CudaLmm) and isinstance(decoder, CudaDecoder) and lmm.engine is decoder.engine is self.engine
        return CudaDirect(lmm) if mine and isinstance(lmm, CudaLmm) else None

    def framed(self, lmm: object, decoder: object) -> "CudaFrames | None":
        """See ``FramedVision``."""
        joined, core = self.joined(lmm, decoder), kernels()
        return CudaFrames(core, joined.lmm) if joined is not None and core is not None else None

    def times(self, lmm: object, views: Views, instruction: str, count: int) -> dict[str, list[float]]:
        """See ``ProbedVision``."""
        assert isinstance(lmm, CudaLmm), "joined() says whose the language model is"
        return stage_times(self.engine, views, lmm.tokenizer.words(instruction, Mode.DIRECT, ()), count)

    def limits(self) -> tuple[str, float, float]:
        """See ``ProbedVision``."""
        return limits(self.engine)


class CudaLmm:
    """Stage 2. Direct mode is one prefill by the engine; the others decode word by word, as the reference does, on the same weights."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self.engine, self.tokenizer = engine, PromptTokenizer(bundle)
        self._spoken = TorchLmm(bundle, engine.model, str(engine.device))

    def __call__(self, features: Features, instruction: str, mode: Mode = Mode.DIRECT, history: Sequence[Turn] = ()) -> Reply:
        """As ``LmmStage``.

        Raises:
            UsageError: an instruction that the bundle does not take, or words asked of a language model in float8.
        """
        if mode is Mode.DIRECT:
            anchors, accept = self.engine.ask(features, self.tokenizer.words(instruction, mode, tuple(history)))
            return Reply(anchors, accept, np.ones(len(accept), bool))
        if self.engine.precision == "fp8":
            raise UsageError(f"torch-cuda-fp8 answers in direct mode only, not {mode}: choose torch-cuda")
        with self.engine.turn("the language model"):
            return self._spoken(features, instruction, mode, history)


class CudaDecoder:
    """Stage 3."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, anchor_states: Float, features: Features) -> Float:
        """Logits float32 [B, 3, Hm, Wm] in anchor order, covering the whole pixel view."""
        return self.engine.decode(anchor_states, features.decoder)


class CudaDirect:
    """Direct mode as one launch."""

    def __init__(self, lmm: CudaLmm) -> None:
        self.lmm = lmm

    def __call__(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8], instruction: str) -> Pending:
        """Begins, and returns at once; arguments and errors are those of the three stages."""
        return self.lmm.engine.launch((semantic_image, pixel_image), self.lmm.tokenizer.words(instruction, Mode.DIRECT, ()))


class CudaFrames:
    """A whole frame as one launch."""

    def __init__(self, core: ModuleType, lmm: CudaLmm) -> None:
        self._core, self._lmm = core, lmm

    def __call__(self, image: NDArray[np.uint8], plan: FramePlan, instruction: str, point: OperatingPoint) -> PendingFrame | None:
        """See ``FrameStage``."""
        if not can_see_references(plan, TorchReferences):
            return None
        rule = packed_rule(point, image.shape[0] * image.shape[1])
        words = self._lmm.tokenizer.words(instruction, Mode.DIRECT, ())
        return self._lmm.engine.launch_frame(self._core, image, plan, words, rule)


_ENGINES: WeakValueDictionary[tuple[str, Path | None, Precision], Engine] = WeakValueDictionary()
"""Three stages share one, and the GPU's memory is free again when the last of them is gone."""


def _engine(bundle: Bundle, settings: StageSettings, precision: Precision) -> Engine:
    key = bundle.identity, settings.checkpoint, precision
    if (engine := _ENGINES.get(key)) is None:
        device = open_device(precision)  # before gigabytes are read
        tokenizer = PromptTokenizer(bundle)
        first = tokenizer.first_of_answer, tokenizer.first_of_refusal
        engine = _ENGINES[key] = Engine(checkpoint_of(bundle, settings).model, first, device=device, precision=precision)
    return engine


def open_vision(bundle: Bundle, settings: StageSettings) -> CudaVision:
    """Raises SetupError where there is no such GPU or checkpoint, BundleError where it is another one's."""
    return CudaVision(_engine(bundle, settings, "bf16"))


def open_lmm(bundle: Bundle, settings: StageSettings) -> CudaLmm:
    """As ``open_vision``."""
    return CudaLmm(bundle, _engine(bundle, settings, "bf16"))


def open_decoder(bundle: Bundle, settings: StageSettings) -> CudaDecoder:
    """As ``open_vision``."""
    return CudaDecoder(_engine(bundle, settings, "bf16"))


def open_vision_fp8(bundle: Bundle, settings: StageSettings) -> CudaVision:
    """As ``open_vision``; the language model's products in float8."""
    return CudaVision(_engine(bundle, settings, "fp8"))


def open_lmm_fp8(bundle: Bundle, settings: StageSettings) -> CudaLmm:
    """As ``open_vision_fp8``."""
    return CudaLmm(bundle, _engine(bundle, settings, "fp8"))


def open_decoder_fp8(bundle: Bundle, settings: StageSettings) -> CudaDecoder:
    """As ``open_vision_fp8``."""
    return CudaDecoder(_engine(bundle, settings, "fp8"))
