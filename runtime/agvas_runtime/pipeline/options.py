"""How a segmenter is opened and what it is asked: one object, from the command line to the segmenter.

    options = SegmentOptions(model="nano", threads=2, prompt="Segment the scratch.")
    segmenter = Segmenter.open(options)

Every default stands here and nowhere else: the commands run, line, batch, serve, profile, calibrate and the predictor of
``agvas eval`` build this object and hand it on whole. Light to import, so that a command's help can show the defaults.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypedDict

from agvas_core.contract.defaults import BALANCED, DEFAULT_BACKEND, DEFAULT_MODEL, MAX_PIXELS
from agvas_core.contract.errors import UsageError

if TYPE_CHECKING:
    from agvas_runtime.stages.open import StageSettings

__all__ = ["MAX_THREADS", "SegmentKeywords", "SegmentOptions", "check_threshold", "stage_backends"]

MAX_THREADS: Final = 1024  # ONNX Runtime starts them all when it opens a model; more than this is a typing error


@dataclass(frozen=True)
class SegmentOptions:
    """Everything that decides how a segmenter is opened and asked.

    Raises:
        UsageError: a value out of range, or two that exclude each other.
    """

    model: str | Path = DEFAULT_MODEL
    """A bundled name, the folder or zip of a bundle, or ``hf:org/name[@revision]`` of a model hub."""
    offline: bool = False
    """Takes a bundle of the hub from the cache, without a connection."""
    vision: str = DEFAULT_BACKEND
    """Backend of the image encoders (``stages.open.BACKENDS``)."""
    lmm: str = DEFAULT_BACKEND
    """Backend of the language model, or the address of a server."""
    decoder: str = DEFAULT_BACKEND
    """Backend of the mask decoder."""
    engines: Path | None = None
    """TensorRT: the store that ``agvas-export trt -o`` wrote to, if it is not the default one."""
    adapter: str | None = None
    """vLLM: the adapter to answer with; the folder's own if None."""
    lmm_folder: Path | None = None
    """vLLM in process: the folder of ``agvas-export vllm``, if it is not inside the bundle."""
    checkpoint: Path | None = None
    """Torch: the checkpoint that the bundle was exported from, if it is not a bundled one."""
    cuda_context: int | None = None
    """TensorRT: handle of the CUDA context to use, if it is not the GPU's own (``stages.trt.pycuda_interop``)."""
    threads: int | None = None
    """CPU threads per stage, and of the native core; all cores if None."""
    operating_point: str = BALANCED
    """One of the bundle's operating points by name; ``strict`` spares good parts."""
    threshold: float | None = None
    """A pixel is anomalous above this, 0..1, in place of the operating point's two thresholds; least area and gate stay."""
    prompt: str | None = None
    """What to look for; the mode's own instruction if None."""
    mode: str = "direct"
    """``direct``: the mask at once. ``describe``: words, then the mask. ``describe-plus``: the same, given how a good part looks.
    ``explain``: the mask, then why. All but the first speak word by word, and see the whole frame in one view."""
    normal_look: str | None = None
    """How a good part looks, for ``describe-plus``."""
    tiling: Literal["auto", "off"] = "auto"
    """``auto`` cuts frames into tiles that one view would shrink too much; ``off`` never does."""
    max_pixels: int = MAX_PIXELS
    """Images with more pixels get NO_VERDICT."""
    bits: int | None = None
    """Bits that 16-bit images use, 9 to 16; 16 if None. Used when files are read: a segmenter is given pixels."""

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise UsageError(f"threads is {self.threads}; 1 to {MAX_THREADS} are possible: leave it out to use all cores")
        if self.tiling not in ("auto", "off"):
            raise UsageError(f"tiling is {self.tiling!r}; it can be auto or off")
        if self.threshold is not None:
            if self.operating_point != BALANCED:
                raise UsageError(
                    f"threshold {self.threshold} and operating point {self.operating_point} both say what is anomalous: "
                    "leave one out"
                )
            check_threshold(self.threshold)

    @classmethod
    def of(cls, **given: Any) -> Self:
        """The options with these names; None stands for the default."""
        return cls(**{name: value for name, value in given.items() if value is not None})

    @property
    def backends(self) -> tuple[str, str, str]:
        """Of vision, language model and decoder."""
        return self.vision, self.lmm, self.decoder

    @property
    def stage_settings(self) -> "StageSettings":
        """What the backends get when they are opened."""
        from agvas_runtime.stages.open import StageSettings  # not light

        names = {field.name for field in fields(self)} & {field.name for field in fields(StageSettings)}
        return StageSettings(**{name: getattr(self, name) for name in names})


class SegmentKeywords(TypedDict, total=False):
    """The fields of ``SegmentOptions`` except ``model``, as keywords of ``Segmenter.load``."""

    offline: bool
    vision: str
    lmm: str
    decoder: str
    engines: Path | None
    adapter: str | None
    lmm_folder: Path | None
    checkpoint: Path | None
    cuda_context: int | None
    threads: int | None
    operating_point: str
    threshold: float | None
    prompt: str | None
    mode: str
    normal_look: str | None
    tiling: Literal["auto", "off"]
    max_pixels: int
    bits: int | None


def check_threshold(threshold: float) -> float:
    """The threshold itself, if scores can lie on both sides of it.

    Raises:
        UsageError: it is not between 0 and 1.
    """
    if not 0.0 < threshold < 1.0:
        raise UsageError(f"threshold is {threshold}; it lies between 0 and 1, both excluded")
    return threshold


# What users of other tools call the engines.
_OTHER_NAMES: Final = {"cuda": "ort-cuda", "gpu": "ort-cuda", "cpu": "onnx", "ort": "onnx", "tensorrt": "trt", "pytorch": "torch"}


class Backends(TypedDict):
    """The backend of each stage, as ``SegmentOptions`` names them."""

    vision: str
    lmm: str
    decoder: str


def stage_backends(backend: str, *, vision: str | None, lmm: str | None, decoder: str | None) -> Backends:
    """The backend of each stage: its own, or that of the option --backend.

    Raises:
        UsageError: a stage has no such backend as --backend says. What the stages' own options say is checked where it is opened.
    """
    own = {"vision": vision, "lmm": lmm, "decoder": decoder}
    open_stages = [stage for stage, name in own.items() if name is None]
    if backend != DEFAULT_BACKEND and open_stages:
        from agvas_core.contract.validation import nearest  # not light
        from agvas_runtime.stages.open import BACKENDS

        shared = [name for name in BACKENDS["vision"] if all(name in names for names in BACKENDS.values())]
        if any(backend not in BACKENDS[stage] for stage in open_stages):
            if "://" in backend or backend in BACKENDS["lmm"]:
                raise UsageError(f"--backend is {backend!r}, which runs the language model alone: say --lmm {backend}")
            meant = _OTHER_NAMES.get(backend.lower()) or nearest(backend, shared)
            hint = f"did you mean {meant}? " if meant else ""
            raise UsageError(f"--backend is {backend!r}: {hint}it can be {', '.join(shared)}")
    return {"vision": vision or backend, "lmm": lmm or backend, "decoder": decoder or backend}
