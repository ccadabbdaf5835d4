"""From a source to verdicts: frame -> score map -> mask -> regions -> PASS or FAIL.

    segmenter = Segmenter.load("nano")
    for result in segmenter.predict("parts/", stream=True):
        print(result.name, result.verdict, result.score)

A frame that cannot be used gives NO_VERDICT with the reason, and the next one is taken.
"""

import copy
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.decision import BALANCED, OperatingPoint
from agvas_core.contract.errors import ImageError, StageError, UsageError
from agvas_core.contract.images.rgb import to_rgb
from agvas_core.contract.preprocess import ViewSpec
from agvas_core.contract.prompts import Mode
from agvas_runtime.bundle import Bundle, load_bundle
from agvas_runtime.images.frame import Frame, Sent
from agvas_runtime.images.read import MAX_PIXELS
from agvas_runtime.images.views import camera_frame
from agvas_runtime.masks.result import Result, Verdict
from agvas_runtime.pipeline.batching import Counts, tuned_counts
from agvas_runtime.pipeline.instruction import Question, ask
from agvas_runtime.pipeline.overlap import overlapped
from agvas_runtime.pipeline.scorer import Clock, Scorer, Seen, SeenWhole
from agvas_runtime.sources import ArraySource, CameraSource, FileSource, Source, open_source, prefetch
from agvas_runtime.stages.open import DEFAULT_BACKEND, StageSettings, open_stages
from agvas_runtime.stages.prompt_tokenizer import PromptTokenizer
from agvas_runtime.stages.protocol import DecoderStage, FramedVision, JoinedVision, LmmStage, VisionStage

__all__ = ["Judge", "Rule", "Segmenter", "plain"]


# One frame to its result, in two halves that may overlap from frame to frame: what is seen, and what is made of it.


_Image = NDArray[np.uint8]


class Rule(NamedTuple):
    """An operating point and the name that results have it by."""

    name: str
    point: OperatingPoint


@dataclass
class _Work:
    """A frame on its way through both halves."""

    frame: Frame
    clock: Clock
    image: _Image | None = None
    """As the stages see it; there before the first half gives anything."""


class Judge:
    """Frames to verdicts; a frame that cannot be used gives NO_VERDICT with the reason.

    Args:
        identity: of the bundle.
        max_pixels: larger frames get NO_VERDICT.
    """

    def __init__(self, scorer: Scorer, identity: str, max_pixels: int) -> None:
        self.scorer, self.identity, self.max_pixels = scorer, identity, max_pixels

    def stream(self, frames: Iterable[Frame], question: Question, rule: Rule, *, ahead: int) -> Generator[Result, None, None]:
        """The results of frames in their order; where passes are made ahead, a thread makes them and takes the frames."""
        if not ahead:
            yield from (self.segment(frame, question, rule) for frame in frames)
            return
        works = (_Work(frame, Clock(frame.read_ms)) for frame in frames)
        with closing(overlapped(works, lambda work: self._first_half(work, question, rule), ahead=ahead)) as halves:
            for work, seen in halves:
                yield self._second_half(work, seen, question, rule)

    def segment(self, frame: Frame, question: Question, rule: Rule) -> Result:
        """The result of one frame."""
        work = _Work(frame, Clock(frame.read_ms))
        return self._second_half(work, self._first_half(work, question, rule), question, rule)

    def _first_half(self, work: _Work, question: Question, rule: Rule) -> Iterator[Seen | SeenWhole]:
        """What vision makes of the image, pass by pass."""
        frame, image = work.frame, self._usable(work.frame)
        work.image = image
        ready = frame.views if image is frame.image else {}
        yield from self.scorer.see(image, work.clock, question.mode, question.instruction, ready, rule.point)

    def _second_half(self, work: _Work, seen: Iterator[Seen | SeenWhole], question: Question, rule: Rule) -> Result:
        unjudged = self._unjudged(work.frame, question, rule)
        try:
            result = self._judge(unjudged, work, seen, question, rule.point)
        except (ImageError, StageError) as error:
            result = replace(unjudged, error=str(error))
        except (MemoryError, cv2.error) as error:
            if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
                raise
            result = replace(unjudged, error="the image needs more memory than there is: give a smaller one, or lower max_pixels")
        return replace(result, timing=work.clock.timing())

    def _judge(
        self, unjudged: Result, work: _Work, seen: Iterator[Seen | SeenWhole], question: Question, point: OperatingPoint
    ) -> Result:
        passes = chain((next(seen),), seen)  # a frame that cannot be used is said here
        image, clock = work.image, work.clock
        assert image is not None, "the first half has it before it gives anything"
        size = image.shape[0], image.shape[1]
        logits, accept, tiles, answer = self.scorer.judge(passes, size, question.instruction, clock, question.mode)
        with clock.stage("postprocess"):
            judged = logits.judge(self.scorer.manifest.decision.alpha, point, accept)
        return replace(
            unjudged,
            verdict=Verdict.FAIL if judged.regions else Verdict.PASS,
            score=judged.score,
            regions=judged.regions,
            image=image,
            score_map=judged.score_map,
            mask=judged.mask,
            tiles=tiles,
            answer=answer,
            accept=accept,
        )

    def _usable(self, frame: Frame) -> NDArray[np.uint8]:
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
            bundle=self.identity,
        )


def plain(rule: Rule, threshold: float) -> Rule:
    """Plain thresholding at a number of the caller's."""
    if not 0.0 < threshold < 1.0:
        raise UsageError(f"threshold is {threshold}; it lies between 0 and 1, both excluded")
    return Rule("threshold", rule.point.at(threshold))


MAX_THREADS = 1024  # ONNX Runtime starts them all at once, however many; beyond this it is a slip


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
        *,
        operating_point: str = BALANCED,
        threshold: float | None = None,
        prompt: str | None = None,
        mode: Mode | str = Mode.DIRECT,
        normal_look: str | None = None,
        tiling: Literal["auto", "off"] = "auto",
        max_pixels: int = MAX_PIXELS,
        threads: int | None = None,
        counts: Counts | None = None,
    ) -> None:
        if tiling not in ("auto", "off"):
            raise UsageError(f"tiling is {tiling!r}; it can be auto or off")
        self.bundle = bundle
        if threshold is not None and operating_point != BALANCED:
            raise UsageError(
                f"threshold {threshold} and operating point {operating_point} both say what is anomalous: leave one out"
            )
        named = Rule(operating_point, bundle.manifest.decision.point(operating_point))
        self._rule = named if threshold is None else plain(named, threshold)
        self.question = ask(bundle.manifest.prompt, prompt=prompt, mode=mode, normal_look=normal_look)
        self.max_pixels = max_pixels
        self._counts = counts or Counts()
        scorer = Scorer(bundle.manifest, vision, lmm, decoder, tiled=tiling == "auto", threads=threads, tiles=self._counts.tiles)
        self._judge = Judge(scorer, bundle.identity, max_pixels)

    @classmethod
    def load(
        cls,
        model: str | Path = "nano",
        *,
        vision: str = DEFAULT_BACKEND,
        lmm: str = DEFAULT_BACKEND,
        decoder: str = DEFAULT_BACKEND,
        settings: StageSettings | None = None,
        offline: bool = False,
        threads: int | None = None,
        operating_point: str = BALANCED,
        threshold: float | None = None,
        prompt: str | None = None,
        mode: Mode | str = Mode.DIRECT,
        normal_look: str | None = None,
        tiling: Literal["auto", "off"] = "auto",
        max_pixels: int = MAX_PIXELS,
        counts: Counts | None = None,
    ) -> "Segmenter":
        """Opens a bundle, on ONNX Runtime and the CPU where nothing else is named.

        Args:
            model: a bundled name, the folder or zip of a bundle, or ``hf:org/name[@revision]`` of a model hub.
            vision, lmm, decoder: the backend of each stage (``stages.open.BACKENDS``); ``lmm`` may be the address of a server.
            settings: what backends other than ONNX Runtime need to know.
            offline: takes a bundle of the hub from the cache, without a connection.
            threads: CPU threads per stage, and of the native core; all cores where None.
            operating_point: one of the bundle's by name; ``strict`` spares good parts.
            threshold: a pixel is anomalous above this, 0..1, in place of the operating point's two thresholds; least area and gate stay.
            prompt: what to look for; the mode's own instruction where None.
            mode: ``direct``: the mask at once. ``describe``: words, then the mask. ``describe-plus``: so too, told how a good part looks.
                ``explain``: the mask, then why. All but the first speak word by word, and see the whole frame in one view.
            normal_look: how a good part looks, for ``describe-plus``.
            tiling: ``auto`` cuts frames that one view would shrink too much; ``off`` never does.
            max_pixels: larger frames get NO_VERDICT.
            counts: tiles a launch, and how far to look ahead; where None what ``agvas profile --tune`` found here for this bundle, these backends
                and threads, and the defaults where it was not run.

        Raises:
            UsageError: no such model, or an option out of range.
            BundleError: a bundle that is broken, foreign or too new.
            SetupError: what a backend needs is not there.
        """
        settings = settings or StageSettings()
        if threads is not None:
            if not 1 <= threads <= MAX_THREADS:
                raise UsageError(f"threads is {threads}; 1 to {MAX_THREADS} are possible: leave it out to use all cores")
            settings = replace(settings, threads=threads)
        bundle = load_bundle(model, offline=offline)
        segmenter = cls(
            bundle,
            *open_stages(bundle, vision=vision, lmm=lmm, decoder=decoder, settings=settings),
            operating_point=operating_point,
            threshold=threshold,
            prompt=prompt,
            mode=mode,
            normal_look=normal_look,
            tiling=tiling,
            max_pixels=max_pixels,
            threads=settings.threads,
            counts=counts or tuned_counts(bundle.identity, (vision, lmm, decoder), settings.threads),
        )
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
            source: whatever ``sources.open_source`` takes: a path, folder, glob or video, or several of them; a camera; an array (RGB
                [H, W, 3], RGBA or grey; uint8, uint16, or floats in 0..1); an iterable of arrays and ``Frame``, read one by one.
            stream: results one by one as they are made; else all in a list, with their images and maps.
            prompt, threshold, mode, normal_look: in place of the segmenter's own, as in ``load``.

        Raises:
            UsageError: a source, or something asked, that cannot be meant.
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
        return self._judge.stream(frames, self.question, self._rule, ahead=self._counts.ahead if overlap else 0)

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
            UsageError: something asked that cannot be meant.
        """
        return self._judge.segment(frame, self._ask(prompt, mode, normal_look), self._rule_at(threshold))

    def whole_views(self, height: int, width: int, mode: Mode | None = None) -> list[ViewSpec]:
        """The views that a whole frame of this size is looked at in, asked as in ``load`` or in ``mode``; a camera makes them in one pass
        with its image."""
        return self._judge.scorer.whole_views(height, width, mode or self.question.mode)

    def camera_frame(self, sent: Sent, name: str, index: int = 0) -> Frame:
        """What a camera's driver gave (Mono8, Mono16, BayerRG8, BayerGB8, NV12, YUYV, RGB8, BGR8) as a frame to segment: views and image in
        one pass, no copy in between.

        Raises:
            UsageError: a pixel format that is not known.
        """
        return camera_frame(sent, self.whole_views(*sent.size), name, index, threads=self._judge.scorer.threads)

    def with_lmm(self, lmm: LmmStage) -> "Segmenter":
        """The same segmenter with another language model behind it; the two share all else."""
        scorer = copy.copy(self._judge.scorer)
        scorer.lmm = lmm
        return self._with(scorer)

    def with_counts(self, counts: Counts) -> "Segmenter":
        """The same segmenter with other counts; the two share all else."""
        other = self._with(self._judge.scorer.with_tiles(counts.tiles))
        other._counts = counts
        return other

    @property
    def counts(self) -> Counts:
        """Tiles a launch, as far as the bundle allows them, and how far a stream looks ahead."""
        return replace(self._counts, tiles=self._judge.scorer.tiles)

    @property
    def lmm(self) -> LmmStage:
        """The language model."""
        return self._judge.scorer.lmm

    @property
    def stages(self) -> tuple[VisionStage, LmmStage, DecoderStage]:
        """The three, in the order of the data path."""
        return self._judge.scorer.vision, self._judge.scorer.lmm, self._judge.scorer.decoder

    @property
    def captures(self) -> bool:
        """Whether its engine makes graphs of sizes that come again, so that the first frames of a size are slow ones."""
        return isinstance(self.stages[0], (JoinedVision, FramedVision))

    @property
    def tiled(self) -> bool:
        """Whether large frames are cut into tiles."""
        return self._judge.scorer.tiled

    def _with(self, scorer: Scorer) -> "Segmenter":
        other = copy.copy(self)
        other._judge = copy.copy(self._judge)
        other._judge.scorer = scorer
        return other

    def _ask(self, prompt: str | None, mode: Mode | str | None, normal_look: str | None) -> Question:
        spec = self.bundle.manifest.prompt
        return ask(spec, prompt=prompt, mode=mode, normal_look=normal_look, before=self.question)

    def _rule_at(self, threshold: float | None) -> Rule:
        return self._rule if threshold is None else plain(self._rule, threshold)

    def _open(self, source: object) -> Source:
        opened = open_source(source, max_pixels=self.max_pixels)
        # Files are decoded ahead of the model; the caller's own iterator is left to the caller's thread and pace.
        return prefetch(opened) if isinstance(opened, FileSource) else opened

    def _run(self, source: Source, question: Question, rule: Rule, *, overlap: bool) -> Iterator[Result]:
        if isinstance(source, CameraSource):
            source.whole_views = self.whole_views
        with source:
            yield from self._judge.stream(source, question, rule, ahead=self._counts.ahead if overlap else 0)
