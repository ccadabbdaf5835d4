"""Waits for a job as long as its client does."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

from agvas_runtime.web.judge import ClientLeft, Hearing

__all__ = ["while_heard"]

T = TypeVar("T")


async def while_heard(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]], job: Coroutine[Any, Any, T], hearing: Hearing
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
            hearing.gone.set()
            work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _gone(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
