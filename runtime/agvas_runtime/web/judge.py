"""The work on one image: decode, segment, and stream the answer while it is generated."""

import asyncio
import base64
import logging
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

import cv2
import numpy as np

from agvas_core.contract.errors import AgvasError, ImageError, StageError, UsageError
from agvas_core.contract.prompts import ANCHOR_TOKENS, ANCHORS, ANCHORS_SHOWN, Mode
from agvas_runtime.images.frame import Frame
from agvas_runtime.images.read import NotedOnce, decode_image
from agvas_runtime.line.recipe.file import RecipeVersion
from agvas_runtime.masks.result import Result
from agvas_runtime.masks.run_lengths import coco_run_lengths
from agvas_runtime.pipeline.instruction import ask
from agvas_runtime.pipeline.segmenter import Segmenter
from agvas_runtime.sinks.image_files import encode_png16
from agvas_runtime.stages.prompt_tokenizer import PromptTokenizer
from agvas_runtime.stages.protocol import Features, LmmStage, Reply, TellingLmm, Turn
from agvas_runtime.web.asked import Options
from agvas_runtime.web.recipes import entry_by_recipe
from agvas_runtime.web.upload import Upload

log = logging.getLogger("agvas.serve")

__all__ = ["ClientLeft", "ClientStream", "Judge", "entry_of", "while_connected"]


# A result as the reply to a request, with what was asked for of its mask.


def entry_of(result: Result, include: Collection[str]) -> dict[str, Any]:
    """The line of ``results.jsonl`` for one image, less its polygons where they were not asked for, and with ``mask_rle``, ``mask_png``
    and ``score_png`` where they were. ``NO_VERDICT`` has none of them."""
    entry = result.to_dict()
    if "polygons" not in include:
        for region in entry["regions"]:
            del region["polygon"], region["holes"]
    if result.mask is None or result.score_map is None:
        return entry
    if "rle" in include:
        entry["mask_rle"] = coco_run_lengths(result.mask)
    if "png" in include:
        done, data = cv2.imencode(".png", result.mask.astype(np.uint8) * 255)
        assert done
        entry["mask_png"] = base64.b64encode(data.tobytes()).decode()
    if "score" in include:
        entry["score_png"] = base64.b64encode(encode_png16(result.score_map)).decode()
    return entry


class ClientLeft(AgvasError):
    """The client has closed the connection."""


@dataclass
class ClientStream:
    """Who listens while a worker works; set ``gone`` and it stops at the next word or image."""

    tell: Callable[[str], None] | None = None
    gone: threading.Event = field(default_factory=threading.Event)

    def __call__(self, piece: str) -> None:
        """Passes a piece of an answer on."""
        self.check()
        if self.tell is not None:
            self.tell(piece)

    def check(self) -> None:
        """Raises ClientLeft if the client has closed the connection."""
        if self.gone.is_set():
            raise ClientLeft("the client left")


class _InDialogue:
    """A language model that knows what was said before; keeps the error of an engine that is down, which a result has as text only."""

    def __init__(self, lmm: LmmStage, history: Sequence[Turn]) -> None:
        self._lmm, self._history = lmm, history
        self.down: StageError | None = None

    def __call__(self, features: Features, instruction: str, mode: Mode = Mode.DIRECT, history: Sequence[Turn] = ()) -> Reply:
        try:
            return self._lmm(features, instruction, mode, self._history)
        except StageError as error:
            self.down = error
            raise


class Judge:
    """A segmenter as the server uses it; several workers may call it at once.

    Args:
        bits: that 16-bit images use.
        observe: called with every result.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        max_pixels: int,
        bits: int | None = None,
        observe: Callable[[Result], None] | None = None,
    ) -> None:
        self.segmenter, self.max_pixels, self.bits = segmenter, max_pixels, bits
        self._noted = NotedOnce([])
        self._noted.told = log.warning
        self._observe = observe
        self._tokenizer = PromptTokenizer(segmenter.bundle)

    def check(self, prompt: str | None, options: Options, history: Sequence[Turn] = ()) -> tuple[Turn, ...]:
        """Checks what is asked, before the image waits; returns as much of the history, the newest first, as the model has room for.

        Raises:
            UsageError: invalid words or mode, or words that do not fit even by themselves.
        """
        spec = self.segmenter.bundle.manifest.prompt
        question = ask(spec, prompt=prompt, mode=options.mode, normal_look=options.normal_look, before=self.segmenter.question)
        self._tokenizer.words(question.instruction, question.mode)
        for first in range(len(history)):
            with suppress(UsageError):
                self._tokenizer.words(question.instruction, question.mode, tuple(history[first:]))
                return tuple(history[first:])
        return ()

    def look(
        self,
        upload: Upload,
        index: int,
        prompt: str | None,
        options: Options,
        client: ClientStream,
        history: Sequence[Turn] = (),
    ) -> Result:
        """One image to its result; NO_VERDICT where it cannot be used.

        Raises:
            ClientLeft: the client has closed the connection.
            StageError: the language model's engine is down.
        """
        client.check()
        result = self._ask(self._read(upload, index), prompt, options, client, history)
        self._tell(result)
        return result

    def _read(self, upload: Upload, index: int, bits: int | None = None) -> Frame:
        began = perf_counter()
        try:
            note = self._noted.of(upload.name)
            image = decode_image(upload.data, max_pixels=self.max_pixels, bits=bits or self.bits, note=note)
            return Frame(upload.name, index, image, read_ms=(perf_counter() - began) * 1000)
        except ImageError as error:
            return Frame(upload.name, index, error=error)

    def _ask(
        self, frame: Frame, prompt: str | None, options: Options, client: ClientStream, history: Sequence[Turn] = ()
    ) -> Result:
        lmm = self.segmenter.lmm
        heard = _InDialogue(lmm.telling(client) if isinstance(lmm, TellingLmm) else lmm, history)
        result = self.segmenter.with_lmm(heard).segment(
            frame, prompt=prompt, mode=options.mode, normal_look=options.normal_look, threshold=options.threshold
        )
        if heard.down is not None:
            self._tell(result)
            raise heard.down
        return result

    def _tell(self, result: Result) -> None:
        if self._observe is not None:
            self._observe(result)

    def entries(self, uploads: list[Upload], prompt: str | None, options: Options, client: ClientStream) -> list[dict[str, Any]]:
        """Several images, one after the other."""
        looked = (self.look(upload, index, prompt, options, client) for index, upload in enumerate(uploads))
        return [entry_of(result, options.include) for result in looked]

    def entries_by_recipe(
        self, uploads: list[Upload], version: RecipeVersion, options: Options, client: ClientStream
    ) -> list[dict[str, Any]]:
        """Several images by a recipe, one after the other; of ``options`` only what comes back counts."""
        recipe, entries = version.recipe, []
        asked = options.model_copy(update={"mode": recipe.mode, "normal_look": recipe.normal_look})
        for index, upload in enumerate(uploads):
            client.check()

            def look(frame: Frame, prompt: str | None) -> Result:
                return self._ask(frame, prompt, asked, client)

            result, more = entry_by_recipe(self._read(upload, index, recipe.bits), version, self.segmenter.bundle, look)
            self._tell(result)
            entries.append({**entry_of(result, options.include), **more})
        return entries

    @property
    def fixed_answer(self) -> str:
        """What direct mode says, as people read it."""
        said = self.segmenter.bundle.manifest.prompt.answer.replace(ANCHORS, ANCHORS_SHOWN)
        for token in ANCHOR_TOKENS:  # a model that was trained with fewer anchors has its own answer
            said = said.replace(token, ANCHORS_SHOWN)
        return said


# Waits for a job as long as its client does.


T = TypeVar("T")


async def while_connected(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]], job: Coroutine[Any, Any, T], client: ClientStream
) -> T:
    """The job's result; a client that leaves takes it out of the queue, or ends it at its next word or image.

    Raises:
        ClientLeft: the client left.
    """
    work = asyncio.ensure_future(job)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientLeft("the client left")
        return work.result()
    finally:
        if not work.done():
            client.gone.set()
            work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _gone(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
