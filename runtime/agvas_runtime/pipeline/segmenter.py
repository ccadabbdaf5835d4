"""From a source to verdicts: frame -> score map -> mask -> regions -> PASS or FAIL.

    segmenter = Segmenter.load("nano")
    for result in segmenter.predict("parts/", stream=True):
        print(result.name, result.verdict, result.score)

A frame that cannot be used gives NO_VERDICT with the reason, and the next one is taken.
"""

import copy
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.decision import OperatingPoint, image_score
from agvas_core.contract.defaults import DEFAULT_MODEL
from agvas_core.contract.errors import ImageError, StageError
from agvas_core.contract.images.rgb import to_rgb
from agvas_core.contract.preprocess import ViewSpec
from agvas_core.contract.prompts import Mode
from agvas_runtime.bundle import Bundle, load_bundle
from agvas_runtime.images.frame import Frame, Sent
from agvas_runtime.images.locate import Locator, Place, open_locator
from agvas_runtime.images.views import camera_frame
from agvas_runtime.masks.regions import judge_map
from agvas_runtime.masks.result import Result, Verdict
from agvas_runtime.pipeline.batching import Counts, tuned_counts
from agvas_runtime.pipeline.frame_logits import Judged
from agvas_runtime.pipeline.instruction import Question, ask
from agvas_runtime.pipeline.options import SegmentKeywords, SegmentOptions, check_threshold
from agvas_runtime.pipeline.overlap import overlapped
from agvas_runtime.pipeline.references import Prepared, References, open_references
from agvas_runtime.pipeline.scorer import Clock, Scorer, Seen, SeenWhole
from agvas_runtime.sources import ArraySource, CameraSource, FileSource, Source, WebSource, open_source, prefetch
from agvas_runtime.stages.open import StageSettings, open_stages
from agvas_runtime.stages.prompt_tokenizer import PromptTokenizer
from agvas_runtime.stages.protocol import DecoderStage, FramedVision, JoinedVision, LmmStage, VisionStage

__all__ = ["Rule", "Segmenter"]


class Rule(NamedTuple):
    """An operating point and the name that results have it by."""

    name: str
    point: OperatingPoint

    def at(self, threshold: float) -> "Rule":
        """One threshold of the caller's in place of the point's two.

        Raises:
            UsageError: it is not between 0 and 1.
        """
        return Rule("threshold", self.point.at(check_threshold(threshold)))


@dataclass
class _Work:
    """A frame on its way through both halves."""

    frame: Frame
    clock: Clock
    image: NDArray[np.uint8] | None = None
    """As the stages see it; set before the first half gives anything."""
    place: Place | None = None
    """Of the part, where the image is a crop of the frame."""
    whole: NDArray[np.uint8] | None = None
    """The frame, then."""


class Segmenter:
    """A bundle, its three stages, and the rule that makes a verdict of their score map.

    Several threads may call it at once where its stages allow that; those of ONNX Runtime do.
    """

    def __init__(
        self,
        bundle: Bundle,
        vision: VisionStage,
        lmm: LmmStage,
        decoder: DecoderStage,
        options: SegmentOptions | None = None,
        *,
        counts: Counts | None = None,
        references: References | None = None,
        locator: Locator | None = None,
    ) -> None:
        """Takes stages that are open; ``load`` and ``open`` open them.

        Args:
            options: how it is asked; those that say what is opened are not looked at.
            counts: tiles a launch, and how far to look ahead; the defaults if None.
            references: of a product, which frames are compared with.
            locator: of a product that finds its part and looks at nothing else.

        Raises:
            UsageError: an operating point that the bundle does not have, or words or a mode that are not valid.
        """
        options = options or SegmentOptions()
        self.bundle, self.references, self.locator = bundle, references, locator
        named = Rule(options.operating_point, bundle.manifest.decision.point(options.operating_point))
        self._rule = named if options.threshold is None else named.at(options.threshold)
        self.question = ask(bundle.manifest.prompt, prompt=options.prompt, mode=options.mode, normal_look=options.normal_look)
        self.max_pixels = options.max_pixels
        self._counts = counts or Counts()
        self._scorer = Scorer(
            bundle.manifest,
            vision,
            lmm,
            decoder,
            tiled=options.tiling == "auto",
            threads=options.threads,
            tiles=self._counts.tiles,
            shared_view=None if references is None else references.cells.shared_view,
        )

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        settings: StageSettings | None = None,
        counts: Counts | None = None,
        **options: Unpack[SegmentKeywords],
    ) -> "Segmenter":
        """Opens a bundle, on ONNX Runtime and the CPU if nothing else is named.

            segmenter = Segmenter.load("nano", threads=2, prompt="Segment the scratch.")

        Args:
            model: a bundled name, the folder or zip of a bundle, or ``hf:org/name[@revision]`` of a model hub.
            settings: engines, adapter and the like in one object, as ``pycuda_interop.settings_in`` makes it.
            counts: as in ``open``.
            options: the other fields of ``SegmentOptions``, which says what each means.

        Raises:
            UsageError: no such model, or an option out of range.
            BundleError: a bundle that is broken, foreign or too new.
            SetupError: what a backend needs is not there.
        """
        given: dict[str, Any] = dict(options)
        if settings is not None:
            told = {field.name: getattr(settings, field.name) for field in fields(settings)}
            address = told.pop("lmm_url")
            given = {name: value for name, value in told.items() if value is not None} | given
            if address is not None and given.get("lmm") == "http":
                given["lmm"] = address
        return cls.open(SegmentOptions(model, **given), counts=counts)

    @classmethod
    def open(cls, options: SegmentOptions, *, counts: Counts | None = None) -> "Segmenter":
        """Opens the bundle and the stages that the options name.

        Args:
            counts: tiles a launch, and how far to look ahead; if None what ``agvas profile --tune`` found here for this bundle, these
                backends and threads, and the defaults where it was not run.

        Raises:
            UsageError: no such model or backend, words or a mode that are not valid.
            BundleError: a bundle that is broken, foreign or too new.
            SetupError: what a backend needs is not there.
        """
        bundle = load_bundle(options.model, offline=options.offline)
        vision, lmm, decoder = options.backends
        stages = open_stages(bundle, vision=vision, lmm=lmm, decoder=decoder, settings=options.stage_settings)
        counts = counts or tuned_counts(bundle.identity, options.backends, options.threads)
        references = open_references(bundle, stages.vision, vision, options.stage_settings)
        locator = open_locator(bundle.product, bundle.folder)
        segmenter = cls(bundle, *stages, options, counts=counts, references=references, locator=locator)
        # A prompt that does not fit is refused now, not at the first frame.
        PromptTokenizer(bundle).words(segmenter.prompt, segmenter.question.mode)
        return segmenter

    @property
    def operating_point(self) -> str:
        """The name of ``point``: ``balanced``, ``strict``, or ``threshold`` where the caller named one."""
        return self._rule.name

    @property
    def point(self) -> OperatingPoint:
        """What a region is and when it counts."""
        return self._rule.point

    @property
    def prompt(self) -> str:
        """The instruction as the model reads it."""
        return self.question.instruction

    @overload
    def predict(
        self,
        source: object,
        *,
        stream: Literal[False] = False,
        prompt: str | None = None,
        threshold: float | None = None,
        mode: Mode | str | None = None,
        normal_look: str | None = None,
    ) -> list[Result]: ...

    @overload
    def predict(
        self,
        source: object,
        *,
        stream: Literal[True],
        prompt: str | None = None,
        threshold: float | None = None,
        mode: Mode | str | None = None,
        normal_look: str | None = None,
    ) -> Iterator[Result]: ...

    def predict(
        self,
        source: object,
        *,
        stream: bool = False,
        prompt: str | None = None,
        threshold: float | None = None,
        mode: Mode | str | None = None,
        normal_look: str | None = None,
    ) -> list[Result] | Iterator[Result]:
        """Segments every frame of a source.

        Args:
            source: whatever ``sources.open_source`` takes: a path, folder, glob or video, or several of them; the web address of a
                picture; a camera; an array (RGB [H, W, 3], RGBA or grey; uint8, uint16, or floats in 0..1); an image of Pillow; a
                tensor of torch ([C, H, W], or [N, C, H, W] for a batch); an iterable of these and ``Frame``, read one by one.
            stream: results one by one as they are made; else all in a list, with their images and maps.
            prompt, threshold, mode, normal_look: in place of the segmenter's own, as in ``load``.

        Raises:
            UsageError: an invalid source or option.
            SourceError: a stream that is not there, or stopped.
        """
        question, rule = self._ask(prompt, mode, normal_look), self._rule_at(threshold)
        opened = self._open(source)
        # A thread that waits for a camera could not be ended at once, and an iterator is the caller's own.
        results = self._run(opened, question, rule, overlap=not opened.live and not isinstance(opened, ArraySource))
        return results if stream else list(results)

    def stream(self, frames: Iterable[Frame], *, overlap: bool = True) -> Generator[Result, None, None]:
        """The results of frames, in their order, asked as in ``load``.

        Args:
            overlap: a thread takes the frames and looks at the next one while the language model and the decoder are at work on the one
                before, as far ahead as ``counts`` says. The results are the same; more of them come in a second.
        """
        return self._stream(frames, self.question, self._rule, overlap=overlap)

    def segment(
        self,
        frame: Frame,
        *,
        prompt: str | None = None,
        threshold: float | None = None,
        mode: Mode | str | None = None,
        normal_look: str | None = None,
    ) -> Result:
        """Segments one frame; one that carries an error, or cannot be used, gives NO_VERDICT.

        Raises:
            UsageError: an invalid option.
        """
        return self._segment(frame, self._ask(prompt, mode, normal_look), self._rule_at(threshold))

    def whole_views(self, height: int, width: int, mode: Mode | None = None) -> list[ViewSpec]:
        """The views that a whole frame of this size is looked at in, asked as in ``load`` or in ``mode``; a camera makes them in one pass
        with its image. None where the part is looked for first."""
        return [] if self.locator is not None else self._scorer.whole_views(height, width, mode or self.question.mode)

    def camera_frame(self, sent: Sent, name: str, index: int = 0) -> Frame:
        """What a camera's driver gave (Mono8, Mono16, BayerRG8, BayerGB8, NV12, YUYV, RGB8, BGR8) as a frame to segment: views and image in
        one pass, no copy in between.

        Raises:
            UsageError: a pixel format that is not known.
        """
        return camera_frame(sent, self.whole_views(*sent.size), name, index, threads=self._scorer.threads)

    def with_lmm(self, lmm: LmmStage) -> "Segmenter":
        """The same segmenter with another language model behind it; the two share all else."""
        scorer = copy.copy(self._scorer)
        scorer.lmm = lmm
        return self._with(scorer)

    def without_locator(self) -> "Segmenter":
        """The same segmenter, which takes every frame for the part; to warm it up."""
        other = self._with(self._scorer)
        other.locator = None
        return other

    def with_alpha(self, alpha: float) -> "Segmenter":
        """The same segmenter with another share of P_seg in P (eq. 8), 0 to 1; the two share all else."""
        manifest = self.bundle.manifest
        decided = manifest.model_copy(update={"decision": manifest.decision.model_copy(update={"alpha": alpha})})
        scorer = copy.copy(self._scorer)
        scorer.manifest = decided
        other = self._with(scorer)
        other.bundle = replace(self.bundle, manifest=decided)
        return other

    def with_counts(self, counts: Counts) -> "Segmenter":
        """The same segmenter with other counts; the two share all else."""
        other = self._with(self._scorer.with_tiles(counts.tiles))
        other._counts = counts
        return other

    @property
    def counts(self) -> Counts:
        """Tiles a launch, as far as the bundle allows them, and how far a stream looks ahead."""
        return replace(self._counts, tiles=self._scorer.tiles)

    @property
    def lmm(self) -> LmmStage:
        """The language model."""
        return self._scorer.lmm

    @property
    def stages(self) -> tuple[VisionStage, LmmStage, DecoderStage]:
        """The three, in the order of the data path."""
        return self._scorer.vision, self._scorer.lmm, self._scorer.decoder

    @property
    def captures(self) -> bool:
        """Whether its engine makes graphs of sizes that come again, so that the first frames of a size are slow ones."""
        return isinstance(self.stages[0], (JoinedVision, FramedVision))

    @property
    def tiled(self) -> bool:
        """Whether large frames are cut into tiles."""
        return self._scorer.tiled

    def _with(self, scorer: Scorer) -> "Segmenter":
        other = copy.copy(self)
        other._scorer = scorer
        return other

    def _ask(self, prompt: str | None, mode: Mode | str | None, normal_look: str | None) -> Question:
        spec = self.bundle.manifest.prompt
        return ask(spec, prompt=prompt, mode=mode, normal_look=normal_look, before=self.question)

    def _rule_at(self, threshold: float | None) -> Rule:
        return self._rule if threshold is None else self._rule.at(threshold)

    def _open(self, source: object) -> Source:
        opened = open_source(source, max_pixels=self.max_pixels)
        # Files are decoded ahead of the model; the caller's own iterator is left to the caller's thread and pace.
        return prefetch(opened) if isinstance(opened, FileSource | WebSource) else opened

    def _run(self, source: Source, question: Question, rule: Rule, *, overlap: bool) -> Iterator[Result]:
        if isinstance(source, CameraSource):
            source.whole_views = self.whole_views
        with source:
            yield from self._stream(source, question, rule, overlap=overlap)

    # One frame to its result, in two halves that may overlap from frame to frame: what is seen, and what is made of it.

    def _stream(self, frames: Iterable[Frame], question: Question, rule: Rule, *, overlap: bool) -> Generator[Result, None, None]:
        ahead = self._counts.ahead if overlap else 0
        if not ahead:
            yield from (self._segment(frame, question, rule) for frame in frames)
            return
        works = (_Work(frame, Clock(frame.read_ms)) for frame in frames)
        with closing(overlapped(works, lambda work: self._first_half(work, question, rule), ahead=ahead)) as halves:
            for work, seen in halves:
                yield self._second_half(work, seen, question, rule)

    def _segment(self, frame: Frame, question: Question, rule: Rule) -> Result:
        work = _Work(frame, Clock(frame.read_ms))
        return self._second_half(work, self._first_half(work, question, rule), question, rule)

    def _first_half(self, work: _Work, question: Question, rule: Rule) -> Iterator[Seen | SeenWhole]:
        """What vision makes of the image, pass by pass."""
        frame, image = work.frame, self._usable(work.frame)
        if self.locator is not None:
            with work.clock.stage("locate"):
                work.place = self.locator.find(image)
                work.whole, image = image, work.place.crop(image)
        work.image = image
        ready = frame.views if image is frame.image else {}
        yield from self._scorer.see(image, work.clock, question.mode, question.instruction, ready, rule.point)

    def score_map(self, frame: Frame, shared_view: ViewSpec | None = None) -> tuple[NDArray[np.float32], Prepared | None]:
        """The model's own score map P, float32 [H, W], and what references that share ``shared_view`` need of the pass that made it.

        Raises:
            ImageError: the frame carries an error, or cannot be used.
            StageError: an engine is down.
        """
        scorer = copy.copy(self._scorer)
        scorer.shared_view = shared_view
        with _memory_error_told():
            scored = scorer.score(self._usable(frame), self.question.instruction, Clock(), self.question.mode)
            return scored.logits.score_map(self.bundle.manifest.decision.alpha), scored.whole

    def _second_half(self, work: _Work, seen: Iterator[Seen | SeenWhole], question: Question, rule: Rule) -> Result:
        """The result of a frame, or the reason why there is none."""
        unjudged = self._unjudged(work.frame, question, rule)
        try:
            with _memory_error_told():
                result = self._judge(unjudged, work, seen, question, rule.point)
        except (ImageError, StageError) as error:
            result = replace(unjudged, error=str(error))
        return replace(result, timing=work.clock.timing())

    def _judge(
        self, unjudged: Result, work: _Work, seen: Iterator[Seen | SeenWhole], question: Question, point: OperatingPoint
    ) -> Result:
        """Logits -> score map -> rule -> result: the one place where a score map becomes a verdict."""
        passes = chain((next(seen),), seen)  # a frame that cannot be used raises here
        image, clock = work.image, work.clock
        assert image is not None, "the first half sets it before it gives anything"
        size = image.shape[0], image.shape[1]
        logits, accept, tiles, answer, whole = self._scorer.judge(passes, size, question.instruction, clock, question.mode)
        alpha = self.bundle.manifest.decision.alpha
        if self.references is not None:
            with clock.stage("references"):
                judged = self._compared(self.references, work, logits.score_map(alpha), point, whole)
        else:
            with clock.stage("postprocess"):
                judged = logits.judge(alpha, point, accept)
        return replace(
            unjudged,
            verdict=Verdict.FAIL if judged.regions else Verdict.PASS,
            score=judged.score,
            regions=judged.regions,
            image=image if work.whole is None else work.whole,
            score_map=judged.score_map,
            mask=judged.mask,
            tiles=tiles,
            answer=answer,
            accept=accept,
        )

    def _compared(
        self, references: References, work: _Work, zero_shot: NDArray[np.float32], point: OperatingPoint, seen: Prepared | None
    ) -> Judged:
        """A frame, or the crop of one, against the product's good images; what comes of it is in pixels of the frame."""
        image, place, product = work.image, work.place, self.bundle.product
        assert image is not None, "the first half sets it before it gives anything"
        if place is None or product is None or product.locate is None:
            return references.judge(image, zero_shot, point, seen)
        found = references.score_map(image, zero_shot, min(0.5, point.image_share / product.locate.share), seen)
        score_map = place.to_frame(found)
        return Judged(score_map, image_score(score_map, point), *judge_map(score_map, point))

    def _usable(self, frame: Frame) -> NDArray[np.uint8]:
        """The frame's image as RGB.

        Raises:
            ImageError: there is none, or it is too large.
        """
        if frame.error is not None:
            raise ImageError(str(frame.error)) from frame.error
        if frame.image is None:
            raise ImageError(f"frame {frame.name} has neither an image nor an error: its source is at fault")
        height, width = frame.image.shape[:2] if frame.image.ndim > 1 else (1, 1)
        if height * width > self.max_pixels:
            raise ImageError(
                f"the image is {width}x{height} px, {height * width / 1e6:.0f} megapixels; {self.max_pixels / 1e6:.0f} are allowed: "
                "raise max_pixels, or cut it up"
            )
        return to_rgb(frame.image)

    def _unjudged(self, frame: Frame, question: Question, rule: Rule) -> Result:
        """What is known before the frame was looked at."""
        return Result(
            name=frame.name,
            index=frame.index,
            verdict=Verdict.NO_VERDICT,
            score=None,
            operating_point=rule.name,
            threshold=rule.point.threshold,
            seed_threshold=rule.point.seed_threshold,
            prompt=question.instruction,
            mode=str(question.mode),
            bundle=self.bundle.identity,
        )


@contextmanager
def _memory_error_told() -> Iterator[None]:
    """Raises ImageError where memory ran out."""
    try:
        yield
    except (MemoryError, cv2.error) as error:
        if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
            raise
        raise ImageError("the image needs more memory than there is: give a smaller one, or lower max_pixels") from error
