"""One question to an OpenAI-compatible chat-completions endpoint, asked again for as long as a failure may pass.

async with Endpoint(Address.of("http://127.0.0.1:8000/v1"), "model", key=None) as endpoint:
    reply = await endpoint.ask(messages)
"""

import asyncio
import email.utils
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import httpx

from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.contract.network import is_loopback
from agvas_core.data.instruct.prompt import Message

__all__ = ["Address", "Endpoint", "NoReply", "RateLimit", "Reply", "RetryPolicy", "Spent"]


# How fast an endpoint is asked: so many requests a minute, and none while it has asked for quiet.


class RateLimit:
    """Slots for requests, evenly spaced; shared by all that ask one endpoint, on one event loop."""

    def __init__(self, per_minute: float | None) -> None:
        """``per_minute``: requests, retries included; None for no bound."""
        self._interval_s = 60 / per_minute if per_minute else 0.0
        self._next_s = 0.0
        self._quiet_until_s = 0.0

    def reserve(self, now_s: float) -> float:
        """Takes the next slot; seconds from ``now_s`` until it."""
        start_s = max(now_s, self._next_s, self._quiet_until_s)
        self._next_s = start_s + self._interval_s
        return start_s - now_s

    def hold(self, now_s: float, seconds: float) -> None:
        """No request is sent until ``seconds`` after ``now_s``."""
        self._quiet_until_s = max(self._quiet_until_s, now_s + seconds)

    def quiet_for(self, now_s: float) -> float:
        """Seconds from ``now_s`` until the next request may be sent."""
        return max(0.0, self._quiet_until_s - now_s)

    async def turn(self) -> None:
        """Waits for a slot. One that was reserved before the endpoint asked for quiet is given up for one after that."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.reserve(loop.time()))
        while self.quiet_for(loop.time()) > 0:
            await asyncio.sleep(self.reserve(loop.time()))


@dataclass(frozen=True)
class RetryPolicy:
    """When to ask again after a failure that may pass: exponential back-off, half of it by chance."""

    retries: int = 6
    first_s: float = 1.0
    longest_s: float = 60.0
    longest_asked_s: float = 900.0
    """An endpoint that asks for a longer pause than this ends the run: a person should know."""
    chance: random.Random = field(default_factory=random.Random)

    def wait_s(self, failures: int, asked_s: float | None = None) -> float:
        """Seconds before the next attempt.

        Args:
            failures: how many there were, from 1.
            asked_s: what the endpoint asked for (Retry-After): never less than that.
        """
        whole_s = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return max(whole_s * (0.5 + 0.5 * self.chance.random()), asked_s or 0.0)


MAX_REPLY_BYTES: Final = 4 << 20
MAY_PASS: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
CONNECT_S: Final = 20.0
SAID_CHARS: Final = 300


@dataclass(frozen=True)
class Address:
    """Where to ask."""

    url: str
    """Of the chat completions."""
    host: str
    """Host, with the port where one was named."""
    loopback: bool
    encrypted: bool

    @classmethod
    def of(cls, endpoint: str) -> "Address":
        """From what a user types: ``http://127.0.0.1:8000/v1``, or the whole address of the chat completions.

        Raises:
            UsageError: no address of the web, or one with a password in it.
        """
        try:
            url = httpx.URL(endpoint.strip())
        except httpx.InvalidURL as error:
            raise UsageError(f"--endpoint is {endpoint!r}: {error}; it must be like http://127.0.0.1:8000/v1") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise UsageError(f"--endpoint is {endpoint!r}; it must be like http://127.0.0.1:8000/v1")
        if url.userinfo or url.query or url.fragment:
            raise UsageError(
                "--endpoint carries a user, a query or a fragment, which would end up in files: put the key into --key-env"
            )
        path = url.path.rstrip("/").removesuffix("/chat/completions")
        return cls(
            str(url.copy_with(path=f"{path}/chat/completions")),
            url.netloc.decode(),
            is_loopback(url.host),
            url.scheme == "https",
        )


@dataclass(frozen=True)
class Reply:
    """What was answered."""

    text: str
    cut: bool
    """The answer was longer than was allowed for."""


@dataclass(frozen=True)
class NoReply:
    """Why there is no answer."""

    reason: str
    final: bool
    """The endpoint refuses this very question; otherwise another run may have an answer."""


@dataclass
class Spent:
    """What was used so far."""

    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    without_usage: int = 0
    """Answers that did not say what they cost."""


@dataclass
class Endpoint:
    """An endpoint that is being asked. For one event loop."""

    address: Address
    model: str
    key: str | None = field(default=None, repr=False)
    pace: RateLimit = field(default_factory=lambda: RateLimit(None))
    patience: RetryPolicy = field(default_factory=RetryPolicy)
    timeout_s: float = 180.0
    """For a whole answer, from the moment the question leaves."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the request, such as temperature; None takes a key out."""
    spent: Spent = field(default_factory=Spent)

    async def __aenter__(self) -> Self:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "agvas"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(self.timeout_s, connect=min(CONNECT_S, self.timeout_s), pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
            follow_redirects=False,  # the key is for the host that was named
            trust_env=not self.address.loopback,  # a proxy cannot reach this machine's loopback
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._client.aclose()

    async def ask(self, messages: Sequence[Message]) -> Reply | NoReply:
        """Asks until there is an answer, a final refusal, or no patience left.

        Raises:
            SetupError: an error that a retry cannot fix: a key, a model or an address that is refused.
        """
        request = {"model": self.model, "messages": list(messages), "stream": False, **self.body}
        content = json.dumps({key: value for key, value in request.items() if value is not None}).encode()
        failures = 0
        while True:
            await self.pace.turn()
            outcome = await self._once(content)
            if not isinstance(outcome, _Failure):
                return outcome
            self.spent.failed += 1
            failures += 1
            if failures > self.patience.retries:
                return NoReply(f"{outcome.reason}; asked {failures} times", final=False)
            await asyncio.sleep(self._pause(failures, outcome))

    def _pause(self, failures: int, failure: "_Failure") -> float:
        if failure.asked_s is None:
            return self.patience.wait_s(failures)
        if failure.asked_s > self.patience.longest_asked_s:
            raise SetupError(
                f"{self.address.host} asks to wait {failure.asked_s:.0f} s ({failure.reason}): run the same command again after that"
            )
        self.pace.hold(asyncio.get_running_loop().time(), failure.asked_s)  # all others would only be told the same
        return self.patience.wait_s(failures, failure.asked_s)

    async def _once(self, content: bytes) -> "Reply | NoReply | _Failure":
        self.spent.requests += 1
        try:
            async with asyncio.timeout(self.timeout_s):  # httpx bounds each read, and an answer may come drop by drop
                async with self._client.stream("POST", self.address.url, content=content) as response:
                    raw = await _bounded(response)
        except TimeoutError:
            return _Failure(f"no whole answer within {self.timeout_s:g} s")
        except httpx.HTTPError as error:
            return _Failure(self._said(f"{type(error).__name__}: {error}"))
        if raw is None:
            return NoReply(f"the answer is larger than {MAX_REPLY_BYTES >> 20} MiB", final=True)
        if response.status_code != 200:
            return self._refused(response, raw)
        return self._understood(raw)

    def _refused(self, response: httpx.Response, raw: bytes) -> "NoReply | _Failure":
        status, said = response.status_code, self._said(raw.decode("utf-8", "replace"))
        if status in MAY_PASS:
            return _Failure(f"HTTP {status}: {said}", _retry_after_s(response.headers.get("Retry-After")))
        if status in (401, 403):
            raise SetupError(
                f"{self.address.host} refuses the key (HTTP {status}: {said}): set the variable that --key-env names"
            )
        if status in (404, 405) or 300 <= status < 400:
            where = response.headers.get("Location", "")
            raise SetupError(
                f"{self.address.url} is no chat-completions endpoint with the model {self.model} (HTTP {status} {where}: {said}): "
                "check --endpoint, which mostly ends in /v1, and --model"
            )
        return NoReply(f"HTTP {status}: {said}", final=True)

    def _understood(self, raw: bytes) -> "Reply | _Failure":
        try:
            answer = json.loads(raw)
            choice = answer["choices"][0]
            content = choice["message"].get("content")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return _Failure(f"the body is no chat completion: {self._said(raw[:SAID_CHARS].decode('utf-8', 'replace'))}")
        usage = answer.get("usage")
        counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
        if all(isinstance(count, int) for count in counts):
            self.spent.prompt_tokens += counts[0] or 0
            self.spent.completion_tokens += counts[1] or 0
        else:
            self.spent.without_usage += 1
        if isinstance(content, list):  # some servers answer in parts, as they are asked
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        return Reply(content if isinstance(content, str) else "", choice.get("finish_reason") == "length")

    def _said(self, text: str) -> str:
        """Foreign text for a message or a file: short, on one line, and without the key, which servers like to quote."""
        text = text.replace(self.key, "***") if self.key else text
        return " ".join(text.split())[:SAID_CHARS] or "no words"


@dataclass(frozen=True)
class _Failure:
    """A failure that may pass."""

    reason: str
    asked_s: float | None = None


async def _bounded(response: httpx.Response) -> bytes | None:
    """The body; None where it is larger than any answer."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MAX_REPLY_BYTES:
            return None
    return bytes(body)


def _retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date; None where it is neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
