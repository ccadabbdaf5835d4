"""Middleware inside ``vllm serve``: answers our few paths and passes everything else on.

GET  /agvas/v1/identity   who answers
GET  /agvas/v1/adapters   the adapters that lie in the folder now
POST /agvas/v1/ask        a question (``wire``); its adapter is loaded where it is not yet

``agvas serve-lmm`` starts the server with it, and says what it needs to know in the environment.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from vllm import PoolingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from agvas_core.contract.errors import AgvasError, BundleError, StageError, UsageError
from agvas_runtime.stages.vllm.arguments import DIRECT_ONLY, FOLDER
from agvas_runtime.stages.vllm.engine import Answering
from agvas_runtime.stages.vllm.protocol import (
    ADAPTERS_PATH,
    ASK_PATH,
    IDENTITY_PATH,
    LmmRequest,
    LmmResponse,
    pack_responses,
    unpack_request,
)

__all__ = ["AnchorService"]

MAX_BODY_BYTES: Final = 512 << 20
_STATUS: Final = {UsageError: 400, BundleError: 409, StageError: 503}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class AnchorService:
    """An ASGI middleware, made by vLLM."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self._app = app
        self._answering = Answering(Path(os.environ[FOLDER]), all_modes=DIRECT_ONLY not in os.environ)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/agvas/"):
            return await self._app(scope, receive, send)
        try:
            status, kind, body = 200, "application/json", await self._answer(scope, receive)
            if isinstance(body, bytes):
                kind = "application/octet-stream"
        except AgvasError as error:
            status = next((code for each, code in _STATUS.items() if isinstance(error, each)), 500)
            kind, body = "application/json", {"error": type(error).__name__, "message": str(error)}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    async def _answer(self, scope: Message, receive: Receive) -> Any:
        match scope["method"], scope["path"]:
            case "GET", path if path == IDENTITY_PATH:
                return asdict(self._answering.identity)
            case "GET", path if path == ADAPTERS_PATH:
                return {"adapter": self._answering.spec.adapter, "adapters": self._answering.adapters()}
            case "POST", path if path == ASK_PATH:
                asked = unpack_request(await _body(receive))
                return pack_responses(self._answering.identity, await self._ask(scope["app"].state.engine_client, asked))
        raise UsageError(f"{scope['method']} {scope['path']}: there is no such path; see agvas_runtime/vllm_plugin/service.py")

    async def _ask(self, engine: Any, asked: LmmRequest) -> list[LmmResponse]:
        prompts, parameters = self._answering.prompts(asked), self._answering.parameters(asked)
        adapter = await asyncio.to_thread(self._answering.adapter, asked.adapter)
        run = engine.encode if isinstance(parameters, PoolingParams) else engine.generate

        async def one(prompt: dict[str, Any]) -> LmmResponse:
            outputs = [output async for output in run(prompt, parameters.clone(), f"agvas-{uuid4().hex}", lora_request=adapter)]
            return await asyncio.to_thread(self._answering.said, asked, outputs[-1])

        try:
            return list(await asyncio.gather(*(one(prompt) for prompt in prompts)))
        except (EngineDeadError, EngineGenerateError) as error:
            raise StageError("vLLM's engine has failed or died; the supervisor starts it again where it has") from error
        except (VLLMValidationError, ValueError) as error:
            raise UsageError(f"vLLM refuses the question ({error})") from error


async def _body(receive: Receive) -> bytes:
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise StageError("the client left before its question was whole")
        parts.append(message.get("body", b""))
        size, more = size + len(parts[-1]), message.get("more_body", False)
        if size > MAX_BODY_BYTES:
            raise UsageError(f"the question has more than {MAX_BODY_BYTES >> 20} MiB: ask about fewer images at once")
    return b"".join(parts)
