"""One frame to its result, in two halves that may overlap from frame to frame: what is seen, and what is made of it."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from agvas_core.contract.decision import OperatingPoint
from agvas_core.contract.errors import ImageError, StageError, UsageError
from agvas_runtime.frame import Frame
from agvas_runtime.overlap import overlapped
from agvas_runtime.question import Question
from agvas_runtime.result import Result, Verdict
from agvas_runtime.rgb import to_rgb
from agvas_runtime.scoring import Clock, Scorer, Seen, SeenWhole

__all__ = ["Judge", "Rule", "plain"]

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
