"""The runtime as a predictor for ``agvas eval``, which finds it by its entry point (group ``agvas.predictors``).

predictor = open_predictor("nano")
score_map, mask, verdict, image_score, answer = predictor.predict(Path("part.png"))
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from agvas_core import __version__
from agvas_core.contract.backend import Arrays, Comparison, Judged, Stages
from agvas_core.contract.errors import ImageError, UnlikeError, UsageError
from agvas_core.contract.manifest import BANK
from agvas_core.contract.product import load_array
from agvas_core.contract.prompts import Mode
from agvas_runtime.bundle import Bundle, load_bundle
from agvas_runtime.images.frame import Frame
from agvas_runtime.images.read import read_image
from agvas_runtime.pipeline.options import SegmentOptions
from agvas_runtime.pipeline.references import Compared, ReferenceCells, Scales, grids, head_input
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.stages.onnx import OnnxVision
from agvas_runtime.stages.open import (
    BACKENDS,
    DEFAULT_BACKEND,
    HEAD_BACKENDS,
    REFERENCE_BACKENDS,
    open_head,
    open_references,
    open_stages,
)
from agvas_runtime.stages.protocol import DecoderStage, Features, LmmStage, Reply, Turn, VisionStage

__all__ = ["BundlePredictor", "Offered", "backend_names", "open_backend", "open_comparison", "open_predictor"]


class BundlePredictor:
    """A segmenter, one file at a time.

    Args:
        mode: how it answers; describe-plus takes its sentence from each call of ``predict``.
        generate: whether it answers by itself in direct mode too, where the fixed answer is appended otherwise: it may then refuse.
    """

    def __init__(
        self, segmenter: Segmenter, *, bits: int | None = None, mode: Mode = Mode.DIRECT, generate: bool = False
    ) -> None:
        self.segmenter, self._bits = segmenter, bits
        self._mode, self._prompt = mode, None
        if mode is Mode.DIRECT and generate:  # the other modes differ in their words and in that they generate
            self._mode, self._prompt = Mode.DESCRIBE, segmenter.prompt
        self.name = segmenter.bundle.manifest.name
        self.identity = segmenter.bundle.identity

    @property
    def operating_point(self) -> str:
        """What makes the masks, in words."""
        point = self.segmenter.point
        outlines = f"{self.segmenter.operating_point}: P > {point.threshold:g}"
        if point.image_share:
            return f"{outlines} where the image's score is above {point.seed_threshold:g}"
        return outlines if point.plain else f"{outlines}, a region counts from {point.seed_threshold:g}"

    def predict(
        self, path: Path, normal_look: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], str, float | None, str | None]:
        """Score map float32 [H, W] in 0..1 and mask bool [H, W] at the image's own resolution, the verdict, the image's score where that
        is not the highest pixel, as with a product, and the answer where one is generated.

        Args:
            normal_look: how a good part looks, for describe-plus.

        Raises:
            UnlikeError: the image is not of the product.
            ImageError: there is no verdict on this image.
        """
        image = read_image(path, max_pixels=self.segmenter.max_pixels, bits=self._bits)
        frame = Frame(name=str(path), index=0, image=image, path=path)
        result = self.segmenter.segment(frame, prompt=self._prompt, mode=self._mode, normal_look=normal_look)
        if result.score_map is None or result.mask is None:
            unlike = str(result.error).startswith(UnlikeError.START)
            raise (UnlikeError if unlike else ImageError)(f"{path}: {result.error}")
        highest = result.score is None or result.score == float(result.score_map.max())
        return result.score_map, result.mask, str(result.verdict), None if highest else result.score, result.answer

    def reply(
        self,
        image: NDArray[np.uint8],
        instruction: str | None = None,
        mode: str = "direct",
        zero_anchors: bool = False,
        normal_look: str | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], str | None, float]:
        """What the model makes of words: score map float32 [H, W], mask bool [H, W], its answer where it gave one, and acceptance 0..1.

        Args:
            image: RGB uint8 [H, W, 3].
            instruction: what to look for; the mode's own where None.
            mode: how the model answers (``Mode``).
            zero_anchors: gives the decoder zeros in place of the anchors' states: what is left is what the words do not give.
            normal_look: how a good part looks, for ``describe-plus``.

        Raises:
            ImageError: there is no verdict on this image.
            UsageError: an invalid instruction or mode.
        """
        segmenter = self.segmenter.with_lmm(_Silenced(self.segmenter.lmm)) if zero_anchors else self.segmenter
        result = segmenter.segment(
            Frame(name="image", index=0, image=image), prompt=instruction, mode=mode, normal_look=normal_look
        )
        if result.score_map is None or result.mask is None or result.accept is None:
            raise ImageError(str(result.error))
        return result.score_map, result.mask, result.answer, result.accept


class _Silenced:
    """A language model whose anchors carry nothing."""

    def __init__(self, lmm: LmmStage) -> None:
        self.lmm = lmm

    def __call__(self, features: Features, instruction: str, mode: Mode = Mode.DIRECT, history: Sequence[Turn] = ()) -> Reply:
        reply = self.lmm(features, instruction, mode, history)
        return reply._replace(anchor_states=np.zeros_like(reply.anchor_states))


def open_predictor(
    model: str | Path = "nano",
    *,
    bits: int | None = None,
    mode: str = "direct",
    generate: bool = False,
    alpha: float | None = None,
    **options: Any,
) -> BundlePredictor:
    """Opens a bundle, on ONNX Runtime where nothing else is named.

    Args:
        model: a bundled name, or the folder or zip of a bundle.
        mode, generate: see ``BundlePredictor``.
        alpha: share of P_seg in P (eq. 8), in place of the bundle's.
        options: the other fields of ``SegmentOptions`` (``pipeline.options``).

    Raises:
        UsageError: no such model, or an option that is unknown or out of range.
        BundleError: a bundle that is broken, foreign or too new.
    """
    if foreign := sorted(options.keys() - {field.name for field in fields(SegmentOptions)}):
        raise UsageError(f"a bundle is opened without {foreign[0]}: leave out --{foreign[0].replace('_', '-')}")
    segmenter = Segmenter.load(model, **options)
    if alpha is not None:
        segmenter = segmenter.with_alpha(alpha)
    return BundlePredictor(segmenter, bits=bits, mode=Mode(mode), generate=generate)


# The runtime's engines as others compare them (``agvas_core.contract.backend``), found by their entry points, group ``agvas.stages``.
#
# backend = open_backend(Path("runs/bundle"), "onnx")
# print(backend.judge(backend.read(Path("part.png")), "Please segment the anomalies in this image.").verdict)


Float = NDArray[np.float32]


class Offered:
    """Three stages of the runtime, whatever their engines, and the way of a frame through them.

    Args:
        device: what the engines compute on, in words.
        versions: of the packages that they come from.
    """

    def __init__(
        self,
        bundle: Bundle,
        vision: VisionStage,
        lmm: LmmStage,
        decoder: DecoderStage,
        *,
        device: str,
        versions: Mapping[str, str],
    ) -> None:
        self.device, self.versions = device, {"agvas": __version__, **versions}
        self._stages = vision, lmm, decoder
        self._segmenter = Segmenter(bundle, vision, lmm, decoder)
        self._bundle = bundle

    def see(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Arrays:
        """Stage 1."""
        f_s, f_align, decoder = self._stages[0](semantic_image, pixel_image)
        return {name: np.asarray(value) for name, value in {"f_s": f_s, "f_align": f_align, **decoder}.items()}

    def ask(self, features: Arrays, instruction: str) -> Arrays:
        """Stage 2, in direct mode."""
        reply = self._stages[1](_features(features), instruction, Mode.DIRECT)
        return {"anchor_states": reply.anchor_states, "accept": reply.accept}

    def decode(self, anchor_states: Float, features: Arrays) -> Float:
        """Stage 3."""
        return self._stages[2](anchor_states, _features(features))

    def read(self, path: Path) -> NDArray[np.uint8]:
        """A picture as RGB, as ``agvas-run`` reads it."""
        return read_image(path)

    def judge(self, image: NDArray[np.uint8], instruction: str, stages: Stages | None = None) -> Judged:
        """One frame at the bundle's balanced operating point, by ``stages`` where there are any."""
        segmenter = self._segmenter
        if stages is not None:
            segmenter = Segmenter(self._bundle, _Vision(stages), _Lmm(stages), _Decoder(stages))
        result = segmenter.segment(Frame(name="image", index=0, image=image), prompt=instruction)
        if result.score_map is None or result.mask is None or result.score is None:
            raise ImageError(str(result.error))
        return Judged(result.score_map, result.mask, str(result.verdict), result.score)


def backend_names() -> tuple[str, ...]:
    """Every backend that any of the three stages has, except torch, which is the reference, and one of vLLM's two: a process has room for one."""
    left_out = ("torch", "http", "vllm-direct")
    return tuple(dict.fromkeys(name for stage in BACKENDS.values() for name in stage if name not in left_out))


def open_backend(folder: Path, name: str) -> Offered:
    """A bundle on a backend; stages that it does not have are on ONNX Runtime. The address of a server is the language model's.

    Raises:
        UsageError: no such backend.
        SetupError: what it needs is not there.
        BundleError: a bundle that is broken, foreign or too new.
    """
    bundle = load_bundle(folder)
    names = {stage: name if name in known else DEFAULT_BACKEND for stage, known in BACKENDS.items()}
    if "://" in name:
        names["lmm"] = name
    elif name not in names.values():
        raise UsageError(f"there is no backend {name!r}; there are {', '.join(backend_names())}, and the address of a server")
    stages = open_stages(bundle, vision=names["vision"], lmm=names["lmm"], decoder=names["decoder"])
    others = [f"{stage} {backend}" for stage, backend in names.items() if backend != name]
    return Offered(bundle, *stages, device=", ".join(["CPU" if name == DEFAULT_BACKEND else name, *others]), versions=_versions())


CHECKED_WEIGHT: Final = 0.5
"""Of colour in the distances that are compared: neither none of it nor all."""


def open_comparison(folder: Path, name: str) -> Comparison | None:
    """The references graph of a bundle, and a product's fitted head, on a backend; None where the bundle has none, or the backend runs none.
    A head that the backend does not run is on ONNX Runtime, as in a run.

    Features that the graph takes of the vision stage come from ONNX Runtime for every backend, so that all have the same.

    Raises:
        SetupError: what the backend needs is not there.
        BundleError: a bundle that is broken, or for torch another encoder's.
    """
    bundle = load_bundle(folder)
    spec = bundle.manifest.references
    if spec is None or name not in REFERENCE_BACKENDS:
        return None
    vision = OnnxVision(bundle) if spec.view is None else None
    product = bundle.product
    view, weight, own_bank = spec.view or bundle.manifest.pixel_view, CHECKED_WEIGHT, None
    head = None
    if product is not None:
        view, weight = product.view, product.colour_weight
        own_bank = load_array(bundle.folder / BANK, (product.rows, product.channels))
        if product.head is not None:
            head = open_head(bundle, name if name in HEAD_BACKENDS else DEFAULT_BACKEND)
    cells = ReferenceCells(bundle, view, open_references(bundle, name), vision)

    def compare(image: NDArray[np.uint8], truth: Arrays | None = None) -> Arrays:
        frame = cells.prepare(image)
        bank = own_bank if truth is None else truth["bank"]
        if bank is None:
            bank = np.ascontiguousarray(cells.embed(frame).reshape(-1, spec.channels)[::3])
        found = cells.compare(frame, bank, weight)
        answer: Arrays = {"embedding": found.embedding, "deep": found.deep**2, "joint": found.joint**2, "bank": bank}
        if head is None or product is None:
            return answer
        embedding, deep, joint = ((truth or answer)[kind] for kind in ("embedding", "deep", "joint"))
        maps = grids(Compared(embedding, np.sqrt(deep), np.sqrt(joint)), np.full(image.shape[:2], 0.5, np.float32))
        rarities = head_input(Scales.of(product).rarities(maps), (embedding.shape[0], embedding.shape[1]))
        return {**answer, "logit": head(embedding[None], rarities[None])[0]}

    return compare


def _versions() -> dict[str, str]:
    """Of the packages that engines come from, as far as they are installed."""
    found = {}
    for package in ("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings", "vllm"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _features(arrays: Arrays) -> Features:
    decoder: dict[str, Any] = {name: value for name, value in arrays.items() if name not in ("f_s", "f_align")}
    return Features(arrays["f_s"], arrays["f_align"], decoder)


class _Vision:
    """Stage 1 of a foreign engine."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages

    def __call__(self, semantic_image: NDArray[np.uint8], pixel_image: NDArray[np.uint8]) -> Features:
        return _features(self.stages.see(semantic_image, pixel_image))


class _Lmm:
    """Stage 2 of a foreign engine, in direct mode."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages

    def __call__(self, features: Features, instruction: str, mode: Mode = Mode.DIRECT, history: Sequence[Turn] = ()) -> Reply:
        assert mode is Mode.DIRECT and not history, "engines are compared in direct mode"
        said = self.stages.ask({"f_s": features.f_s, "f_align": features.f_align, **features.decoder}, instruction)
        return Reply(said["anchor_states"], said["accept"], np.ones(len(features.f_s), bool))


class _Decoder:
    """Stage 3 of a foreign engine."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages

    def __call__(self, anchor_states: Float, features: Features) -> Float:
        return self.stages.decode(anchor_states, {"f_s": features.f_s, "f_align": features.f_align, **features.decoder})
