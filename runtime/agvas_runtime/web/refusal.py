"""Errors as HTTP responses: one shape for all, that of OpenAI's API.

{"error": {"type": "image", "message": "part.png: is 60000x60000 px ...", "code": 422}}
"""

import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from agvas_core.contract.errors import AgvasError, ImageError, UsageError

__all__ = ["REFUSALS", "Refusal", "answer_errors", "busy", "error_body", "of_error", "of_validation"]


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "invalid request"},
    401: {"description": "no API key, or another one"},
    408: {"description": "the body came too slowly"},
    413: {"description": "too many bytes, or an image of too many pixels"},
    422: {"description": "no image, or a field that is wrong"},
    429: {"description": "the queue is full; Retry-After says when to come back"},
}
"""For the OpenAPI document."""


class Refusal(AgvasError):
    """A request that is not served.

    Args:
        status: HTTP status.
        kind: a word for programs: ``usage``, ``image``, ``too_large``, ``busy``, ``unauthorized``, ...
    """

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.headers = status, kind, dict(headers or {})


def busy(message: str, retry_after_s: float) -> Refusal:
    """429: come back later; ``Retry-After`` is in whole seconds, at least one."""
    return Refusal(429, "busy", message, {"Retry-After": str(max(1, math.ceil(retry_after_s)))})


def of_error(error: AgvasError) -> Refusal:
    """The refusal that one of our errors is for a caller."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UsageError):
        return Refusal(400, "usage", str(error))
    if isinstance(error, ImageError):
        return Refusal(422, "image", str(error))
    return Refusal(503, "unavailable", str(error), {"Retry-After": "5"})


def of_validation(error: ValidationError) -> Refusal:
    """The first thing that is wrong with a body, by name."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the body"
    return Refusal(422, "usage", f"{where}: {first['msg']}")


def error_body(refusal: Refusal) -> dict[str, Any]:
    """JSON of a refusal."""
    return {"error": {"type": refusal.kind, "message": str(refusal), "code": refusal.status}}


# Errors of handlers as answers of one shape, whatever the application.


def answer_errors(app: FastAPI) -> None:
    """Gives ``app`` its handlers: what we refuse says why, and a bug of ours says that it is one."""

    @app.exception_handler(AgvasError)
    async def refuse(_: Request, error: AgvasError) -> Response:
        return _answer(of_error(error))

    @app.exception_handler(HTTPException)
    async def refuse_route(_: Request, error: HTTPException) -> Response:
        return _answer(Refusal(error.status_code, "usage", str(error.detail), error.headers))

    @app.exception_handler(RequestValidationError)
    async def refuse_values(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _answer(Refusal(422, "usage", f"{'.'.join(map(str, first['loc']))}: {first['msg']}"))

    @app.exception_handler(Exception)
    async def confess(_: Request, error: Exception) -> Response:
        return _answer(Refusal(500, "bug", "this is a bug in agvas; its traceback is in the server's log"))


def _answer(refusal: Refusal) -> JSONResponse:
    return JSONResponse(error_body(refusal), refusal.status, refusal.headers)
