"""Asking a real HTTP server that is slow, full, broken, mistaken or rude."""

import asyncio
import email.utils
import json
import time
from typing import Any

import pytest

from agvas_core.contract.errors import SetupError, UsageError
from agvas_core.data.instruct import endpoint as endpoint_module
from agvas_core.data.instruct.endpoint import Address, Endpoint, NoReply, RateLimit, Reply, RetryPolicy

MESSAGES = [{"role": "user", "content": "What is this?"}]
KEY = "sk-secret-0123456789"


def ask(chat: Any, *, times: int = 1, retries: int = 3, **options: Any) -> tuple[list[Reply | NoReply], Endpoint]:
    """The same question, ``times`` at once."""
    options = {"timeout_s": 5.0, "patience": RetryPolicy(retries=retries, first_s=0.01, longest_s=0.05), **options}
    endpoint = Endpoint(Address.of(chat.url), "a-model", **options)

    async def go() -> list[Reply | NoReply]:
        async with endpoint:
            return await asyncio.gather(*(endpoint.ask(MESSAGES) for _ in range(times)))

    return asyncio.run(go()), endpoint


def step(chat: Any, **fields: Any) -> Any:
    """A step of the conftest's kind."""
    return type(chat.plan(0, None))(**fields)


def test_a_question_arrives_as_the_protocol_wants_it(chat: Any) -> None:
    (reply,), endpoint = ask(chat, key=KEY, body={"temperature": 0.4, "max_tokens": None, "top_p": 0.9})
    assert isinstance(reply, Reply) and not reply.cut and "Expectation" in reply.text
    (asked,) = chat.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["Authorization"] == f"Bearer {KEY}"
    assert asked.body == {"model": "a-model", "messages": MESSAGES, "stream": False, "temperature": 0.4, "top_p": 0.9}
    assert (endpoint.spent.requests, endpoint.spent.prompt_tokens, endpoint.spent.completion_tokens) == (1, 1000, 100)


def test_without_a_key_none_is_sent(chat: Any) -> None:
    ask(chat)
    assert "Authorization" not in chat.asked[0].headers


def always(chat: Any, **fields: Any) -> None:
    """The server does this with every request."""
    made = step(chat, **fields)
    chat.plan = lambda number, request: made


@pytest.mark.parametrize(
    "fields",
    [
        {"status": 500, "body": b"oops"},
        {"status": 503, "body": b"", "headers": {"Retry-After": "nonsense"}},
        {"status": 429, "body": b"{}"},
        {"body": b"<html>a proxy's page</html>"},
        {"body": b'{"choices": []}'},
        {"body": b'{"choices": [null]}'},
        {"body": b'"text"'},
        {"body": b'{"choices": [{"message": {"content": "abc"', "cut_short": True},
        {"cut_short": True},
        {"wait_s": 1.5},
    ],
)
def test_a_failure_that_may_pass_is_asked_again(chat: Any, fields: dict[str, Any]) -> None:
    chat.follow(step(chat, **fields), step(chat, **fields))
    (reply,), endpoint = ask(chat, timeout_s=0.4 if "wait_s" in fields else 5.0)
    assert isinstance(reply, Reply)
    assert len(chat.asked) == 3 and (endpoint.spent.requests, endpoint.spent.failed) == (3, 2)


def test_patience_ends_and_the_last_reason_is_said(chat: Any) -> None:
    always(chat, status=500, body=b"  the GPU\nis gone ")
    (reply,), _ = ask(chat, retries=2)
    assert reply == NoReply("HTTP 500: the GPU is gone; asked 3 times", final=False)


def test_an_answer_that_drips_is_given_up_in_time(chat: Any) -> None:
    always(chat, wait_s=1.0)
    (reply,), _ = ask(chat, retries=0, timeout_s=0.2)
    assert isinstance(reply, NoReply) and ("no whole answer within 0.2 s" in reply.reason or "ReadTimeout" in reply.reason)


def test_nobody_listening_is_a_failure_that_may_pass() -> None:
    endpoint = Endpoint(Address.of("http://127.0.0.1:9/v1"), "m", patience=RetryPolicy(retries=1, first_s=0.01))

    async def go() -> Reply | NoReply:
        async with endpoint:
            return await endpoint.ask(MESSAGES)

    reply = asyncio.run(go())
    assert isinstance(reply, NoReply) and not reply.final and "ConnectError" in reply.reason


@pytest.mark.parametrize("dated", [False, True])
def test_retry_after_holds_everybody_back_for_at_least_as_long(chat: Any, dated: bool) -> None:
    until_s = int(time.time()) + 2  # a date has whole seconds only
    value = email.utils.formatdate(until_s, usegmt=True) if dated else "1"
    chat.follow(step(chat, status=429, body=b"slow down", headers={"Retry-After": value}))
    (reply,), _ = ask(chat)
    assert isinstance(reply, Reply)
    first_s, second_s = (asked.at_s for asked in chat.asked)
    assert second_s >= (until_s - time.time() + time.monotonic() - 0.05 if dated else first_s + 1.0)


def test_a_pause_beyond_all_patience_ends_the_run(chat: Any) -> None:
    always(chat, status=429, body=b"come back tomorrow", headers={"Retry-After": "86400"})
    with pytest.raises(SetupError, match=r"asks to wait 86400 s .*come back tomorrow"):
        ask(chat)
    assert len(chat.asked) == 1


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (401, {}, "refuses the key .*--key-env"),
        (403, {}, "refuses the key"),
        (404, {}, "no chat-completions endpoint with the model a-model .*--endpoint"),
        (307, {"Location": "http://127.0.0.1:9/elsewhere"}, "HTTP 307 http://127.0.0.1:9/elsewhere"),
    ],
)
def test_what_waiting_cannot_mend_ends_the_run_and_never_shows_the_key(
    chat: Any, status: int, headers: dict[str, str], message: str
) -> None:
    always(chat, status=status, body=f"wrong key {KEY}".encode(), headers=headers)
    with pytest.raises(SetupError, match=message) as caught:
        ask(chat, key=KEY)
    assert KEY not in str(caught.value) and "wrong key ***" in str(caught.value)
    assert len(chat.asked) == 1
    assert KEY not in repr(Endpoint(Address.of(chat.url), "m", key=KEY))


def test_a_question_that_is_refused_is_final(chat: Any) -> None:
    always(chat, status=400, body=b'{"error": "picture too large"}')
    (reply,), _ = ask(chat)
    assert isinstance(reply, NoReply) and reply.final and "picture too large" in reply.reason
    assert len(chat.asked) == 1


def test_an_endless_answer_is_not_taken_into_memory(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "MAX_REPLY_BYTES", 1 << 20)
    always(chat, body=b" " * (3 << 20))
    (reply,), _ = ask(chat)
    assert reply == NoReply("the answer is larger than 1 MiB", final=True)


def test_answers_in_parts_without_usage_or_cut_off_are_understood(chat: Any) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    always(chat, body=json.dumps({"choices": [{"message": {"content": parts}, "finish_reason": "length"}]}).encode())
    (reply,), endpoint = ask(chat)
    assert reply == Reply("one two", cut=True)
    assert endpoint.spent.without_usage == 1


# --- pace


def test_slots_are_evenly_spaced_and_quiet_holds_for_all() -> None:
    pace = RateLimit(per_minute=120)
    assert [pace.reserve(100.0) for _ in range(4)] == pytest.approx([0, 0.5, 1.0, 1.5])
    assert pace.reserve(200.0) == 0
    pace.hold(200.0, 30)
    assert [pace.reserve(200.0) for _ in range(2)] == pytest.approx([30, 30.5])
    pace.hold(200.0, 5)  # a shorter one does not shorten it
    assert pace.quiet_for(210.0) == pytest.approx(20)


def test_requests_keep_the_rate_whoever_asks(chat: Any) -> None:
    start_s = time.monotonic()
    ask(chat, times=4, pace=RateLimit(per_minute=600))
    assert (
        max(asked.at_s for asked in chat.asked) - start_s >= 0.29
    )  # three intervals of 0.1 s; more on a busy machine, never less


def test_waits_grow_to_a_bound_and_are_never_shorter_than_asked_for() -> None:
    patience = RetryPolicy(first_s=1, longest_s=60)
    waits = [[patience.wait_s(failures) for _ in range(50)] for failures in range(1, 12)]
    for failures, drawn in enumerate(waits):
        whole = min(60, 2**failures)
        assert whole / 2 <= min(drawn) and max(drawn) <= whole
        assert len(set(drawn)) > 40, "without chance all clients would come back at once"
    assert patience.wait_s(1, asked_s=7) == 7


# --- addresses


@pytest.mark.parametrize(
    ("typed", "url", "host"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1/chat/completions", "127.0.0.1:8000"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1/chat/completions", "127.0.0.1:8000"),
        ("https://api.example.com/v1/chat/completions", "https://api.example.com/v1/chat/completions", "api.example.com"),
        ("http://[::1]:1234", "http://[::1]:1234/chat/completions", "[::1]:1234"),
    ],
)
def test_an_address_is_taken_as_people_type_it(typed: str, url: str, host: str) -> None:
    address = Address.of(typed)
    assert (address.url, address.host) == (url, host)
    assert address.loopback == ("example" not in typed)


@pytest.mark.parametrize(
    "typed", ["", "127.0.0.1:8000", "ftp://host/v1", "http://", "http://me:secret@host/v1", "http://host/v1?key=secret"]
)
def test_other_addresses_are_refused_without_showing_what_may_be_secret(typed: str) -> None:
    with pytest.raises(UsageError) as caught:
        Address.of(typed)
    assert "secret" not in str(caught.value)
