"""Checks before every request: API key, origin, body size, room in the queue, timeouts.

Nothing of a body is read before all that can be known without it was checked.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from agvas_core.contract.network import calls_loopback, carries_key
from agvas_runtime.web.job_queue import JobQueue
from agvas_runtime.web.metrics import Metrics
from agvas_runtime.web.refusal import Refusal, busy, error_body
from agvas_runtime.web.settings import Settings

__all__ = ["Gate"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

GUARDED = ("/v1/", "/metrics")  # what needs the key; the page has none, and asks for it
COUNTED = ("/v1/segment", "/v1/chat/completions", "/v1/models", "/metrics", "/healthz", "/readyz", "/openapi.json", "/")
# A client that is refused while it sends would see a broken connection instead of the reason, so some of the rest is taken and forgotten.
DRAIN_S = 15.0
DRAIN_BYTES = 256 << 20
HEADERS = (
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: App, *, settings: Settings, queue: JobQueue, metrics: Metrics) -> None:
        self.app, self.settings, self.queue, self.metrics = app, settings, queue, metrics
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        send = self._counting(scope["path"], send)
        size = 0
        try:
            self._check_caller(scope["path"], headers)
            if scope["method"] == "POST":
                size = self._check_body(headers)
        except Refusal as refusal:
            await self._refuse(refusal, headers, receive, send)
            return
        try:
            with self._set_aside(size):
                body = await self._read(receive) if size else b""
                if body is not None:
                    await self.app(scope, _Replayed(receive, body), send)
        except Refusal as refusal:
            await self._refuse(refusal, headers, receive, send)

    @contextmanager
    def _set_aside(self, size: int) -> Iterator[None]:
        self._held += size
        self.metrics.uploads.set(self._held)
        try:
            yield
        finally:
            self._held -= size
            self.metrics.uploads.set(self._held)

    def _check_caller(self, path: str, headers: dict[str, str]) -> None:
        settings = self.settings
        key = settings.api_key
        if key is not None and path.startswith(GUARDED) and not carries_key(headers.get("authorization", ""), key):
            raise Refusal(
                401, "unauthorized", "an API key is needed: send Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
            )
        if not settings.open_to_names:
            # A page of another site, or a name of its that was pointed at this machine, must not use what listens on loopback.
            host = headers.get("host", "")
            if not calls_loopback(host):
                raise Refusal(403, "forbidden", f"this server is for this machine only, and was called {host!r}: use 127.0.0.1")
            if headers.get("origin", f"http://{host}") != f"http://{host}":
                raise Refusal(403, "forbidden", f"requests from pages of {headers['origin']!r} are not served")

    def _check_body(self, headers: dict[str, str]) -> int:
        """The bytes to set aside for a body; those of one without a length are the most that there may be."""
        most = self.settings.max_body_bytes
        length = headers.get("content-length", "")
        size = int(length) if length.isascii() and length.isdigit() else most
        if size > most:
            raise Refusal(413, "too_large", f"the body has {size} bytes; at most {most} are read: send fewer or smaller images")
        self.queue.check()
        if self._held + size > self.settings.upload_bytes:
            raise busy("too many uploads at the same time: send it again after the time in Retry-After", self.queue.retry_after_s)
        return size

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, within its bounds of bytes and time; None where the client left on the way."""
        most, timeout_s = self.settings.max_body_bytes, self.settings.body_timeout_s
        pieces: list[bytes] = []
        came, end, more = 0, time.monotonic() + timeout_s, True
        while more:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except TimeoutError:
                raise Refusal(
                    408, "timeout", f"the body did not come within {timeout_s:g} s, {came} bytes of it did: send it faster"
                ) from None
            if message["type"] == "http.disconnect":
                return None
            pieces.append(message.get("body", b""))
            came += len(pieces[-1])
            if came > most:
                raise Refusal(413, "too_large", f"the body has more than {most} bytes: send fewer or smaller images")
            more = message.get("more_body", False)
        return b"".join(pieces)

    def _counting(self, path: str, send: Send) -> Send:
        known = path if path in COUNTED else "other"

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.request(known, message["status"])
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            try:
                await asyncio.wait_for(send(message), self.settings.send_timeout_s)
            except TimeoutError:
                raise ConnectionError("the client does not read") from None

        return counted

    async def _refuse(self, refusal: Refusal, headers: dict[str, str], receive: Receive, send: Send) -> None:
        content = json.dumps(error_body(refusal)).encode()
        length = headers.get("content-length", "0")
        has_body = length != "0" or "transfer-encoding" in headers
        await send(
            {"type": "http.response.start", "status": refusal.status, "headers": _json(content, refusal, closing=has_body)}
        )
        await send({"type": "http.response.body", "body": content, "more_body": has_body})
        if has_body:
            if "expect" not in headers:
                await self._drain(receive)
            await send({"type": "http.response.body", "body": b""})

    async def _drain(self, receive: Receive) -> None:
        """Takes and forgets what the client still sends, within bounds."""
        most, end = DRAIN_BYTES, time.monotonic() + DRAIN_S
        while most > 0 and (left := end - time.monotonic()) > 0:
            try:
                message = await asyncio.wait_for(receive(), left)
            except TimeoutError:
                return
            if message["type"] != "http.request" or not message.get("more_body"):
                return
            most -= len(message.get("body", b""))


class _Replayed:
    """``receive`` for the application: the whole body at once, and then the client's leaving."""

    def __init__(self, receive: Receive, body: bytes) -> None:
        self._receive, self._body = receive, body
        self._given = False

    async def __call__(self) -> Message:
        if self._given:
            return await self._receive()
        self._given = True
        return {"type": "http.request", "body": self._body, "more_body": False}


def _json(content: bytes, refusal: Refusal, *, closing: bool) -> list[tuple[bytes, bytes]]:
    rows: Iterable[tuple[str, str]] = (
        ("content-type", "application/json"),
        ("content-length", str(len(content))),
        *refusal.headers.items(),
        *((("connection", "close"),) if closing else ()),
    )
    return [(name.lower().encode(), value.encode()) for name, value in rows]
