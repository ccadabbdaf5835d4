"""All samples through the endpoint: several at a time, each result kept at once, and a run that was killed goes on where it was."""

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from agvas_core.contract.durable import write_whole
from agvas_core.contract.errors import ImageError, OutputError, SetupError
from agvas_core.data.instruct.answer import AnswerError, parsed
from agvas_core.data.instruct.endpoint import Endpoint, NoReply
from agvas_core.data.instruct.entry import Entry, read_entries
from agvas_core.data.instruct.journal import Journal, read_lines
from agvas_core.data.instruct.pictures import data_url, shrunk, with_boxes, with_mask
from agvas_core.data.instruct.prompt import Message, Prompt
from agvas_core.data.instruct.samples import Sample
from agvas_core.files import read_rgb

__all__ = ["Generation", "Outcome", "Tally", "pictures_of", "rejects_path"]

IN_A_ROW: Final = 5  # samples without any answer, one after the other: the endpoint is down, and the rest would fare no better
KEPT_CHARS: Final = 4000
Outcome = Literal["done", "rejected", "unanswered"]


@dataclass
class Tally:
    """What became of the samples of one run."""

    done: int = 0
    rejected: int = 0
    unanswered: int = 0
    asked_again: int = 0
    """Answers that were not valid and were asked for once more."""
    silent: int = 0
    """Samples in a row that the endpoint said nothing useful about."""


def rejects_path(path: Path) -> Path:
    """``instruct.jsonl`` -> ``instruct.rejects.jsonl``."""
    return path.with_suffix(f".rejects{path.suffix}")


def pictures_of(sample: Sample, side_px: int) -> list[str]:
    """The two or three pictures of a sample as data URLs: boxes, mask, the nearest normal image (A.2).

    Raises:
        ImageError: image or mask cannot be used.
    """
    image, mask = sample.read()
    drawn = [with_boxes(image, mask, side_px), with_mask(image, mask, side_px)]
    if (nearest := sample.references.nearest(image)) is not None:
        drawn.append(shrunk(read_rgb(nearest, nearest.name), side_px))
    return [data_url(picture) for picture in drawn]


@dataclass
class Generation:
    """One run into one file, which no other process writes meanwhile.

    with Generation(Path("instruct.jsonl"), load_prompt(), endpoint) as generation:
        asyncio.run(generation.run(generation.remaining(samples)))
    """

    out: Path
    prompt: Prompt
    endpoint: Endpoint
    attempts: int = 3
    """Answers to ask for until one is valid."""
    concurrency: int = 4
    image_px: int = 1024
    tally: Tally = field(default_factory=Tally)

    def __enter__(self) -> Self:
        """Raises UsageError if another process writes there, OutputError if it cannot be written."""
        with ExitStack() as stack:
            self._out = stack.enter_context(Journal(self.out))
            self._had = {entry.key for entry in read_entries(self.out)}
            self._listed = self._tidied()
            self._rejects: Journal | None = None
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def remaining(self, samples: Sequence[Sample], *, retry_rejects: bool = False) -> list[Sample]:
        """The samples that the file does not have yet; those in the rejects count as had unless they are to be tried again."""
        had = self._had if retry_rejects else self._had | self._listed
        return [sample for sample in samples if sample.key not in had]

    async def run(self, samples: Sequence[Sample], advance: Callable[[Outcome], None] = lambda _: None) -> None:
        """Asks about every sample and writes what comes.

        Args:
            samples: from :meth:`remaining`.
            advance: called once for each sample.

        Raises:
            SetupError: the endpoint refuses everything, or does not answer at all.
            OutputError: the file cannot be written.
        """
        queue = iter(samples)
        async with self.endpoint:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.concurrency, len(samples))):
                        group.create_task(self._work(queue, advance))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from errors

    async def _work(self, queue: Iterator[Sample], advance: Callable[[Outcome], None]) -> None:
        for sample in queue:
            result = await self._describe(sample)
            if isinstance(result, dict):
                self._out.append(self._entry(sample, result).model_dump())
                self.tally.done += 1
                advance("done")
            elif result.final:
                self._reject(sample, result)
                self.tally.rejected += 1
                advance("rejected")
            else:
                self.tally.unanswered += 1
                advance("unanswered")
            if isinstance(result, _Refused):
                self._watch(result)

    async def _describe(self, sample: Sample) -> "dict[str, str] | _Refused":
        """The five texts, or why there are none."""
        try:
            pictures = await asyncio.to_thread(pictures_of, sample, self.image_px)
        except ImageError as error:
            return _Refused(str(error))
        messages = self.prompt.messages(sample.category, sample.kind, pictures)
        topic = f"{sample.category} {sample.kind}"
        reasons: list[str] = []
        said = ""
        for attempt in range(self.attempts):
            self.tally.asked_again += attempt > 0
            reply = await self.endpoint.ask([*messages, *_again(said, reasons[-1])] if reasons else messages)
            if isinstance(reply, NoReply):
                return _Refused(reply.reason, tuple(reasons), said, final=reply.final, silent=True)
            said, self.tally.silent = reply.text, 0
            try:
                if reply.cut:
                    raise AnswerError("the answer was cut off for its length; write shorter texts")
                return parsed(said, self.prompt.wording, topic)
            except AnswerError as error:
                reasons.append(str(error))
        return _Refused(reasons[-1], tuple(reasons[:-1]), said)

    def _entry(self, sample: Sample, texts: dict[str, str]) -> Entry:
        return Entry(
            dataset=sample.dataset,
            root=_relative(sample.root, self.out),
            image=sample.image_name,
            mask=sample.mask_name,
            mask_level=sample.mask.level,
            category=sample.category,
            kind=sample.kind,
            model=self.endpoint.model,
            endpoint=self.endpoint.address.host,
            prompt=self.prompt.digest,
            **texts,
        )

    def _reject(self, sample: Sample, result: "_Refused") -> None:
        if self._rejects is None:
            self._rejects = self._stack.enter_context(Journal(rejects_path(self.out)))
        line = {
            "key": sample.key,
            "image": sample.image_name,
            "mask": sample.mask_name,
            "category": sample.category,
            "kind": sample.kind,
            "reason": result.reason,
            "earlier_reasons": list(result.earlier),
            "answer": result.answer[:KEPT_CHARS],
            "model": self.endpoint.model,
            "endpoint": self.endpoint.address.host,
            "prompt": self.prompt.digest,
        }
        self._rejects.append(line)

    def _watch(self, result: "_Refused") -> None:
        """Ends a run that has nothing to hope for."""
        self.tally.silent += result.silent
        if self.tally.silent >= IN_A_ROW:
            rejected = "; what it refused stands in the rejects, and --retry-rejects asks again" if result.final else ""
            raise SetupError(
                f"{self.endpoint.address.host} had no answer for {self.tally.silent} samples in a row ({result.reason}): "
                f"see that it runs, then run the same command again; what is done is kept{rejected}"
            )

    def _tidied(self) -> set[str]:
        """The keys in the rejects, from which samples are taken that have an answer by now, or stand there twice."""
        path = rejects_path(self.out)
        lines = [line for _, line in read_lines(path)] if path.exists() else []
        newest = {str(line.get("key")): line for line in lines}
        still = {key: line for key, line in newest.items() if key not in self._had}
        if len(still) < len(lines):
            try:
                write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in still.values()))
            except OSError as error:
                raise OutputError(f"cannot write {path}: {error.strerror}; choose a folder with space and permission") from error
        return set(still)


@dataclass(frozen=True)
class _Refused:
    """Why a sample has no texts."""

    reason: str
    earlier: tuple[str, ...] = ()
    answer: str = ""
    final: bool = True
    """It is listed in the rejects; otherwise the next run asks again."""
    silent: bool = False
    """The endpoint had no answer, in contrast to one that cannot be used."""


def _again(said: str, reason: str) -> list[Message]:
    """What is said after an answer that cannot be used. Only the last one is repeated, so that the conversation stays bounded."""
    return [
        {"role": "assistant", "content": said[:KEPT_CHARS] or "(no answer)"},
        {"role": "user", "content": f"This answer cannot be used: {reason}. Answer again with the whole JSON object, mended."},
    ]


def _relative(root: Path, out: Path) -> str:
    """``root`` as seen from the file's folder, so that both can move together."""
    try:
        return Path(os.path.relpath(root.resolve(), out.resolve().parent)).as_posix()
    except ValueError:  # another drive
        return root.resolve().as_posix()
