"""``POST /v1/chat/completions``: a dialogue about an image, in OpenAI's form, with the mask in the reply.

The image is an ``image_url`` part with a ``data:`` URL. Words come in ``content``, where ``[mask]`` stands for the mask; the mask and
all that ``/v1/segment`` gives are in ``agvas``, beside ``choices``. With ``stream`` the words come one by one as server-sent events.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError

from agvas_core.contract.errors import AgvasError
from agvas_core.contract.prompts import DEFAULT_INSTRUCTION
from agvas_runtime.stages.protocol import Turn
from agvas_runtime.web.asked import ChatRequest, ImagePart, Message, reference
from agvas_runtime.web.job_queue import JobQueue
from agvas_runtime.web.judge import ClientStream, Judge, entry_of, while_connected
from agvas_runtime.web.refusal import REFUSALS, Refusal, error_body, of_error, of_validation
from agvas_runtime.web.segment import read_json
from agvas_runtime.web.settings import Settings
from agvas_runtime.web.upload import Upload, check_upload, from_text

__all__ = ["Exchange", "chat_routes", "exchange_of"]


# Messages of a dialogue to one image, one instruction, and what was said about that image before.


SYSTEM_NOTE = "system messages are not read: the model was trained without any"


@dataclass(frozen=True)
class Exchange:
    """What is put to the model."""

    upload: Upload
    prompt: str | None
    """None where the last message has no words: the mode's own instruction is taken."""
    history: tuple[Turn, ...]
    """What was asked and answered about this image, oldest first."""
    notes: tuple[str, ...]
    """What of the request has no effect."""


def exchange_of(request: ChatRequest) -> Exchange:
    """The last message's words, and the newest image up to there.

    Raises:
        Refusal: no image, no user's message at the end, or something that this server does not do.
    """
    if request.n not in (None, 1):
        raise Refusal(400, "usage", f"n is {request.n}; decoding is greedy, so there is one answer")
    if request.tools:
        raise Refusal(400, "usage", "tools are not supported: leave them out")
    *before, last = request.messages
    if last.role != "user":
        raise Refusal(400, "usage", f"the last message is of the role {last.role}; it must be the user's")
    images = [part for message in request.messages if message.role == "user" for part in _images(message)]
    if not images:
        raise Refusal(
            400, "usage", "there is no image: send one as an image_url part with a data: URL, in this or an earlier message"
        )
    if not images[-1].image_url.url.lower().startswith("data:"):
        raise Refusal(400, "usage", "the image_url is no data: URL; this server fetches nothing: send data:image/png;base64,...")
    notes = (SYSTEM_NOTE,) if any(message.role in ("system", "developer") for message in before) else ()
    return Exchange(from_text(images[-1].image_url.url, "image"), _words(last) or None, _history(before, last), notes)


def _history(before: list[Message], last: Message) -> tuple[Turn, ...]:
    """Questions with their answers, since the newest image came; a question that has none is left out."""
    if _images(last):
        return ()
    newest = max(index for index, message in enumerate(before) if message.role == "user" and _images(message))
    turns = zip(before[newest:], before[newest + 1 :], strict=False)
    return tuple(
        Turn(_words(asked) or DEFAULT_INSTRUCTION, _words(said))
        for asked, said in turns
        if asked.role == "user" and said.role == "assistant" and _words(said)
    )


def _images(message: Message) -> list[ImagePart]:
    return [part for part in message.content or () if isinstance(part, ImagePart)]


def _words(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content.strip()
    return " ".join(part.text for part in message.content or () if part.type == "text").strip()


BEGUN = ""  # the first piece: the job left the queue


def chat_routes(judge: Judge, queue: JobQueue, settings: Settings) -> APIRouter:
    """The routes over one model."""
    router = APIRouter(tags=["chat"])
    manifest = judge.segmenter.bundle.manifest

    @router.get("/v1/models", summary="The one model that is served")
    async def models() -> JSONResponse:
        """As OpenAI lists models."""
        return JSONResponse({"object": "list", "data": [{"id": manifest.name, "object": "model", "owned_by": "agvas"}]})

    @router.post(
        "/v1/chat/completions",
        summary="Talk about an image",
        responses=REFUSALS,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": reference(ChatRequest)}},
            }
        },
    )
    async def complete(request: Request) -> Response:
        """OpenAI's chat completions with an image as `data:` URL; `agvas` takes mode, normal look, threshold and what comes back of the
        mask. With `stream` server-sent events, the last of which before `[DONE]` has the mask."""
        asked = _asked(await read_json(request))
        if asked.model not in (None, manifest.name, judge.segmenter.bundle.identity):
            raise Refusal(404, "usage", f"there is no model {asked.model!r} here; this server has {manifest.name}")
        exchange = exchange_of(asked)
        history = judge.check(exchange.prompt, asked.agvas, exchange.history)
        check_upload(exchange.upload, settings.max_pixels)
        reply = _Reply(judge, asked, exchange, history)
        if asked.stream:
            return await _stream(request, reply, queue)
        client = ClientStream()
        entry = await while_connected(request.receive, queue.run(lambda: reply.entry(client)), client)
        return JSONResponse(reply.whole(entry))

    return router


class _Reply:
    """One answer, whole or in pieces."""

    def __init__(self, judge: Judge, asked: ChatRequest, exchange: Exchange, history: tuple[Turn, ...]) -> None:
        self._judge, self._asked, self._exchange, self._history = judge, asked, exchange, history
        left_out = len(exchange.history) - len(history)
        self._notes = [
            *exchange.notes,
            *([f"the first {left_out} answers were left out: the model has no room for more"] if left_out else []),
        ]
        self._frame = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": judge.segmenter.bundle.manifest.name,
        }

    def entry(self, client: ClientStream) -> dict[str, Any]:
        """The work of a worker.

        Raises:
            Refusal: there is no verdict on this image.
        """
        client(BEGUN)
        result = self._judge.look(self._exchange.upload, 0, self._exchange.prompt, self._asked.agvas, client, self._history)
        if result.error is not None:
            raise Refusal(422, "image", result.error)
        entry = entry_of(result, self._asked.agvas.include) | {"notes": self._notes}
        if entry["answer"] is None:
            entry["answer"] = self._judge.fixed_answer
        return entry

    def whole(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The reply of a request without ``stream``."""
        message = {"role": "assistant", "content": entry["answer"]}
        choices = [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}]
        return {**self._frame, "object": "chat.completion", "choices": choices, "agvas": entry}

    def piece(self, delta: dict[str, str], finish: str | None = None, **more: Any) -> bytes:
        """One server-sent event."""
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        return _event({**self._frame, "object": "chat.completion.chunk", "choices": choices, **more})


async def _stream(request: Request, reply: _Reply, queue: JobQueue) -> StreamingResponse:
    """Begins to answer when the job leaves the queue, so that a refusal still has its status."""
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def tell(piece: str) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)

    client = ClientStream(tell)
    job = asyncio.ensure_future(queue.run(lambda: reply.entry(client)))
    job.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        first = await while_connected(request.receive, pieces.get(), client)
    except BaseException:
        job.cancel()
        raise
    if first is None:
        job.result()  # raises: it never began
    return StreamingResponse(_events(reply, job, pieces, client), media_type="text/event-stream")


async def _events(
    reply: _Reply, job: "asyncio.Future[dict[str, Any]]", pieces: "asyncio.Queue[str | None]", client: ClientStream
) -> AsyncIterator[bytes]:
    told = ""
    try:
        yield reply.piece({"role": "assistant", "content": ""})
        while (piece := await pieces.get()) is not None:
            told += piece
            yield reply.piece({"content": piece})
        try:
            entry = job.result()
        except AgvasError as error:
            yield _event(error_body(of_error(error)))
            return
        rest = entry["answer"].removeprefix(told)  # all of it where the answer is known beforehand
        if rest:
            yield reply.piece({"content": rest})
        yield reply.piece({}, "stop", agvas=entry)
        yield b"data: [DONE]\n\n"
    finally:  # also where the client left
        client.gone.set()
        job.cancel()


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def _asked(fields: dict[str, Any]) -> ChatRequest:
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise of_validation(error) from error
