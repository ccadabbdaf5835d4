"""From a source to verdicts: frame -> score map -> mask -> regions -> PASS or FAIL.

    segmenter = Segmenter.load("nano")
    for result in segmenter.predict("parts/", stream=True):
        print(result.name, result.verdict, result.score)

A frame that cannot be used gives NO_VERDICT with the reason, and the next one is taken.
"""

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, overload

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.errors import AgvasError, ImageError, UsageError
from agvas_core.contract.prompts import MAX_INSTRUCTION_CHARS, strip_control_tokens
from agvas_runtime.bundle import Bundle, load_bundle
from agvas_runtime.frame import Frame
from agvas_runtime.image_file import MAX_PIXELS
from agvas_runtime.regions import find_regions
from agvas_runtime.result import Result, Verdict
from agvas_runtime.rgb import to_rgb
from agvas_runtime.scoring import Clock, Scorer
from agvas_runtime.sources import FileSource, Source, open_source, prefetch
from agvas_runtime.stages.protocol import DecoderStage, LmmStage, VisionStage

__all__ = ["Segmenter"]

MAX_THREADS = 1024  # ONNX Runtime starts them all at once, however many; beyond this it is a slip

log = logging.getLogger("agvas")


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
        threshold: float | None = None,
        prompt: str | None = None,
        tiling: Literal["auto", "off"] = "auto",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if tiling not in ("auto", "off"):
            raise UsageError(f"tiling is {tiling!r}; it can be auto or off")
        self.bundle = bundle
        self.threshold = _threshold(bundle.manifest.decision.threshold if threshold is None else threshold)
        self.prompt = _instruction(bundle.manifest.prompt.instruction if prompt is None else prompt)
        self.max_pixels = max_pixels
        self._scorer = Scorer(bundle.manifest, vision, lmm, decoder, tiled=tiling == "auto")

    @classmethod
    def load(
        cls,
        model: str | Path = "nano",
        *,
        threads: int | None = None,
        threshold: float | None = None,
        prompt: str | None = None,
        tiling: Literal["auto", "off"] = "auto",
        max_pixels: int = MAX_PIXELS,
    ) -> "Segmenter":
        """Opens a bundle on ONNX Runtime and the CPU.

        Args:
            model: a bundled name, or the folder or zip of a bundle.
            threads: CPU threads per stage; all cores where None.
            threshold: a pixel is anomalous above this, 0..1; the bundle's own where None.
            prompt: what to look for; the bundle's own instruction where None.
            tiling: ``auto`` cuts frames that one view would shrink too much; ``off`` never does.
            max_pixels: larger frames get NO_VERDICT.

        Raises:
            UsageError: no such model, or an option out of range.
            BundleError: a bundle that is broken, foreign or too new.
        """
        from agvas_runtime.stages.onnx import OnnxDecoder, OnnxLmm, OnnxVision  # one backend of several

        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise UsageError(f"threads is {threads}; 1 to {MAX_THREADS} are possible: leave it out to use all cores")
        bundle = load_bundle(model)
        lmm = OnnxLmm(bundle, threads=threads)
        segmenter = cls(
            bundle,
            OnnxVision(bundle, threads=threads),
            lmm,
            OnnxDecoder(bundle, threads=threads),
            threshold=threshold,
            prompt=prompt,
            tiling=tiling,
            max_pixels=max_pixels,
        )
        lmm.words(segmenter.prompt)  # a prompt that does not fit is refused now, not at the first frame
        return segmenter

    @overload
    def predict(
        self, source: object, *, stream: Literal[False] = False, prompt: str | None = None, threshold: float | None = None
    ) -> list[Result]: ...

    @overload
    def predict(
        self, source: object, *, stream: Literal[True], prompt: str | None = None, threshold: float | None = None
    ) -> Iterator[Result]: ...

    def predict(
        self, source: object, *, stream: bool = False, prompt: str | None = None, threshold: float | None = None
    ) -> list[Result] | Iterator[Result]:
        """Segments every frame of a source.

        Args:
            source: whatever ``sources.open_source`` takes: a path, folder, glob or video, or several of them; a camera; an array (RGB
                [H, W, 3], RGBA or grey; uint8, uint16, or floats in 0..1); an iterable of arrays and ``Frame``, read one by one.
            stream: results one by one as they are made; else all in a list, with their images and maps.
            prompt: what to look for, in place of the segmenter's own.
            threshold: in place of the segmenter's own.

        Raises:
            UsageError: a source, prompt or threshold that cannot be meant.
            SourceError: a stream that is not there, or stopped.
        """
        instruction = self.prompt if prompt is None else _instruction(prompt)
        limit = self.threshold if threshold is None else _threshold(threshold)
        results = self._run(self._open(source), instruction, limit)
        return results if stream else list(results)

    def segment(self, frame: Frame, *, prompt: str | None = None, threshold: float | None = None) -> Result:
        """Segments one frame; one that carries an error, or cannot be used, gives NO_VERDICT.

        Raises:
            UsageError: a prompt or threshold that cannot be meant.
        """
        instruction = self.prompt if prompt is None else _instruction(prompt)
        return self._segment(frame, instruction, self.threshold if threshold is None else _threshold(threshold))

    def with_lmm(self, lmm: LmmStage) -> "Segmenter":
        """The same segmenter with another language model behind it; the two share all else."""
        other = copy.copy(self)
        other._scorer = copy.copy(self._scorer)
        other._scorer.lmm = lmm
        return other

    @property
    def lmm(self) -> LmmStage:
        """The language model."""
        return self._scorer.lmm

    def _open(self, source: object) -> Source:
        opened = open_source(source, max_pixels=self.max_pixels)
        # Files are decoded ahead of the model; the caller's own iterator is left to the caller's thread and pace.
        return prefetch(opened) if isinstance(opened, FileSource) else opened

    def _run(self, source: Source, instruction: str, threshold: float) -> Iterator[Result]:
        with source:
            for frame in source:
                yield self._segment(frame, instruction, threshold)

    def _segment(self, frame: Frame, instruction: str, threshold: float) -> Result:
        clock = Clock(frame.read_ms)
        try:
            return self._judge(frame, instruction, threshold, clock)
        except ImageError as error:
            return self._no_verdict(frame, error, instruction, threshold, clock)
        except (MemoryError, cv2.error) as error:
            if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
                raise
            short = ImageError("the image needs more memory than there is: give a smaller one, or lower max_pixels")
            return self._no_verdict(frame, short, instruction, threshold, clock)

    def _judge(self, frame: Frame, instruction: str, threshold: float, clock: Clock) -> Result:
        image = self._usable(frame)
        score_map, tiles = self._scorer.score_map(image, instruction, clock)
        with clock.stage("postprocess"):
            min_area_px = self.bundle.manifest.decision.min_area_fraction * score_map.size
            mask, regions = find_regions(score_map > threshold, score_map, min_area_px)
            score = float(score_map.max())
        return Result(
            name=frame.name,
            index=frame.index,
            verdict=Verdict.FAIL if regions else Verdict.PASS,
            score=score,
            threshold=threshold,
            prompt=instruction,
            bundle=self.bundle.identity,
            regions=regions,
            image=image,
            score_map=score_map,
            mask=mask,
            tiles=tiles,
            timing=clock.timing(),
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

    def _no_verdict(self, frame: Frame, error: AgvasError, instruction: str, threshold: float, clock: Clock) -> Result:
        return Result(
            name=frame.name,
            index=frame.index,
            verdict=Verdict.NO_VERDICT,
            score=None,
            threshold=threshold,
            prompt=instruction,
            bundle=self.bundle.identity,
            error=str(error),
            timing=clock.timing(),
        )


def _instruction(prompt: str) -> str:
    """The prompt without control tokens; warns where there were any."""
    if len(prompt) > MAX_INSTRUCTION_CHARS:
        raise UsageError(f"the prompt has {len(prompt)} characters; {MAX_INSTRUCTION_CHARS} are allowed: shorten it")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt {prompt!r} is no valid UTF-8: check the encoding of the terminal or script") from error
    clean, removed = strip_control_tokens(prompt)
    if removed:
        log.warning("removed %s from the prompt: these belong to the model; what is left is %r", ", ".join(removed), clean)
    if not clean:
        raise UsageError(f"the prompt {prompt!r} says nothing: say what to look for, or leave it out")
    return clean


def _threshold(threshold: float) -> float:
    if not 0.0 < threshold < 1.0:
        raise UsageError(f"threshold is {threshold}; it lies between 0 and 1, both excluded")
    return threshold
